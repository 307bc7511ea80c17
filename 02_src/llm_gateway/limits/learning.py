"""A rate that nobody told us, or told us wrongly: found out from what is let in and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

CAUTIOUS = 2.0  # permits per second to begin with, where nothing is known
SLOWEST = 1e-4  # of a rate that is told: the ten-thousandth part; else one permit in about three hours
DOUBLING = 10.0  # seconds of full use in which the rate doubles, until the first refusal
GROWTH = 0.01  # a second and a call, at most, afterwards
GROWTH_PER_CALL = 7e-5  # 5 % in 700 calls: a refusal or two for each rise to the limit are then below 0.3 %
BEYOND = 1.1  # of the limit once met: above it, it has likely been raised, and growth need not be so careful
CUT = 0.7  # of the rate after a refusal that measured nothing
FIRST_CALLS = 5  # a rate that is refused so early was far too high
FIRST_CUT = 0.35  # of such a rate
DEEPEST_CUT = 0.3
MARGIN = 0.95  # of the rate that a refusal measured
FRESH_START = 1.5  # growth beyond the limit once met, after which it must have been raised
ENOUGH_CALLS, ENOUGH_SECONDS = 30, 5.0  # between two refusals, to measure by
TRUSTED = 0.9  # of a rate that was told: a refusal at that flow was bad luck
LONG_RISE = 1.3
UNUSED = 0.2  # of the time between them, beyond which it is no measure
PATIENCE = 1.0  # seconds between two refusals that are two events
STILL_USED = 1.0  # seconds for which a rate that a call waited for counts as used


@dataclass(slots=True)
class LearnedRate:
    """Permits per second of one resource, as far as refusals tell. Instants in seconds.

    It doubles every 10 s while calls wait for it, until the first refusal. At a refusal the provider's bucket is
    empty. So between two refusals it let in just as much as flowed in, however large the bucket: that measures the
    limit, and the rate goes to 95 % of it; of a few calls, which can be one off, to as much less as one of them is
    worth. The first refusal measures nothing, nor does one after a pause of the callers: the rate goes to 70 %, and
    back by 1 % a second or a call, whichever is less. Beyond 95 % of the limit it grows by 5 % in 700 calls, until it
    is so far beyond that the limit must be another one.
    """

    rate: float = CAUTIOUS
    ceiling: float = math.inf  # the rate that was told
    seeking: bool = True  # no limit was met yet
    met: float = math.inf  # the limit as the latest event shows it
    measured: bool = False  # and not just guessed
    after_cut: float = math.inf  # the rate that the latest event left
    used_at: float | None = None  # until when the use is accounted for
    refused_at: float | None = None  # the latest event
    let_in: float = 0.0  # permits since then, without what was refused
    calls: int = 0  # since then
    grown_at: int = 0  # how many of them there were when the rate last grew
    unused: float = 0.0  # seconds since the latest event in which no call waited for this rate

    @classmethod
    def told(cls, rate: float) -> LearnedRate:
        """Return a rate that is believed until it is refused, and never exceeded."""
        return cls(rate=rate, ceiling=rate, seeking=False)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to learn: the rate was told and never refused."""
        return self.refused_at is None and not self.seeking

    def admitted(self, amount: float) -> None:
        """Note that a call of `amount` permits begins."""
        self.let_in += amount
        self.calls += 1

    def pressed(self, now: float) -> None:
        """Note that a call waits for this rate: it is really used. Only then it grows."""
        since = now if self.used_at is None else self.used_at
        # Slow rates are asked once a permit: waiting for it is use, too.
        longest = max(STILL_USED, 2.0 / self.rate)
        used = min(max(0.0, now - since), longest)
        self.unused += max(0.0, now - since - longest)
        self.used_at = max(now, since)
        if self.seeking:
            growth = 2.0 ** (used / DOUBLING)
        elif MARGIN * self.met <= self.rate <= BEYOND * self.met:
            growth = 1.0 + min(GROWTH * used, GROWTH_PER_CALL * (self.calls - self.grown_at))
        else:
            growth = 1.0 + min(GROWTH * used, GROWTH * (self.calls - self.grown_at))
        self.grown_at = self.calls
        self.rate = min(self.ceiling, self.rate * growth)
        self.seeking = self.seeking or self.rate > FRESH_START * self.met

    def refused(self, now: float, *, began: float, amount: float, resumes: float) -> bool:
        """Note that a call of `amount` permits that began at `began` was refused; True if the rate changed.

        Nothing is sent until `resumes`. Refusals of calls that began before the latest event say nothing new.
        """
        last = self.refused_at
        if last is not None and began <= last:
            return False
        self.let_in -= amount
        if last is not None and now - last < PATIENCE:
            return False
        self._meet(None if last is None else now - last)
        self.seeking = False
        self.refused_at = now
        self.used_at = max(now, resumes)
        self.let_in = self.unused = 0.0
        self.calls = self.grown_at = 0
        return True

    def _meet(self, elapsed: float | None) -> None:
        """Set the rate after an event that came `elapsed` seconds after the one before, None if it is the first."""
        met, self.measured, rate = self.rate, False, CUT * self.rate
        told = math.isfinite(self.ceiling)
        if elapsed is None:
            if told:
                rate = self.rate  # one refusal is no reason to doubt what was told
            elif self.calls <= FIRST_CALLS:
                rate = FIRST_CUT * self.rate
        elif self.unused <= UNUSED * elapsed:
            enough = self.calls >= ENOUGH_CALLS and elapsed >= ENOUGH_SECONDS
            # A long rise began so low that the provider's bucket flowed over: it measured too little.
            self.measured = enough and self.rate <= LONG_RISE * self.after_cut
            # Shortly after an event answers still arrive, and are charged, of calls that began before it.
            deepest = (CUT if told and not enough else DEEPEST_CUT) * self.rate
            limit = min(self.rate, max(deepest, self.let_in / elapsed))
            margin = min(MARGIN, 1.0 - 0.5 / max(1, self.calls))
            rate = limit if limit > TRUSTED * self.ceiling else max(MARGIN * deepest, margin * limit)
            if self.measured:
                met = limit
            elif told and not enough:
                met = min(self.met, self.ceiling)
        self.met = met
        self.rate = self.after_cut = max(min(SLOWEST, self.ceiling * SLOWEST), rate)
