"""Arithmetic of one quota: a signed, continuous token bucket. It never waits and never reads a clock."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

ROUNDING = 1e-9  # share of a permit count that floating point may lose
SHORTEST_WAIT = 1e-6  # seconds; a shorter one could round to none on the clock of whoever waits
GRAIN = 64  # peaks closer together than this part of the burst are kept as one
DEEP = 10.0  # seconds of its rate; a bucket that holds more is worth keeping some of for those who cannot wait
KEPT_BACK = 0.4  # of a deep bucket
SET_ASIDE = 3  # calls of the same size that the next HIGH one finds permits for
SMALL = 1 / 50  # of a bucket, what a call may take at most for permits to be set aside


@dataclass(slots=True)
class TokenBucket:
    """Permits of one resource, that flow in continuously up to `burst`.

    In any window of w seconds the permits taken, less those given back, are at most rate · w + max(burst, the largest
    take). Give-backs obey that law too: see `give`. A clock that jumps back adds nothing.
    """

    rate: float  # permits per second
    burst: float  # permits a full bucket holds
    level: float  # permits at `updated`; negative when more was taken than was there
    updated: float  # seconds, on the clock that `now` comes from
    # How high the level stood before each take, newest last, without those that a later peak exceeds.
    _takes: list[int] = field(default_factory=lambda: [0], repr=False)
    _peaks: list[float] = field(default_factory=lambda: [math.inf], repr=False)

    @classmethod
    def full(cls, *, rate: float, burst: float, now: float) -> TokenBucket:
        """Return a bucket that nothing was taken from."""
        return cls(rate=rate, burst=burst, level=burst, updated=now)

    @property
    def kept_back(self) -> float:
        """How many permits background work has to leave in the bucket."""
        return KEPT_BACK * self.burst if self.burst > DEEP * self.rate else 0.0

    def with_aside(self, cost: float) -> float:
        """Return how many permits must be there for a call that is not HIGH and takes `cost`.

        Where they come by and by, somebody who waits would else find the bucket just emptied, again and again. The
        permits set aside cost no throughput: they are there only once.
        """
        return cost * (1 + SET_ASIDE) if cost <= SMALL * self.burst else cost

    def refill(self, now: float) -> None:
        """Let flow in what has come since the last look."""
        elapsed = now - self.updated
        if elapsed > 0:
            level = self.level + elapsed * self.rate
            self.level = min(self.burst, level)
            self.updated = now

    def wait(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` can be taken if nobody else takes, 0.0 for now.

        More than a full bucket can be taken from a full bucket.
        """
        if now > self.updated:
            self.refill(now)
        need = min(self.burst, cost)
        missing = need - self.level
        if missing <= need * ROUNDING:
            return 0.0
        return max(SHORTEST_WAIT, missing / self.rate) if self.rate > 0 else math.inf

    def take(self, cost: float, now: float) -> int:
        """Take `cost`, whether it is there or not; return the number of this take, for `give`."""
        if now > self.updated:
            self.refill(now)
        level = self.level
        self.level = level - cost
        # Depths of a debt are no peaks: taking them for an empty bucket can only make a refund smaller.
        peak = level if level > 0 else 0.0
        peaks, takes = self._peaks, self._takes
        number = takes[-1] + 1
        # A peak not much above the new one is merged into it, at its height, so that memory stays bounded; again that
        # can only make a refund smaller.
        nearly = peak + self.burst / GRAIN
        last = peaks[-1]
        if last > nearly:
            peaks.append(peak)
            takes.append(number)
            return number
        while True:
            if last > peak:  # noqa: PLR1730 - max() would take three times as long
                peak = last
            if len(peaks) == 1 or (last := peaks[-2]) > nearly:
                break
            del peaks[-1], takes[-1]
        peaks[-1], takes[-1] = peak, number
        return number

    def give(self, amount: float, now: float, *, since: int | None = None) -> float:
        """Give back permits of take number `since`, as if they had never been taken; return how many arrived.

        Permits that would have flowed over a full bucket since then are lost: the provider's bucket lost them too,
        and whoever spends them later exceeds the limit. With `since` None the take is the latest.
        """
        self.refill(now)
        highest = self.level
        if since is not None:
            later = bisect_right(self._takes, since)
            if later < len(self._peaks):
                highest = max(highest, self._peaks[later])
        given = min(amount, self.burst - highest)
        if given <= 0:
            return 0.0
        self.level = min(self.burst, self.level + given)
        peaks = self._peaks
        for place, peak in enumerate(peaks):
            peaks[place] = peak + given
        while len(peaks) > 1 and peaks[1] >= self.burst:  # one such peak says all that two would
            del peaks[0], self._takes[0]
        return given

    def charge(self, amount: float, now: float) -> None:
        """Take what has already been used: a debt that the next take waits for."""
        self.take(amount, now)

    def lower(self, level: float, now: float) -> None:
        """Let the level be at most `level`."""
        self.refill(now)
        self.level = min(self.level, level)

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Let permits come at another rate from `now` on; the level stays, but for what a smaller bucket loses."""
        self.refill(now)
        if burst > self.burst:  # what counted as full before counts as full still
            self._peaks = [peak + burst - self.burst for peak in self._peaks]
        self.rate = rate
        self.burst = burst
        self.level = min(self.level, burst)
