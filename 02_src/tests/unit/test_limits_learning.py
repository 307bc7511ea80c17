"""A rate is found from refusals."""

from __future__ import annotations

import math

import pytest

from llm_gateway.limits import LearnedRate


def use(rate: LearnedRate, start: float, seconds: float, *, calls_per_second: float = 100.0) -> float:
    """Let calls wait for the rate and begin, ten times a second; return the end."""
    steps = round(seconds * 10)
    for step in range(1, steps + 1):
        rate.pressed(start + step / 10)
        for _ in range(round(calls_per_second / 10)):
            rate.admitted(1.0)
    return start + seconds


def test_it_doubles_every_ten_seconds_of_use_until_the_first_refusal() -> None:
    rate = LearnedRate(rate=2.0)
    rate.pressed(0.0)
    use(rate, 0.0, 20.0)
    assert rate.rate == pytest.approx(8.0)


def test_a_rate_that_nobody_waits_for_does_not_grow() -> None:
    rate = LearnedRate(rate=8.0)
    rate.pressed(0.0)
    rate.pressed(3600.0)
    assert rate.rate == pytest.approx(8.0 * 2**0.1)


def test_the_first_refusal_cuts_it_and_one_a_moment_later_does_not() -> None:
    rate = LearnedRate(rate=100.0, calls=50)
    assert rate.refused(10.0, began=9.9, amount=1.0, resumes=11.0)
    assert rate.rate == pytest.approx(70.0)
    assert not rate.refused(10.1, began=9.95, amount=1.0, resumes=11.0)
    assert not rate.refused(10.5, began=10.2, amount=1.0, resumes=11.0)
    assert rate.rate == pytest.approx(70.0)


def test_a_refusal_of_one_of_the_first_calls_cuts_deeper() -> None:
    rate = LearnedRate(rate=2.0, calls=1)
    rate.refused(0.5, began=0.49, amount=1.0, resumes=1.5)
    assert rate.rate == pytest.approx(0.7)


def test_a_measurement_by_few_calls_leaves_the_room_of_one_of_them() -> None:
    rate = LearnedRate(rate=0.8, calls=50)
    rate.refused(0.0, began=-0.1, amount=0.0, resumes=0.0)
    for second in range(1, 7):
        rate.pressed(float(second))
        if second % 3 == 0:
            rate.admitted(1.0)
    rate.refused(6.0, began=6.0, amount=0.0, resumes=6.0)
    assert not rate.measured
    assert rate.rate == pytest.approx(0.75 * 2 / 6)


def test_what_was_let_in_just_after_a_refusal_says_little_of_a_told_rate() -> None:
    rate = LearnedRate.told(1.0)
    rate.refused(0.0, began=-0.1, amount=0.0, resumes=0.0)
    rate.pressed(2.0)
    rate.admitted(0.1)
    rate.refused(2.0, began=1.9, amount=0.0, resumes=2.0)
    assert rate.rate >= 0.5 * 0.7
    end = use(rate, 2.0, 100.0, calls_per_second=100.0)
    assert end == 102.0
    assert rate.rate > 0.9


def test_the_second_refusal_measures_the_limit() -> None:
    rate = LearnedRate(rate=100.0, calls=50)
    rate.refused(0.0, began=-0.1, amount=1.0, resumes=0.0)
    end = use(rate, 0.0, 6.0, calls_per_second=50.0)
    rate.refused(end, began=end - 0.01, amount=1.0, resumes=end)
    assert rate.measured
    assert rate.rate == pytest.approx(0.95 * 299 / 6)


def test_after_a_measurement_it_grows_by_five_percent_in_700_calls() -> None:
    rate = LearnedRate(rate=100.0)
    rate.refused(0.0, began=-0.1, amount=1.0, resumes=0.0)
    use(rate, 0.0, 6.0, calls_per_second=50.0)
    rate.refused(6.0, began=5.99, amount=1.0, resumes=6.0)
    before = rate.rate
    use(rate, 6.0, 70.0, calls_per_second=10.0)
    assert rate.rate == pytest.approx(1.05 * before, rel=0.01)


def test_a_pause_of_the_callers_spoils_the_measurement() -> None:
    rate = LearnedRate(rate=100.0)
    rate.refused(0.0, began=-0.1, amount=1.0, resumes=0.0)
    rate.pressed(60.0)
    rate.admitted(1.0)
    before = rate.rate
    rate.refused(60.1, began=60.0, amount=1.0, resumes=60.1)
    assert rate.rate == pytest.approx(0.7 * before)
    assert not rate.measured


def test_one_cut_is_never_deeper_than_to_three_tenths() -> None:
    rate = LearnedRate(rate=100.0)
    rate.refused(0.0, began=-0.1, amount=1.0, resumes=0.0)
    end = use(rate, 0.0, 2.0, calls_per_second=0.0)
    before = rate.rate
    rate.refused(end, began=end, amount=0.0, resumes=end)
    assert rate.rate == pytest.approx(0.95 * 0.3 * before)


def test_a_limit_that_was_raised_is_sought_again() -> None:
    rate = LearnedRate(rate=100.0)
    rate.refused(0.0, began=-0.1, amount=1.0, resumes=0.0)
    end = 0.0
    while not rate.seeking:
        end = use(rate, end, 10.0, calls_per_second=1000.0)
        assert end < 200.0
    before = rate.rate
    use(rate, end, 10.0)
    assert rate.rate == pytest.approx(2 * before)


def test_endless_refusals_leave_a_rate_above_zero() -> None:
    rate = LearnedRate(rate=1.0)
    for number in range(500):
        rate.pressed(number * 10.0)
        rate.refused(number * 10.0 + 5, began=number * 10.0 + 4, amount=1.0, resumes=number * 10.0 + 6)
    assert 0 < rate.rate < 1e-3
    assert math.isfinite(rate.rate)


def test_a_rate_that_was_told_is_never_exceeded_and_one_refusal_does_not_shake_it() -> None:
    rate = LearnedRate.told(1.0)
    assert rate.is_idle
    rate.refused(0.0, began=-0.1, amount=0.01, resumes=1.0)
    assert rate.rate == 1.0
    assert not rate.is_idle
    use(rate, 1.0, 100.0)
    assert rate.rate == 1.0


def test_a_second_refusal_at_nearly_the_told_rate_is_bad_luck() -> None:
    rate = LearnedRate.told(1.0)
    rate.refused(0.0, began=-0.1, amount=0.0, resumes=0.0)
    for step in range(1, 101):
        rate.pressed(step / 10)
        rate.admitted(0.095)
    rate.refused(10.0, began=9.99, amount=0.0, resumes=10.0)
    assert rate.rate == pytest.approx(0.95)


def test_refusals_at_half_the_told_rate_bring_it_down() -> None:
    rate = LearnedRate.told(1.0)
    rate.refused(0.0, began=-0.1, amount=0.0, resumes=0.0)
    for step in range(1, 101):
        rate.pressed(step / 10)
        rate.admitted(0.05)
    rate.refused(10.0, began=9.99, amount=0.0, resumes=10.0)
    assert rate.rate == pytest.approx(0.95 * 0.5)
