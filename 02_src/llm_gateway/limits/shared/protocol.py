"""What a process and the store say to each other, and the text of the one script that decides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NotRequired, Protocol, TypedDict

from llm_gateway import budgets
from llm_gateway.limits import bucket
from llm_gateway.limits.base import COLUMNS, Resource

VALID = 0.25  # seconds for which a leased share can be spent
SHARE = 0.1  # seconds of its rate that a process leases at a time, or one call's permits if those are more
TURN = 0.02  # the same where other processes wait
RECHECK = 0.25  # seconds after which a process that waits asks again: what it waits for may have come earlier
SLOT_WAIT = 0.05  # the same where it waits for a slot, whose return nobody can foresee
GRACE = 0.25  # seconds by which it may be late and keep its place
HEADROOM = 10  # of so many slots one stays free for HIGH
KEPT = 90_000  # seconds without use after which the store forgets; a day's limit is full again by then
QUIET = 2.0  # seconds without loans after the store was emptied: all tell within that time what was lent to them
MORE = 9.0  # times what a call needs, lent along with it
WANTED = 2.0  # seconds for which a budget counts as wanted after a process asked in vain
LONGEST = 1e9  # seconds, where a permit never comes

SERVER_CLOCK = "local time = redis.call('TIME')\nlocal now = tonumber(time[1]) + tonumber(time[2]) / 1e6\n"

Amounts = dict[Resource, float]


class Unspent(TypedDict):
    """The share that a process gives back."""

    number: int
    takes: dict[Resource, int]
    unspent: Amounts


class Give(TypedDict):
    """Permits of calls that used less than was reserved, or were never sent."""

    born: str
    takes: dict[Resource, int]
    amounts: Amounts


class Ask(TypedDict):
    """The call that waits first."""

    need: Amounts
    times: int  # as many such calls at most
    delay: float  # seconds by which its class comes later than those who ask at the same time
    low: bool
    high: bool
    spent: NotRequired[bool]  # granted is spent: nothing comes back


class Said(TypedDict):
    """What a process says."""

    me: str
    born: str  # of the state it knows, empty before the first
    version: int  # of the limits it knows
    ttl: float  # seconds after which its slots are free if it says nothing more
    busy: int  # calls under way
    slots: NotRequired[int]  # calls under way of all processes, at most
    share: NotRequired[Unspent]
    gives: NotRequired[list[Give]]
    charges: NotRequired[Amounts]
    levels: NotRequired[Amounts]  # no bucket is fuller than that
    shut: NotRequired[float]  # seconds until the gate opens
    refusals: NotRequired[int]
    answered: NotRequired[bool]  # after the gate had been shut
    empty_in: NotRequired[float]  # seconds after which the minutes' buckets are empty
    view: NotRequired[str]  # the limits as it sees them, for other processes to read
    flows: NotRequired[list[tuple[Resource, float, float, float]]]  # rate, burst, and the level of a new bucket
    override: NotRequired[bool]  # its configuration is the newer one
    ask: NotRequired[Ask]
    bye: NotRequired[bool]


class Granted(TypedDict):
    """A share."""

    number: int
    amounts: Amounts
    takes: dict[Resource, int]
    low: bool  # LOW calls may spend it too
    slots: int


class Reply(TypedDict):
    """What the store answers."""

    now: float
    born: str
    version: int
    view: NotRequired[str]  # if another version than the one that was said
    peers: int
    gate: float
    refusals: int
    levels: dict[Resource, str]
    share: NotRequired[Granted]
    wait: NotRequired[float]
    resource: NotRequired[Resource]
    only_low: NotRequired[bool]


class Part(TypedDict):
    """How a budget stands with one process, in US dollars."""

    limit: float
    lent: float
    spent: float
    gone: float  # spent by processes that have left, as far as it knows
    need: float  # more than was lent


class Lending(TypedDict):
    """What a process says of its budgets."""

    me: str
    born: str
    parts: dict[str, Part]
    bye: NotRequired[bool]


class Loan(TypedDict):
    """What the ledger answers about a budget; numbers with all their digits."""

    loan: str
    gone: str
    lent: str
    spent: str
    wanted: bool
    limit: NotRequired[float]  # where the ledger keeps the budget itself


class Lent(TypedDict):
    """What the ledger answers."""

    born: str
    parts: dict[str, Loan]


class StoreError(Exception):
    """The store gave no answer; whether it heard is not known."""


class Lender(Protocol):
    """Where the ledger of shared budgets is."""

    async def lend(self, key: str, said: Lending, /) -> Lent:
        """Lend money of the budgets that are asked for, as far as it is there. Raises StoreError."""


class Store(Lender, Protocol):
    """Where the shared state is."""

    async def decide(self, key: str, said: Said, /) -> Reply:
        """Take one decision atomically. Raises StoreError."""

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""


@cache
def lending_script(clock: str = SERVER_CLOCK) -> str:
    """Return the text of the script that lends money."""
    constants = {"QUIET": QUIET, "MORE": MORE, "WANTED": WANTED, "KEPT": KEPT, "ROUNDING": budgets.ROUNDING}
    return _with_constants(clock, constants, "lend.lua")


@cache
def script(clock: str = SERVER_CLOCK) -> str:
    """Return the text of the script. Tests hand in a clock of their own."""
    constants = {
        "GRAIN": bucket.GRAIN,
        "DEEP": bucket.DEEP,
        "KEPT_BACK": bucket.KEPT_BACK,
        "ROUNDING": bucket.ROUNDING,
        "SHORTEST_WAIT": bucket.SHORTEST_WAIT,
        "INFINITE": 1e300,
        "VALID": VALID,
        "SHARE": SHARE,
        "TURN": TURN,
        "RECHECK": RECHECK,
        "SLOT_WAIT": SLOT_WAIT,
        "GRACE": GRACE,
        "HEADROOM": HEADROOM,
        "KEPT": KEPT,
        "LONGEST": LONGEST,
    }
    resources = "local RESOURCES = {" + ", ".join(f"'{each}'" for each in COLUMNS) + "}\n"
    return _with_constants(clock + resources, constants, "decide.lua")


def _with_constants(head: str, constants: Mapping[str, float], name: str) -> str:
    lines = [f"local {name} = {value!r}\n" for name, value in constants.items()]
    return head + "".join(lines) + files(__package__).joinpath(name).read_text(encoding="utf-8")
