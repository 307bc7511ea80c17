"""When a call of one credential and model may begin: its limits, its gate, and what its provider's answers teach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from llm_gateway.config import Charge, LimitSettings
from llm_gateway.limits.base import Reservation, Resource, Wait
from llm_gateway.limits.gate import Gate
from llm_gateway.limits.headers import Standing
from llm_gateway.limits.learning import LearnedRate
from llm_gateway.limits.memory import MemoryLimiter
from llm_gateway.tokens import Cost

REST = 1.0  # seconds without calls after a refusal that measured no limit: it lets the next one measure it


class Pace:
    """Reserves permits for calls, and takes back what they did not use.

    Where no limits are given, those that the provider's headers tell are kept; a `cautious` pace begins slowly and
    learns a rate of requests until they tell some. Where calls
    are refused in spite of the limits, all rates go down together until they are not: somebody else may use the same
    credential. Every reservation ends in exactly one of `answered`, `refused`, `refund` (never sent) and `keep`
    (sent, use unknown); a second one is void. `now` is monotonic seconds, on one clock.
    """

    def __init__(
        self,
        settings: LimitSettings,
        charge: Charge,
        *,
        now: float,
        name: str,
        cautious: bool = True,
        limiter: MemoryLimiter | None = None,
    ) -> None:
        self.charge = charge
        self.limiter = MemoryLimiter(settings, charge, now=now, name=name) if limiter is None else limiter
        self.gate = Gate()
        self.watchers: list[Callable[[], None]] = []  # called when permits may have come without their doing
        self._given = {resource: level.limit for resource, level in self.limiter.levels(now).items()}
        self._unknown = cautious and set(self._given) <= {"requests_per_day"}
        self._scale = LearnedRate.told(1.0)
        if self._unknown:
            self._scale = LearnedRate()
            self.limiter.set_rate("requests", 1.0, now)
            self.limiter.set_scale(self._scale.rate, now)

    @property
    def scale(self) -> float:
        """The share of the limits that is used, 1.0 unless calls are refused; if none is known, requests per second."""
        return self._scale.rate

    def check(self, cost: Cost) -> None:
        """Raise RequestTooLargeError for a cost that a limit will never let through."""
        self.limiter.check(cost)

    def reserve(self, cost: Cost, now: float, *, low: bool = False, high: bool = False) -> Reservation | Wait:
        """Take all of `cost`, or nothing and say how long to wait; both classes as in `Limiter`.

        Raises RequestTooLargeError.
        """
        shut = self.gate.wait(now)
        if shut > 0:
            self.limiter.check(cost)
            return Wait(shut, "gate")
        outcome = self.limiter.reserve(cost, now, low=low, high=high)
        if not self._scale.is_idle:
            self._learn(outcome, cost, now)
        return outcome

    def answered(
        self, reservation: Reservation, actual: Cost, now: float, standings: Mapping[Resource, Standing] | None = None
    ) -> None:
        """Settle by what the call used, and learn what the answer's headers tell."""
        if not reservation.open:
            return
        self.gate.answered(began=reservation.at)
        self.limiter.settle(reservation, actual, now)
        if not self._scale.is_idle:
            self._scale.let_in += self.limiter.seconds(actual) - self.limiter.seconds(reservation.cost)
        if standings:
            self._hear(standings, now)
        self.changed()

    def refused(
        self,
        reservation: Reservation,
        now: float,
        *,
        hint: float | None,
        draw: float,
        standings: Mapping[Resource, Standing] | None = None,
    ) -> None:
        """Shut the gate after a 429 until `hint` seconds from now; `draw` as in `Gate.refused`.

        When it opens, permits come at their rate, without a burst.
        """
        if not reservation.open:
            return
        self.limiter.keep(reservation)
        if standings:
            self._hear(standings, now)
        if hint is not None and not self._scale.measured:
            hint = max(hint, REST)
        self.gate.refused(now, began=reservation.at, hint=hint, draw=draw)
        opens_at = max(now, self.gate.opens_at)
        amount = self.limiter.seconds(reservation.cost)
        if self._scale.refused(now, began=reservation.at, amount=amount, resumes=opens_at):
            self.limiter.set_scale(self._scale.rate, now)
        self.limiter.empty_until(opens_at, now)

    def refund(self, reservation: Reservation, now: float) -> None:
        """Give everything back: the call was never sent."""
        if reservation.open and not self._scale.is_idle:
            self._scale.let_in -= self.limiter.seconds(reservation.cost)
        self.limiter.refund(reservation, now)
        self.changed()

    def keep(self, reservation: Reservation) -> None:
        """Let the whole reservation count as used: the call was sent, and nobody knows what it used."""
        self.limiter.keep(reservation)

    def changed(self) -> None:
        """Tell all who wait that permits may have come."""
        for watcher in self.watchers:
            watcher()

    def _learn(self, outcome: Reservation | Wait, cost: Cost, now: float) -> None:
        if isinstance(outcome, Reservation):
            self._scale.admitted(self.limiter.seconds(cost))
        elif outcome.resource not in {"requests_per_day", "slots", "share"}:
            self._scale.pressed(now)
            self.limiter.set_scale(self._scale.rate, now)

    def _hear(self, standings: Mapping[Resource, Standing], now: float) -> None:
        """Adopt limits that nobody gave, lower those that were given too high, and lower levels."""
        if self._unknown and any(each.limit for resource, each in standings.items() if resource != "requests_per_day"):
            self._unknown = False
            self._scale = LearnedRate.told(1.0)
            self.limiter.drop("requests")
            self.limiter.set_scale(1.0, now)
        for resource, standing in standings.items():
            if standing.limit is not None:
                limit = min(standing.limit, self._given.get(resource) or math.inf)
                if limit != self.limiter.limit(resource):
                    self.limiter.set_limit(resource, limit, now)
            if standing.remaining is not None:
                self.limiter.lower(resource, standing.remaining, now)
