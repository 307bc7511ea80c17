"""Reserving permits of several limits at once, in one process."""

from __future__ import annotations

import pytest

from llm_gateway.config import Charge, LimitSettings
from llm_gateway.errors import InvalidRequestError, RequestTooLargeError
from llm_gateway.limits import MemoryLimiter, Reservation, Wait, charge_of
from llm_gateway.tokens import Cost

HUNDRED = Cost(1.0, 60.0, 40.0, 100.0)


def limiter(charge: Charge = "actual", **limits: float | None) -> MemoryLimiter:
    settings = LimitSettings.model_validate({"safety": 1.0, "burst_seconds": 1.0, **limits})
    return MemoryLimiter(settings, charge, now=0.0, name="model 'm'")


def reserved(limits: MemoryLimiter, cost: Cost = HUNDRED, now: float = 0.0) -> Reservation:
    outcome = limits.reserve(cost, now)
    assert isinstance(outcome, Reservation)
    return outcome


def assert_waits(outcome: Reservation | Wait, seconds: float, resource: str) -> None:
    assert isinstance(outcome, Wait)
    assert outcome.seconds == pytest.approx(seconds)
    assert outcome.resource == resource


def test_the_slowest_limit_says_how_long_to_wait() -> None:
    limits = limiter(rpm=600, tpm=6000)
    reserved(limits)
    assert_waits(limits.reserve(HUNDRED, 0.0), 1.0, "tokens")
    assert limits.binding(0.5) == "tokens"
    assert limits.binding(1.5) is None
    assert limits.levels(0.0)["tokens"].waits == 1


def test_without_limits_everything_passes() -> None:
    limits = limiter()
    for _ in range(1000):
        reserved(limits)
    assert limits.levels(0.0) == {}
    assert limits.binding(0.0) is None


def test_the_safe_share_of_a_limit_is_used() -> None:
    level = limiter(rpm=6000, safety=0.97, burst_seconds=2.0).levels(0.0)["requests"]
    assert level.limit == 6000
    assert (level.rate, level.burst) == pytest.approx((97.0, 194.0))


def test_a_high_call_finds_permits_that_the_others_leave_in_a_bucket_of_many_calls() -> None:
    limits = limiter(tpm=360_000)  # 6,000 a second, so that a bucket holds 60 of these calls
    while isinstance(outcome := limits.reserve(HUNDRED, 0.0), Reservation):
        pass
    assert limits.levels(0.0)["tokens"].level == 300.0
    assert_waits(outcome, 100 / 6000, "tokens")
    for _ in range(3):
        assert isinstance(limits.reserve(HUNDRED, 0.0, high=True), Reservation)
    assert_waits(limits.reserve(HUNDRED, 0.0, high=True), 100 / 6000, "tokens")


def test_no_permits_are_set_aside_in_a_bucket_of_few_calls() -> None:
    limits = limiter(tpm=240_000)
    for _ in range(40):
        reserved(limits)
    assert_waits(limits.reserve(HUNDRED, 0.0), 100 / 4000, "tokens")


def used_by(limits: MemoryLimiter, calls: int, tokens: float, *, since: float = 0.0) -> float:
    """Let so many calls end, a second apart, that used so much, and return the rate of tokens that is used then."""
    cost = Cost(1.0, 0.0, 0.0, tokens)
    for number in range(calls):
        now = since + number
        limits.settle(limits.free(now), Cost(), now)  # one that was never counted tells nothing
        limits.settle(reserved(limits, cost, now), cost, now)
    return limits.levels(since + calls)["tokens"].rate


def test_more_of_a_limit_of_tokens_is_used_where_the_estimates_of_many_calls_even_out() -> None:
    limits = limiter(tpm=60_000, safety=None)
    assert used_by(limits, 19, 45.0) == pytest.approx(970.0)  # too few to tell
    assert used_by(limits, 1, 45.0, since=100.0) == pytest.approx(990.0)
    assert used_by(limits, 100, 60.0, since=200.0) == pytest.approx(990.0)  # at the edge it does not swing to and fro
    assert used_by(limits, 1000, 100.0, since=400.0) == pytest.approx(970.0)
    limits.set_limit("tokens", 180_000, 1500.0)
    assert used_by(limits, 1, 100.0, since=1600.0) == pytest.approx(2970.0)


def test_a_share_that_was_given_stays() -> None:
    assert used_by(limiter(tpm=60_000, safety=0.9), 100, 1.0) == pytest.approx(900.0)


def test_a_days_requests_can_be_used_at_once_and_flow_back_over_the_day() -> None:
    limits = limiter(rpd=10)
    for _ in range(10):
        reserved(limits)
    assert_waits(limits.reserve(HUNDRED, 0.0), 8640.0, "requests_per_day")


def test_what_was_not_used_comes_back_where_use_is_charged() -> None:
    limits = limiter(itpm=6000, otpm=6000)
    reservation = reserved(limits)
    limits.settle(reservation, Cost(1.0, 50.0, 10.0, 60.0), 0.0)
    levels = limits.levels(0.0)
    assert (levels["input_tokens"].level, levels["output_tokens"].level) == (50.0, 90.0)
    assert (levels["input_tokens"].used, levels["output_tokens"].used) == (50.0, 10.0)


