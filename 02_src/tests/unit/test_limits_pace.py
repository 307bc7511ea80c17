"""Limits, gate and learning together, as a lane sees them."""

from __future__ import annotations

import math

import pytest

from llm_gateway.config import LimitSettings
from llm_gateway.errors import RequestTooLargeError
from llm_gateway.limits import Pace, Reservation, Resource, Standing, Wait
from llm_gateway.tokens import Cost

CALL = Cost(1.0, 50.0, 50.0, 100.0)


def pace(**limits: float) -> Pace:
    return Pace(
        LimitSettings.model_validate({"safety": 1.0, "burst_seconds": 1.0, **limits}),
        "actual",
        now=0.0,
        name="model 'm'",
    )


def begun(lane: Pace, now: float = 0.0, cost: Cost = CALL) -> Reservation:
    outcome = lane.reserve(cost, now)
    assert isinstance(outcome, Reservation)
    return outcome


def assert_waits(outcome: Reservation | Wait, seconds: float, resource: str) -> None:
    assert isinstance(outcome, Wait)
    assert outcome.seconds == pytest.approx(seconds)
    assert outcome.resource == resource


def test_nothing_begins_before_the_hint_of_a_refusal() -> None:
    lane = pace(rpm=6000)
    lane.refused(begun(lane), 0.1, hint=5.0, draw=0.0)
    assert_waits(lane.reserve(CALL, 0.2), 4.9, "gate")
    assert isinstance(lane.reserve(CALL, 5.2), Reservation)


def test_after_a_refusal_permits_come_at_their_rate_without_a_burst() -> None:
    lane = pace(rpm=6000)
    lane.refused(begun(lane), 0.0, hint=5.0, draw=0.0)
    assert_waits(lane.reserve(CALL, 5.0, high=True), 0.01, "requests")


def test_while_the_gate_is_shut_a_request_that_is_too_large_still_fails_at_once() -> None:
    lane = pace(tpm=1000)
    lane.refused(begun(lane, cost=Cost(1.0, 1.0, 1.0, 2.0)), 0.0, hint=5.0, draw=0.0)
    with pytest.raises(RequestTooLargeError):
        lane.reserve(Cost(1.0, 1e6, 0.0, 1e6), 1.0)
    with pytest.raises(RequestTooLargeError):
        lane.check(Cost(1.0, 1e6, 0.0, 1e6))


def test_a_reservation_ends_once() -> None:
    lane = pace(tpm=60_000)
    reservation = begun(lane)
    lane.answered(reservation, Cost(1.0, 50.0, 10.0, 60.0), 0.0)
    lane.refused(reservation, 0.0, hint=60.0, draw=0.0)
    lane.answered(reservation, Cost(1.0, 1e5, 0.0, 1e5), 0.0)
    lane.refund(reservation, 0.0)
    lane.keep(reservation)
    level = lane.limiter.levels(0.0)["tokens"]
    assert (level.level, level.used, level.reserved) == (940.0, 60.0, 0.0)
    assert lane.gate.wait(0.0) == 0.0


def test_without_limits_it_starts_cautiously_and_speeds_up_while_it_is_used() -> None:
    lane = pace()
    assert lane.scale == 2.0
    now = 0.0
    while now < 20.0:
        outcome = lane.reserve(CALL, now)
        now += outcome.seconds if isinstance(outcome, Wait) else 0.0
    assert lane.scale == pytest.approx(8.0, rel=0.1)
    assert lane.limiter.levels(now)["requests"].limit is None


def test_a_call_that_was_never_sent_is_no_part_of_what_was_let_in() -> None:
    lane = pace()
    lane.refused(begun(lane), 0.0, hint=None, draw=0.0)
    reservation = begun(lane, 5.0)
    lane.refund(reservation, 5.0)
    lane.refund(reservation, 5.0)
    assert lane._scale.let_in == 0.0


def test_told_limits_replace_the_learned_rate() -> None:
    lane = pace()
    told: dict[Resource, Standing] = {
        "tokens": Standing(60_000, 59_900, 0.1),
        "requests_per_day": Standing(1000, 999, 86.4),
    }
    lane.answered(begun(lane), CALL, 0.0, told)
    levels = lane.limiter.levels(0.0)
    assert set(levels) == {"tokens", "requests_per_day"}
    assert levels["tokens"].rate == pytest.approx(1000.0)
    assert lane.scale == 1.0


def test_a_days_limit_alone_does_not_end_learning() -> None:
    lane = pace()
    lane.answered(begun(lane), CALL, 0.0, {"requests_per_day": Standing(1000, 999, 86.4)})
    assert set(lane.limiter.levels(0.0)) == {"requests", "requests_per_day"}
    assert lane.limiter.levels(0.0)["requests"].limit is None


def test_a_told_limit_may_change_but_never_exceeds_a_given_one() -> None:
    lane = pace(rpm=600)
    for told, then in ((6000.0, 600.0), (60.0, 60.0), (6000.0, 600.0)):
        lane.answered(begun(lane, 1000 * then), CALL, 1000 * then, {"requests": Standing(told)})
        assert lane.limiter.limit("requests") == then


def test_what_remains_lowers_a_level_and_never_raises_it() -> None:
    lane = pace(rpm=600)
    lane.answered(begun(lane), CALL, 0.0, {"requests": Standing(600, 3.0, 1.0), "tokens": Standing(remaining=5.0)})
    assert lane.limiter.levels(0.0)["requests"].level == 3.0
    lane.answered(begun(lane), CALL, 0.0, {"requests": Standing(600, 500.0, 1.0)})
    assert lane.limiter.levels(0.0)["requests"].level == 2.0


def test_a_refusals_headers_are_heard_too() -> None:
    lane = pace()
    lane.refused(begun(lane), 0.0, hint=1.0, draw=0.0, standings={"requests": Standing(60, 0.0, 60.0)})
    assert lane.limiter.limit("requests") == 60


@pytest.mark.parametrize("hint", [0.01, None])
def test_calls_rest_a_while_after_a_refusal_that_measured_nothing(hint: float | None) -> None:
    lane = pace()
    lane.refused(begun(lane), 0.0, hint=hint, draw=0.0)
    outcome = lane.reserve(CALL, 0.1)
    assert isinstance(outcome, Wait)
    assert outcome.seconds >= 0.4


@pytest.mark.untraced  # hundreds of thousands of calls of what other tests cover
def test_given_limits_that_are_too_high_come_down_together_and_return() -> None:
    lane = pace(rpm=6000, tpm=6_000_000)
    now, refused = 0.0, 0
    sent: list[float] = []
    while now < 60.0:  # the provider lets through half of what was given
        outcome = lane.reserve(CALL, now)
        if isinstance(outcome, Wait):
            now += outcome.seconds
            continue
        sent = [each for each in sent if each > now - 1.0]
        if len(sent) >= 50:
            lane.refused(outcome, now, hint=0.02, draw=0.0)
            refused += 1
        else:
            sent.append(now)
            lane.answered(outcome, CALL, now)
    assert 0.4 < lane.scale < 0.6
    assert refused < 20
    while now < 400.0:  # then all of it
        outcome = lane.reserve(CALL, now)
        if isinstance(outcome, Wait):
            now += outcome.seconds
        else:
            lane.answered(outcome, CALL, now)
    assert lane.scale == 1.0


def test_a_hint_that_makes_no_sense_is_none() -> None:
    lane = pace(rpm=600)
    lane.refused(begun(lane), 0.0, hint=math.nan, draw=1.0)
    assert lane.gate.opens_at == 1.0
