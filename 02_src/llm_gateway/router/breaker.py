"""The breaker of one deployment: while most calls fail, none is made. Pure arithmetic; `now` is handed in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WINDOW = 30.0  # seconds over which failures are counted, in two halves
ENOUGH = 20  # calls in the window below which nothing is concluded
TRIPPING = 0.5  # share of them that failed
FIRST_REST = 15.0  # seconds
LONGEST_REST = 300.0


@dataclass(slots=True)
class _Half:
    """Calls that ended in one half of the window."""

    began: float = -math.inf
    calls: int = 0
    failures: int = 0


@dataclass(slots=True)
class Breaker:
    """Closed, calls are made; open, none is for 15 s; then one probe, whose success closes it.

    It opens when at least 20 calls ended within 30 s and half of them failed; a failed probe doubles the rest, up to
    5 minutes. A throttle (429) is no failure: the provider is well. Nygard, "Release It!", 2nd ed. 2018, chapter 5.
    """

    opens_at: float | None = None  # when a probe may be made; None while closed
    rest: float = FIRST_REST
    probing: bool = False
    _halves: list[_Half] = field(default_factory=lambda: [_Half(), _Half()])

    @property
    def state(self) -> str:
        """One of "closed", "open", and "half-open" (a probe is under way)."""
        if self.opens_at is None:
            return "closed"
        return "half-open" if self.probing else "open"

    def wait(self, now: float) -> float:
        """Seconds until a call may begin, 0.0 for now; infinite while a probe is under way: its end decides."""
        if self.opens_at is None:
            return 0.0
        return math.inf if self.probing else max(0.0, self.opens_at - now)

    def begin(self) -> bool:
        """Note that a call begins; return whether it is the probe, to be told when it ends."""
        self.probing = self.opens_at is not None
        return self.probing

    def succeeded(self, now: float, *, probe: bool = False) -> None:
        """Note that a call was answered, or refused for a reason that says nothing of the deployment's health."""
        if probe:
            self.opens_at, self.probing, self.rest = None, False, FIRST_REST
            self._halves = [_Half(), _Half()]
        elif self.opens_at is None:
            self._half(now).calls += 1

    def failed(self, now: float, *, probe: bool = False) -> None:
        """Note that a call failed."""
        if probe:
            self.rest = min(LONGEST_REST, 2.0 * self.rest)
            self._open(now)
        elif self.opens_at is None:
            half = self._half(now)
            half.calls += 1
            half.failures += 1
            calls = sum(each.calls for each in self._halves)
            if calls >= ENOUGH and sum(each.failures for each in self._halves) >= TRIPPING * calls:
                self._open(now)

    def abandoned(self, now: float) -> None:
        """Note that the probe ended without a verdict, since its caller left: the next call is another."""
        if self.probing:
            self.probing = False
            self.opens_at = now

    def _open(self, now: float) -> None:
        self.opens_at, self.probing = now + self.rest, False
        self._halves = [_Half(), _Half()]

    def _half(self, now: float) -> _Half:
        newer = self._halves[1]
        if now - newer.began >= WINDOW / 2:
            forgotten = now - newer.began >= WINDOW
            self._halves = [_Half() if forgotten else newer, _Half(began=now)]
        return self._halves[1]