def test_what_was_not_used_is_lost_where_admission_is_charged() -> None:
    limits = limiter("admission_max", tpm=6000)
    limits.settle(reserved(limits), Cost(1.0, 1.0, 1.0, 2.0), 0.0)
    assert limits.levels(0.0)["tokens"].level == 0.0


def test_a_call_that_was_never_sent_gives_everything_back() -> None:
    limits = limiter("admission_max", rpm=60, tpm=6000)
    reservation = reserved(limits)
    limits.refund(reservation, 0.0)
    limits.refund(reservation, 0.0)
    limits.settle(reservation, Cost(1.0, 1e6, 1e6, 2e6), 0.0)
    assert {level.level for level in limits.levels(0.0).values()} == {1.0, 100.0}
    assert limits.open == 0


def test_a_call_that_was_cancelled_on_its_way_counts_as_used() -> None:
    limits = limiter(tpm=6000)
    reservation = reserved(limits)
    limits.keep(reservation)
    limits.refund(reservation, 0.0)
    level = limits.levels(0.0)["tokens"]
    assert (level.level, level.reserved, level.used) == (0.0, 0.0, 100.0)


def test_a_limit_that_is_added_later_is_no_part_of_earlier_reservations() -> None:
    limits = limiter(rpm=60)
    reservation = reserved(limits)
    limits.set_limit("tokens", 6000, 0.0)
    other = reserved(limits, Cost(0.0, 0.0, 0.0, 10.0))
    limits.settle(reservation, Cost(1.0, 500.0, 500.0, 1000.0), 0.0)
    assert limits.levels(0.0)["tokens"].level == 90.0
    assert limits.levels(0.0)["tokens"].reserved == 10.0
    limits.refund(other, 0.0)
    assert limits.levels(0.0)["tokens"].level == 100.0


def test_a_reservation_from_before_a_limit_came_is_refunded_without_it() -> None:
    limits = limiter()
    reservation = reserved(limits)
    limits.set_limit("tokens", 6000, 0.0)
    reserved(limits)
    limits.refund(reservation, 0.0)
    assert limits.levels(0.0)["tokens"].level == 0.0


def test_a_limit_can_go_and_come_back() -> None:
    limits = limiter(rpm=60)
    limits.drop("requests")
    assert limits.levels(0.0) == {}
    assert limits.limit("requests") is None
    limits.set_limit("requests", 120, 0.0)
    assert limits.limit("requests") == 120


def test_all_but_the_days_limit_follow_the_scale() -> None:
    limits = limiter(rpm=60, tpm=6000, rpd=10)
    limits.set_scale(0.5, 0.0)
    levels = limits.levels(0.0)
    assert (levels["requests"].rate, levels["tokens"].rate) == (0.5, 50.0)
    assert levels["requests_per_day"].burst == pytest.approx(10.0)
    assert limits.seconds(Cost(1.0, 0.0, 0.0, 250.0)) == 2.5


def test_after_emptying_permits_come_at_their_rate_without_a_burst() -> None:
    limits = limiter(rpm=600, rpd=100)
    limits.empty_until(5.0, 0.0)
    assert_waits(limits.reserve(HUNDRED, 5.0), 0.1, "requests")
    assert limits.levels(5.0)["requests_per_day"].level == pytest.approx(100.0)


def test_a_level_is_lowered_for_its_own_resource_alone() -> None:
    limits = limiter(rpm=600, tpm=6000)
    limits.lower("tokens", 7.0, 0.0)
    levels = limits.levels(0.0)
    assert (levels["requests"].level, levels["tokens"].level) == (10.0, 7.0)


def test_a_request_that_can_never_pass_says_why_and_what_to_do() -> None:
    limits = limiter(tpm=1000)
    with pytest.raises(RequestTooLargeError) as caught:
        limits.reserve(Cost(1.0, 900.0, 4096.0, 4996.0), 0.0)
    assert str(caught.value) == (
        "The request alone would use about 4,996 tokens, and model 'm' may use 1,000 a minute (limits.tpm); "
        "shorten it or lower max_tokens, or raise limits.tpm if the provider allows more."
    )
    assert isinstance(caught.value, InvalidRequestError)
    assert (caught.value.cost, caught.value.limit, caught.value.key) == (4996.0, 1000, "tpm")
    assert not caught.value.retryable


def test_a_request_of_the_whole_limit_passes_and_the_next_waits_a_minute() -> None:
    limits = limiter(tpm=1000)
    reserved(limits, Cost(1.0, 0.0, 0.0, 1000.0))
    outcome = limits.reserve(Cost(1.0, 0.0, 0.0, 1000.0), 0.0)
    assert_waits(outcome, 60.0, "tokens")


@pytest.mark.parametrize("wrong", [{"rpm": 0}, {"tpm": -1}, {"safety": 1.5}, {"burst_seconds": 0}, {"rps": 3}])
def test_senseless_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LimitSettings.model_validate(wrong)


def test_settings_know_whether_they_say_anything() -> None:
    assert LimitSettings(safety=0.5).is_empty
    assert not LimitSettings(rpd=3).is_empty


def test_openai_charges_at_admission_and_the_others_what_was_used() -> None:
    kinds = ("openai", "azure_openai", "anthropic", "ollama", "groq")
    assert [charge_of(kind) for kind in kinds] == ["admission_max"] * 2 + ["actual"] * 3
