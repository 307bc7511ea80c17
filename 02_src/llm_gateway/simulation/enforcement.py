"""A rate limit as a provider enforces it: continuous buckets that refuse what does not fit. Pure arithmetic.

Made apart from the gateway's own buckets on purpose: a mistake in those must not be repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llm_gateway.config import LimitSettings

LimitKey = Literal["rpm", "tpm", "itpm", "otpm", "rpd"]
"""A limit, by its key in the configuration."""

PERIODS: Mapping[LimitKey, float] = {"rpm": 60.0, "tpm": 60.0, "itpm": 60.0, "otpm": 60.0, "rpd": 86_400.0}
"""Seconds in which a whole limit flows back."""

ROUNDING = 1e-9  # share of a cost that floating point may lose


@dataclass(slots=True)
class Quota:
    """One limit of one account. `level` is negative after a charge that was larger than what was there."""

    key: LimitKey
    limit: float  # permits a minute, or a day
    burst: float  # permits that a quota which stood idle holds
    level: float
    told: float  # the level of a bucket that holds the whole limit: what headers tell, however short the burst is
    updated: float
    drain: float = 0.0  # permits that answers under way use up each second

    @property
    def rate(self) -> float:
        """Permits that flow back each second."""
        return self.limit / PERIODS[self.key]

    def refill(self, now: float) -> None:
        """Let the permits since the last look flow in, and those that answers used up flow out."""
        flow = (now - self.updated) * (self.rate - self.drain)
        self.level = min(self.burst, self.level + flow)
        self.told = min(self.limit, self.told + flow)
        self.updated = now

    def wait(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` passes; more than a full quota passes when it is full.

        Infinite for more than the whole limit: no provider lets that through.
        """
        if cost > self.limit:
            return math.inf
        self.refill(now)
        need = min(cost, self.burst)
        missing = need - self.level
        return missing / self.rate if missing > need * ROUNDING else 0.0

    def charge(self, cost: float, now: float) -> None:
        """Take permits, whether they are there or not."""
        self.refill(now)
        self.level -= cost
        self.told -= cost


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a limit stands, as headers tell it."""

    limit: int  # permits a minute, or a day
    remaining: int
    reset: float  # seconds until all permits are back


class Meter:
    """The limits of one model or account in force. A call that is refused is not charged."""

    def __init__(self, limits: LimitSettings, now: float) -> None:
        self.limits = limits
        self.quotas = [_quota(limits, key, now, full=True) for key in PERIODS if getattr(limits, key)]

    def change(self, limits: LimitSettings, now: float) -> None:
        """Enforce other limits from now on; their buckets begin empty."""
        self.limits = limits
        self.quotas = [_quota(limits, key, now, full=False) for key in PERIODS if getattr(limits, key)]

    def wait(self, costs: Mapping[LimitKey, float], now: float) -> float:
        """Return the seconds until all of `costs` passes, 0.0 for now."""
        return max((quota.wait(costs[quota.key], now) for quota in self.quotas), default=0.0)

    def charge(self, costs: Mapping[LimitKey, float], now: float) -> None:
        """Take permits, whether they are there or not."""
        for quota in self.quotas:
            quota.charge(costs.get(quota.key, 0.0), now)

    def drain(self, rates: Mapping[LimitKey, float], now: float) -> None:
        """From `now` on let answers under way use up so many permits more each second; fewer if negative."""
        for quota in self.quotas:
            quota.refill(now)
            quota.drain += rates.get(quota.key, 0.0)

    def standings(self, now: float) -> dict[LimitKey, Standing]:
        """Return where each limit stands."""
        for quota in self.quotas:
            quota.refill(now)
        return {
            quota.key: Standing(
                limit=int(quota.limit),
                remaining=max(0, int(quota.told)),
                reset=(quota.limit - quota.told) / quota.rate,
            )
            for quota in self.quotas
        }


def _quota(limits: LimitSettings, key: LimitKey, now: float, *, full: bool) -> Quota:
    limit = float(getattr(limits, key))
    # A day's quota can be used at once; of the others, so many seconds' worth.
    burst = limit if key == "rpd" else max(1.0, limit * (limits.burst_seconds or 1.0) / PERIODS[key])
    level, told = (burst, limit) if full else (0.0, 0.0)
    return Quota(key=key, limit=limit, burst=burst, level=level, told=told, updated=now)
