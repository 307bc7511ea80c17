"""Permits of one process among many: it spends small shares that the store lends, and says what became of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_gateway.config import Charge, LimitSettings
from llm_gateway.limits.base import Level, Reservation, Resource, Wait
from llm_gateway.limits.bucket import ROUNDING, SHORTEST_WAIT
from llm_gateway.limits.memory import MemoryLimiter
from llm_gateway.limits.shared.protocol import RECHECK, SLOT_WAIT, VALID, Amounts, Ask, Granted, Reply
from llm_gateway.limits.shared.report import Report
from llm_gateway.tokens import Cost

HALF = 0.5  # of a share; where more is left, the next one is smaller
MOST_CALLS = 256  # whose permits are asked for at once
LULL = 0.005  # seconds that a call which waits for permits lets pass at least, so that some come together
DELAYS = {"high": -2.0, "normal": 0.0, "low": 2.0}  # seconds: who of two processes that wait comes first
PATIENCE = 0.5  # seconds after which a process that gets no answer goes on alone


@dataclass(slots=True)
class Share:
    """Permits that the store lent to this process."""

    granted: Granted
    began: float
    ends: float
    unspent: Amounts
    slots: int  # calls that may be under way at the same time while it is valid


@dataclass(slots=True)
class _Want:
    """The most urgent call that waits for a share."""

    cost: Cost
    urgency: str
    ask_at: float
    told: Wait | None = None
    until: float = -math.inf  # when what was told is over


@dataclass(slots=True, eq=False)
class SharedReservation(Reservation):
    """Permits that came from a share, with the state of the store they were taken from."""

    born: str = field(default="", kw_only=True)
    share: int = field(default=0, kw_only=True)


class SharedLimiter(MemoryLimiter):
    """A `Limiter` that spends what the store lends. No I/O: `Link` carries what is said and heard.

    While the store is `alone`, it lets its own part of every limit through, as the buckets in memory count it.
    `slots` is how many calls of all processes may be under way. `on_due` is called when there is something to say
    earlier than was known.
    """

    is_shared = True

    def __init__(
        self, settings: LimitSettings, charge: Charge, *, now: float, name: str, slots: int | None, peers: int = 1
    ) -> None:
        self.report = Report()
        self.on_due: Callable[[], None] = lambda: None
        self.alone = False
        self.peers = peers  # processes that share, this one included
        self.slots = slots
        self.changed_limits = False  # since they were said to the store
        self._share: Share | None = None
        self._want: _Want | None = None
        self._times = 1
        self._seen: Amounts = {}  # the levels in the store
        self._adopting = False
        self._riding = 0  # of the open reservations, those that go in the call, and so in the slot, of another
        super().__init__(settings, charge, now=now, name=name)

    # --- one call -----------------------------------------------------------------------------------------------

    @property
    def is_limited(self) -> bool:
        """Whether any resource has a limit: the calls under way are always counted."""
        return True

    def reserve(self, cost: Cost, now: float, /, *, low: bool = False, high: bool = False) -> Reservation | Wait:
        """Take all of `cost`, or nothing and say how long to wait. Raises RequestTooLargeError."""
        if self.alone:
            return self._reserve_alone(cost, now, low=low)
        self.check(cost)
        share = self._share
        if share is not None and share.began <= now <= share.ends and self._covers(share, cost):
            if share.granted["low"] or not low:
                return self._spend(share, cost, now)
            return Wait(max(SHORTEST_WAIT, share.ends - now), self._slowest(cost), only_low=True)
        return self._wait(cost, now, "low" if low else "high" if high else "normal")

    def settle(self, reservation: Reservation, actual: Cost, now: float, /) -> None:
        """Replace what was reserved by what was used; more than reserved becomes a debt."""
        if not reservation.open:
            return
        difference = {
            limit.resource: actual[limit.column] - reservation.cost[limit.column]
            for limit in self._limits
            if limit.resource in reservation.takes
        }
        over = {resource: amount for resource, amount in difference.items() if amount > 0}
        under = {resource: -amount for resource, amount in difference.items() if amount < 0} if self._refunds else {}
        if isinstance(reservation, SharedReservation):
            self._close(reservation)
            self.report.give(reservation.born, reservation.takes, under)
            for limit in self._limits:
                limit.used += over.get(limit.resource, 0.0) - under.get(limit.resource, 0.0)
        else:
            super().settle(reservation, actual, now)
        self.report.charge(over)
        self._tell()

    def refund(self, reservation: Reservation, now: float, /) -> None:
        """Give everything back: the call was never sent."""
        if not reservation.open:
            return
        if not isinstance(reservation, SharedReservation):
            super().refund(reservation, now)
            return
        self._close(reservation)
        amounts = {
            limit.resource: reservation.cost[limit.column]
            for limit in self._limits
            if limit.resource in reservation.takes
        }
        for limit in self._limits:
            limit.used -= amounts.get(limit.resource, 0.0)
        share = self._share
        if share is not None and share.granted["number"] == reservation.share and now <= share.ends:
            for resource, amount in amounts.items():
                share.unspent[resource] += amount
        else:
            self.report.give(reservation.born, reservation.takes, amounts)
            self._tell()

    def keep(self, reservation: Reservation, /) -> None:
        """Let the whole reservation count as used."""
        if self._close(reservation):
            self._tell()

    # --- limits that change -------------------------------------------------------------------------------------

    def set_scale(self, scale: float, now: float, /) -> None:
        """Let all but the day's permits come at `scale` times their rate from `now` on."""
        self.changed_limits = self.changed_limits or (scale != self._scale and not self._adopting)
        super().set_scale(scale, now)

    def drop(self, resource: Resource, /) -> None:
        """Limit `resource` no more."""
        self.changed_limits = True
        super().drop(resource)

    def lower(self, resource: Resource, level: float, now: float, /) -> None:
        """Let no more than `level` permits of `resource` be there at `now`, here and in the store."""
        super().lower(resource, level, now)
        self.report.lower(resource, level)
        self._tell()

    def empty_until(self, instant: float, now: float, /) -> None:
        """Let every bucket of a minute's limit be empty at `instant`, here and in the store."""
        super().empty_until(instant, now)
        self.report.empty_at = max(self.report.empty_at, instant)
        self._share = None  # what it holds is spent: after a refusal nothing is there

    def table(self) -> list[tuple[Resource, float, float]]:
        """Return every limit, infinite if it is learned, and its rate at a scale of 1."""
        return [(limit.resource, limit.whole, limit.rate) for limit in self._limits]

    def flows(self) -> list[tuple[Resource, float, float]]:
        """Return the rate and the burst of every limit for all processes together."""
        share, self._part = self._part, 1.0
        flows = [(limit.resource, *self._flow(limit.resource, limit.rate)) for limit in self._limits]
        self._part = share
        return flows

    def adopt(self, table: list[tuple[Resource, float, float]], scale: float, now: float) -> None:
        """Take over the limits that another process has found."""
        self._adopting = True
        for resource in {each for each, _, _ in self.table()} - {each for each, _, _ in table}:
            super().drop(resource)
        for resource, whole, rate in table:
            self._set(resource, whole, rate, now)
        self.set_scale(scale, now)
        self._adopting = False

    def levels(self, now: float, /) -> dict[Resource, Level]:
        """Return where each limit stands; the level is the store's, as it was heard last, and what is lent here."""
        levels = super().levels(now)
        if self.alone:
            return levels
        lent = self._share.unspent if self._share is not None and now <= self._share.ends else {}
        for resource, level in levels.items():
            here = self._seen.get(resource, 0.0) + lent.get(resource, 0.0)
            levels[resource] = Level(
                level.limit, level.rate, level.burst, here, level.reserved, level.used, level.waits
            )
        return levels

    # --- what the link carries ----------------------------------------------------------------------------------

    def due_at(self) -> float:
        """Return when there is something to ask or a share to give back, infinite if there is nothing."""
        due = math.inf if self._want is None else self._want.ask_at
        if self._share is not None:
            due = min(due, self._share.ends)
        return due

    def give_back(self, now: float) -> Share | None:
        """Return the share that is left, and hold none."""
        share, self._share = self._share, None
        if share is None:
            return None
        granted = share.granted["amounts"]
        left = max((share.unspent[each] / granted[each] for each in granted if granted[each] > 0), default=0.0)
        if left > HALF:
            self._times = max(1, self._times // 2)
        elif now < share.ends and self._want is not None:
            self._times = min(MOST_CALLS, self._times * 2)
        return share

    def ask(self, now: float) -> Ask | None:
        """Return what to ask the store for."""
        want = self._want
        if want is None or self.alone:
            return None
        want.ask_at = now + PATIENCE + RECHECK  # the answer comes first, or the link goes alone
        need: Amounts = {limit.resource: want.cost[limit.column] for limit in self._limits}
        low, high = want.urgency == "low", want.urgency == "high"
        return {"need": need, "times": self._times, "delay": DELAYS[want.urgency], "low": low, "high": high}

    def hear(self, reply: Reply, sent: float, now: float) -> None:
        """Take in what the store answered to what was said at `sent`."""
        self.peers = max(1, reply["peers"])
        self._seen = {resource: float(level) for resource, level in reply["levels"].items()}
        want = self._want
        granted = reply.get("share")
        if granted is not None:
            self._want = None
            # It counts from when it was asked for: the store's time began later.
            self._share = Share(
                granted, sent, sent + VALID, dict(granted["amounts"]), self.report.busy + granted["slots"]
            )
        elif want is not None and "wait" in reply:
            seconds = max(SHORTEST_WAIT, reply["wait"])
            want.told = Wait(seconds, reply["resource"], reply["only_low"])
            want.until = now + seconds
            recheck = SLOT_WAIT if want.told.resource == "slots" else RECHECK
            want.ask_at = now + max(0.0 if want.urgency == "high" else LULL, min(seconds, recheck))
            for limit in self._limits:
                if limit.resource == want.told.resource:
                    limit.waits += 1
                    self._binding = (limit.resource, want.until)

    def go_alone(self, now: float) -> None:
        """Let this process's part of every limit through from now on, beginning with nothing."""
        self.alone = True
        self._share = self._want = None
        self.set_part(1.0 / self.peers, now)
        for limit in self._limits:
            seen = self._seen.get(limit.resource, limit.bucket.burst * self.peers)
            day = limit.resource == "requests_per_day"
            limit.bucket.lower(seen / self.peers if day else 0.0, now)

    def go_together(self, now: float) -> None:
        """Spend shares again from now on."""
        self.alone = False
        self._share = self._want = None
        self.set_part(1.0, now)

    @property
    def seen(self) -> Amounts:
        """The levels in the store, as they were heard last."""
        return self._seen

    # --- inside -------------------------------------------------------------------------------------------------

    def _set(self, resource: Resource, whole: float, rate: float, now: float) -> None:
        self.changed_limits = self.changed_limits or not self._adopting
        super()._set(resource, whole, rate, now)

    def _close(self, reservation: Reservation) -> bool:
        closed = super()._close(reservation)
        if closed:
            self._riding -= not reservation.cost.requests
            self.report.busy = self._open - self._riding
        return closed

    def _opened(self, cost: Cost) -> None:
        self._riding += not cost.requests
        self.report.busy = self._open - self._riding

    def _has_slot(self, cost: Cost, slots: int) -> bool:
        return self.slots is None or not cost.requests or self._open - self._riding < slots

    def _covers(self, share: Share, cost: Cost) -> bool:
        if not self._has_slot(cost, share.slots):
            return False
        for limit in self._limits:
            need = cost[limit.column]
            if need - share.unspent.get(limit.resource, -1.0) > need * ROUNDING:
                return False
        return True

    def _spend(self, share: Share, cost: Cost, now: float) -> Reservation:
        for limit in self._limits:
            amount = cost[limit.column]
            share.unspent[limit.resource] -= amount
            limit.reserved += amount
            limit.used += amount
        self._open += 1
        self._opened(cost)
        takes, number = share.granted["takes"], share.granted["number"]
        return SharedReservation(cost, now, takes, born=self.report.born, share=number)

    def _reserve_alone(self, cost: Cost, now: float, *, low: bool) -> Reservation | Wait:
        if not self._has_slot(cost, max(1, (self.slots or 0) // self.peers)):
            self.check(cost)
            return Wait(SLOT_WAIT, "slots")
        outcome = super().reserve(cost, now, low=low)
        if isinstance(outcome, Reservation):
            self._opened(cost)
            self.report.charge({limit.resource: cost[limit.column] for limit in self._limits})
        return outcome

    def _wait(self, cost: Cost, now: float, urgency: str) -> Wait:
        want = self._want
        more_urgent = want is not None and DELAYS[urgency] < DELAYS[want.urgency]
        if want is None or more_urgent or (urgency == want.urgency and _fits_in(cost, want.cost)):
            self._want = want = _Want(cost, urgency, now)
            self.on_due()
        if want.told is not None and want.urgency == urgency and want.until > now:
            return Wait(want.until - now, want.told.resource, want.told.only_low)
        # The answer comes as a change; this is for the case that none comes.
        return Wait(PATIENCE, "share", only_low=urgency == "low" != want.urgency)

    def _slowest(self, cost: Cost) -> Resource:
        return max(self._limits, key=lambda limit: cost[limit.column] / limit.bucket.rate).resource

    def _tell(self) -> None:
        self.report.has_news = True
        self.on_due()


def _fits_in(small: Cost, large: Cost) -> bool:
    """Whether a call is smaller than another one, and larger in nothing."""
    return small != large and all(a <= b for a, b in zip(small, large, strict=True))
