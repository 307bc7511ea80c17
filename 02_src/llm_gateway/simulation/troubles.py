"""What goes wrong at a provider, and when."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, get_args

MINUTE = 60.0

TroubleKind = Literal["rate_limit", "overloaded", "unavailable", "timeout", "truncated", "slow"]
"""429, 529 and 503 refuse a call; "timeout" never answers it; "truncated" breaks its answer off; "slow" delays it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Of the calls that begin from `start` on and before `end`, a `share` fares badly. Seconds of the simulation."""

    kind: TroubleKind
    start: float = 0.0
    end: float = math.inf
    share: float = 1.0
    hint: float | None = None  # seconds after which a 429, 529 or 503 asks to come back
    factor: float = 10.0  # how much longer a slow answer takes

    def __post_init__(self) -> None:
        """Raise ValueError for what makes no sense."""
        if self.kind not in get_args(TroubleKind):
            raise ValueError(f"'{self.kind}' is no trouble; known are {', '.join(get_args(TroubleKind))}")
        if not 0 <= self.start < self.end:
            raise ValueError(f"a trouble cannot last from {self.start:g} to {self.end:g} s; end it after it begins")
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.share:g} is no share of the calls; give one above 0 and up to 1")

    def meets(self, began: float, draw: float) -> bool:
        """Whether a call that began then fares badly; `draw` is uniform in [0, 1)."""
        return self.start <= began < self.end and draw < self.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """No more calls in any second than `factor` times the mean of the minute before, `floor` calls at least."""

    factor: float = 2.0
    floor: int = 10


@dataclass(slots=True)
class Accelerometer:
    """Holds callers to an `Acceleration`."""

    rule: Acceleration
    _recent: deque[float] = field(default_factory=deque)  # admissions of the last minute

    def refuses(self, now: float) -> bool:
        """Whether a call now would come too soon after too many others."""
        while self._recent and self._recent[0] <= now - MINUTE:
            self._recent.popleft()
        last_second = 0
        for each in reversed(self._recent):
            if each <= now - 1.0:
                break
            last_second += 1
        return last_second >= max(self.rule.floor, self.rule.factor * len(self._recent) / MINUTE)

    def admitted(self, now: float) -> None:
        """Note a call that was let in."""
        self._recent.append(now)
