"""Repetition: whether a failed call is made again, and how much later. Pure arithmetic, no clock and no chance."""

from __future__ import annotations

from dataclasses import dataclass

from llm_gateway.errors import ProviderError, ProviderOverloadedError, RateLimitError

TRANSIENT_COST = 14.0  # permits of the quota that a retry after a failure takes
THROTTLE_COST = 5.0  # after a throttle: the provider is well, only busy
SUCCESS_REFUND = 1.0


def is_throttle(error: ProviderError) -> bool:
    """Whether the provider asked for less, rather than failed."""
    return isinstance(error, RateLimitError | ProviderOverloadedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Whether a failed attempt is repeated, and how much later. Durations in seconds."""

    max_attempts: int = 5  # provider calls in total, the first one included
    base: float = 0.5
    longest: float = 20.0  # of the pauses that this policy chooses
    longest_hint: float = 300.0  # of the pauses that a provider may ask for
    max_throttles: int = 30  # calls of one request that may meet a rate limit, beside its attempts

    def delay(self, attempt: int, error: ProviderError, *, draw: float) -> float | None:
        """Seconds between attempt `attempt` (from 1) and the next; None means give up.

        `draw` is uniform in [0, 1). Full jitter: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
        2015, with twice the base after a throttle. It comes on top of the provider's hint, since every caller was
        told the same one. A hint beyond `longest_hint` means give up.
        """
        return None if attempt >= self.max_attempts else self._delay(attempt, error, draw)

    def delay_of_throttle(self, throttle: int, error: ProviderError, *, draw: float) -> float | None:
        """Seconds until the request is tried again that met its `throttle`-th rate limit (from 1); None: give up."""
        return None if throttle > self.max_throttles else self._delay(throttle, error, draw)

    def _delay(self, failures: int, error: ProviderError, draw: float) -> float | None:
        floor = error.retry_after or 0.0
        if not error.retryable or floor > self.longest_hint:
            return None
        base = self.base * (2.0 if is_throttle(error) else 1.0)
        exponent = min(failures - 1, 62)  # 2.0 ** 1024 overflows and max_attempts has no ceiling
        return floor + draw * min(self.longest, base * 2.0**exponent)


@dataclass(slots=True)
class RetryQuota:
    """Permits for the retries of one deployment: while most calls fail, few of them are repeated.

    Figures as in the AWS SDKs' standard retry mode: 500 permits, 14 for a transient failure, 5 for a throttle, 1 back
    for a success.
    """

    capacity: float
    level: float

    @classmethod
    def full(cls, capacity: float) -> RetryQuota:
        """Return a quota that nothing was taken from."""
        return cls(capacity, capacity)

    def take(self, error: ProviderError) -> bool:
        """Take what a retry after `error` costs; False, and nothing taken, if there is not enough."""
        cost = THROTTLE_COST if is_throttle(error) else TRANSIENT_COST
        if cost > self.level:
            return False
        self.level -= cost
        return True

    def succeeded(self) -> None:
        """Give back what a success earns."""
        self.level = min(self.capacity, self.level + SUCCESS_REFUND)
