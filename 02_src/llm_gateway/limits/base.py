"""The seam to whatever counts permits: in this process, or in a store that many processes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from llm_gateway.tokens import Cost

Resource = Literal["requests", "tokens", "input_tokens", "output_tokens", "requests_per_day"]

COLUMNS: dict[Resource, int] = {
    "requests": Cost._fields.index("requests"),
    "tokens": Cost._fields.index("tokens"),
    "input_tokens": Cost._fields.index("input_tokens"),
    "output_tokens": Cost._fields.index("output_tokens"),
    "requests_per_day": Cost._fields.index("requests"),
}
"""Where in a `Cost` each resource stands."""


class Wait(NamedTuple):
    """Not yet: ask again in `seconds`, or when something is given back. `resource` is what it waits for longest."""

    seconds: float
    resource: Resource | Literal["gate", "slots", "share"]  # a share of what other processes use as well
    only_low: bool = False  # it waits so long because it is LOW: the same call of another class could begin earlier


@dataclass(slots=True, eq=False)
class Reservation:
    """Permits of one call, taken but not yet settled."""

    cost: Cost
    at: float  # when they were taken
    takes: Mapping[Resource, int]  # by the limits it was made under: the bucket's number of each take
    open: bool = True  # neither settled nor refunded


@dataclass(frozen=True, slots=True)
class Level:
    """Where one limit stands."""

    limit: float | None  # a minute, or a day; None: learned, not told
    rate: float  # permits per second that are let through
    burst: float
    level: float  # permits that can be taken now; negative: a debt
    reserved: float  # by calls that are under way
    used: float  # since the start, those reserved included
    waits: int  # how often this limit was what a reservation waited for


class Limiter(Protocol):
    """Permits of one credential and model, of every limited resource. `now` is monotonic seconds, on one clock."""

    def check(self, cost: Cost, /) -> None:
        """Raise RequestTooLargeError for a cost that a limit will never let through."""

    def reserve(self, cost: Cost, now: float, /, *, low: bool = False, high: bool = False) -> Reservation | Wait:
        """Take all of `cost`, or nothing and say how long to wait. Raises RequestTooLargeError, as `check`.

        A `low` call leaves 40 % in a bucket that holds more than 10 s of its rate, as a day's does. A `high` one finds
        permits of three calls that others leave in a bucket of fifty or more; where permits are shared with other
        processes, it goes before theirs instead.
        """

    def settle(self, reservation: Reservation, actual: Cost, now: float, /) -> None:
        """Replace what was reserved by what was used; more than reserved becomes a debt. The second time is void."""

    def refund(self, reservation: Reservation, now: float, /) -> None:
        """Give everything back: the call was never sent. Void after `settle` or `keep`."""

    def keep(self, reservation: Reservation, /) -> None:
        """Let the whole reservation count as used: the call was sent, and nobody knows what it used."""

    def levels(self, now: float, /) -> dict[Resource, Level]:
        """Return where each limit stands."""

    def binding(self, now: float, /) -> Resource | None:
        """Return the limit that reservations wait for at `now`, None if they do not."""
