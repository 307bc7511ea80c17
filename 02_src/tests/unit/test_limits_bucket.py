"""One quota: it fills continuously, and gives no permit that its provider would not have."""

from __future__ import annotations

import math

import pytest

from llm_gateway.limits.bucket import GRAIN, TokenBucket


def bucket(rate: float = 10.0, burst: float = 10.0) -> TokenBucket:
    return TokenBucket.full(rate=rate, burst=burst, now=0.0)


def test_a_full_bucket_lets_its_burst_through_at_once_and_then_its_rate() -> None:
    quota = bucket()
    quota.take(10.0, 0.0)
    assert quota.wait(1.0, 0.0) == pytest.approx(0.1)
    assert quota.wait(5.0, 0.25) == pytest.approx(0.25)
    assert quota.wait(5.0, 0.5) == 0.0


def test_more_than_the_burst_passes_when_the_bucket_is_full_and_leaves_a_debt() -> None:
    quota = bucket()
    quota.take(1.0, 0.0)
    assert quota.wait(50.0, 0.0) == pytest.approx(0.1)
    assert quota.wait(50.0, 0.1) == 0.0
    quota.take(50.0, 0.1)
    assert quota.wait(1.0, 0.1) == pytest.approx(4.1)


def test_coming_back_after_the_wait_always_passes() -> None:
    quota = bucket(rate=1 / 3, burst=0.1)
    now = 1e6
    for _ in range(100):
        quota.take(1.0, now)
        now += quota.wait(1.0, now)
        again = quota.wait(1.0, now)
        assert again <= 1e-6
        now += again


def test_a_wait_is_never_too_short_for_a_clock_to_see() -> None:
    quota = bucket(rate=1e15, burst=1e15)
    quota.take(2e15 - 1e7, 0.0)
    assert quota.wait(1e15, 1.0 - 1e-9) >= 1e-6


def test_no_rate_means_no_end_of_waiting() -> None:
    quota = bucket(rate=0.0)
    quota.take(10.0, 0.0)
    assert quota.wait(1.0, 5.0) == math.inf


def test_permits_given_back_at_once_are_all_there_again() -> None:
    quota = bucket()
    take = quota.take(8.0, 0.0)
    assert quota.give(8.0, 0.0, since=take) == 8.0
    assert quota.level == 10.0


def test_permits_given_back_never_lift_the_level_above_the_burst() -> None:
    quota = bucket()
    quota.take(2.0, 0.0)
    assert quota.give(5.0, 0.0) == 2.0
    assert quota.give(5.0, 0.0) == 0.0


def test_permits_that_would_have_flowed_over_meanwhile_are_not_given_back() -> None:
    quota = bucket()
    take = quota.take(8.0, 0.0)
    quota.take(10.0, 0.8)  # full again before
    assert quota.give(6.0, 0.8, since=take) == 0.0
    assert quota.level == 0.0


def test_permits_come_back_as_far_as_the_bucket_was_never_full_since() -> None:
    quota = bucket()
    take = quota.take(8.0, 0.0)
    quota.take(5.0, 0.5)  # it had risen to 7, so 3 more would just have filled it
    assert quota.give(6.0, 0.5, since=take) == pytest.approx(3.0)


def test_a_second_refund_counts_with_the_first() -> None:
    quota = bucket()
    first, second = quota.take(4.0, 0.0), quota.take(4.0, 0.0)
    quota.take(2.0, 0.2)  # it stood at 4
    assert quota.give(4.0, 0.2, since=first) == pytest.approx(4.0)
    assert quota.give(4.0, 0.2, since=second) == pytest.approx(2.0)


def test_a_debt_is_paid_before_the_next_take() -> None:
    quota = bucket()
    quota.charge(25.0, 0.0)
    assert quota.wait(1.0, 0.0) == pytest.approx(1.6)


def test_another_rate_holds_from_now_on_and_a_smaller_bucket_loses_what_it_cannot_hold() -> None:
    quota = bucket()
    quota.set_rate(1.0, 2.0, 0.0)
    assert quota.level == 2.0
    quota.take(2.0, 0.0)
    quota.set_rate(100.0, 100.0, 1.0)
    assert quota.level == pytest.approx(1.0)
    assert quota.wait(100.0, 1.0) == pytest.approx(0.99)


def test_what_was_full_before_a_change_of_rate_was_full_for_refunds() -> None:
    quota = bucket()
    take = quota.take(5.0, 0.0)
    quota.take(1.0, 1.0)
    quota.set_rate(20.0, 20.0, 1.0)
    assert quota.give(5.0, 1.0, since=take) == 0.0


def test_a_level_can_only_be_lowered() -> None:
    quota = bucket()
    quota.lower(3.0, 0.0)
    quota.lower(8.0, 0.0)
    assert quota.level == 3.0


def test_its_memory_is_bounded() -> None:
    quota = bucket(rate=1.0, burst=1000.0)
    now = 0.0
    for number in range(5000):
        take = quota.take(0.3, now)
        now += 0.05
        if number % 3 == 0:
            quota.give(0.2, now, since=take)
        if number % 100 == 0:
            quota.charge(40.0, now)
    assert len(quota._peaks) == len(quota._takes) <= GRAIN + 3


def test_huge_numbers_do_no_harm() -> None:
    quota = bucket(rate=1e200, burst=1e200)
    quota.take(1e300, 0.0)
    assert quota.wait(1.0, 1e200) == 0.0
    assert quota.level == quota.burst
