"""A rate limit as providers enforce it: continuous buckets, charged at admission and trued up by the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Quotas a minute, each API has its own; None means no limit of that kind."""

    rpm: float | None = None
    tpm: float | None = None  # input and output together
    input_tpm: float | None = None
    output_tpm: float | None = None
    burst_seconds: float = 1.0  # how much of a minute may be used at once

    def buckets(self, now: float) -> dict[str, Bucket]:
        """Return full buckets by resource."""
        quotas = {
            "requests": self.rpm,
            "tokens": self.tpm,
            "input-tokens": self.input_tpm,
            "output-tokens": self.output_tpm,
        }
        return {
            name: Bucket(limit=limit, burst=max(1.0, limit * self.burst_seconds / 60.0), updated=now)
            for name, limit in quotas.items()
            if limit is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a resource stands: what headers tell."""

    limit: int  # permits a minute
    remaining: int
    requested: int  # by the call in question
    reset: float  # seconds until the bucket is full again
    wait: float  # seconds until the call in question would pass


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Arithmetic of one quota. `level` is negative after a charge that was larger than expected."""

    limit: float
    burst: float
    updated: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.burst

    def refill(self, now: float) -> None:
        """Let the permits since the last look flow in."""
        self.level = min(self.burst, self.level + (now - self.updated) * self.limit / 60.0)
        self.updated = now

    def wait(self, cost: float) -> float:
        """Return the seconds until `cost` passes. More than a full bucket passes when the bucket is full."""
        return max(0.0, min(cost, self.burst) - self.level) * 60.0 / self.limit

    def standing(self, cost: float) -> Standing:
        """Return where the bucket stands for a call of that cost."""
        return Standing(
            limit=int(self.limit),
            remaining=max(0, int(self.level)),
            requested=int(cost),
            reset=max(0.0, self.burst - self.level) * 60.0 / self.limit,
            wait=self.wait(cost),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a call was not let in: the resource that keeps it waiting longest."""

    resource: str
    standing: Standing
    too_large: bool  # it asks for more than a whole minute's quota, so that waiting is in vain


class Meter:
    """The limits of one API in force. A refused call is not charged."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._buckets = limits.buckets(now)

    def admit(self, costs: Mapping[str, float], now: float) -> Refusal | None:
        """Charge all resources, or none and say which one refuses."""
        asked = {name: costs.get(name, 0.0) for name in self._buckets}
        for name, bucket in self._buckets.items():
            bucket.refill(now)
            if asked[name] > bucket.limit:
                return Refusal(resource=name, standing=bucket.standing(asked[name]), too_large=True)
        waits = {name: bucket.wait(asked[name]) for name, bucket in self._buckets.items()}
        longest = max(waits, key=waits.__getitem__, default=None)
        if longest is not None and waits[longest] > 0:
            standing = self._buckets[longest].standing(asked[longest])
            return Refusal(resource=longest, standing=standing, too_large=False)
        self.charge(asked, now)
        return None

    def charge(self, costs: Mapping[str, float], now: float) -> None:
        """Take permits whether they are there or not: the answer has already been produced."""
        for name, bucket in self._buckets.items():
            bucket.refill(now)
            bucket.level -= costs.get(name, 0.0)

    def standings(self) -> dict[str, Standing]:
        """Return where each resource stood at the last charge."""
        return {name: bucket.standing(0.0) for name, bucket in self._buckets.items()}
