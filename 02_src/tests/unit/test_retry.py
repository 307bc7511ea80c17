"""When a failed call is repeated, and how much later."""

from __future__ import annotations

import pytest

from llm_gateway import (
    AuthenticationError,
    ContextLengthError,
    IncompleteResponseError,
    ModelNotFoundError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitError,
    RequestRejectedError,
)
from llm_gateway.retry import RetryPolicy, RetryQuota

POLICY = RetryPolicy(max_attempts=5, base=0.5, longest=20.0, longest_hint=300.0)


def fault(
    kind: type[ProviderError], *, retry_after: float | None = None, retryable: bool | None = None
) -> ProviderError:
    return kind("no", provider="p", model="m", retry_after=retry_after, retryable=retryable)


MOST = 1.0 - 1e-12  # the largest draw there can be


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0)], ids=["first", "second", "third", "fourth"]
)
def test_the_pause_grows_twofold_and_is_drawn_from_all_of_it(attempt: int, longest: float) -> None:
    error = fault(ProviderUnavailableError)
    assert POLICY.delay(attempt, error, draw=0.0) == 0.0
    assert POLICY.delay(attempt, error, draw=0.5) == longest / 2
    assert POLICY.delay(attempt, error, draw=MOST) == pytest.approx(longest)


def test_a_throttle_waits_twice_as_long_as_a_failure() -> None:
    assert POLICY.delay(1, fault(RateLimitError), draw=0.5) == 0.5
    assert POLICY.delay(1, fault(ProviderOverloadedError), draw=0.5) == 0.5
    assert POLICY.delay(1, fault(ProviderTimeoutError), draw=0.5) == 0.25


def test_jitter_comes_on_top_of_the_providers_hint() -> None:
    error = fault(RateLimitError, retry_after=30.0)
    assert POLICY.delay(1, error, draw=0.0) == 30.0
    assert POLICY.delay(1, error, draw=MOST) == pytest.approx(31.0)


def test_a_hint_longer_than_allowed_means_give_up() -> None:
    assert POLICY.delay(1, fault(RateLimitError, retry_after=300.1), draw=0.0) is None


def test_the_last_attempt_is_the_last() -> None:
    error = fault(ProviderUnavailableError)
    assert POLICY.delay(4, error, draw=0.0) == 0.0
    assert POLICY.delay(5, error, draw=0.0) is None


def test_the_pause_stays_finite_after_a_million_attempts() -> None:
    policy = RetryPolicy(max_attempts=10**7)
    assert policy.delay(10**6, fault(ProviderUnavailableError), draw=MOST) == pytest.approx(20.0)


@pytest.mark.parametrize(
    "kind", [RequestRejectedError, ContextLengthError, AuthenticationError, ModelNotFoundError, QuotaExhaustedError]
)
def test_errors_that_waiting_does_not_mend_are_terminal(kind: type[ProviderError]) -> None:
    assert POLICY.delay(1, fault(kind), draw=0.0) is None


@pytest.mark.parametrize(
    "kind",
    [RateLimitError, ProviderTimeoutError, ProviderUnavailableError, ProviderOverloadedError, IncompleteResponseError],
)
def test_errors_that_may_pass_are_repeated(kind: type[ProviderError]) -> None:
    assert POLICY.delay(1, fault(kind), draw=0.0) is not None


def test_the_providers_own_word_overrides_the_class() -> None:
    assert POLICY.delay(1, fault(ProviderUnavailableError, retryable=False), draw=0.0) is None
    assert POLICY.delay(1, fault(RequestRejectedError, retryable=True), draw=0.0) == 0.0


def test_the_quota_takes_by_kind_of_failure_and_success_gives_back() -> None:
    quota = RetryQuota.full(20.0)
    assert quota.take(fault(ProviderUnavailableError))
    assert quota.level == 6.0
    assert not quota.take(fault(ProviderUnavailableError))
    assert quota.take(fault(RateLimitError))
    assert quota.level == 1.0
    for _ in range(100):
        quota.succeeded()
    assert quota.level == 20.0
