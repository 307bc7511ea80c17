"""When calls to a failing deployment stop, and when they begin again."""

from __future__ import annotations

import math

from llm_gateway.router import Breaker


def tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for n in range(20):
        (breaker.failed if n % 2 else breaker.succeeded)(now)
    return breaker


def test_half_of_twenty_calls_that_failed_open_it_for_fifteen_seconds() -> None:
    breaker = tripped()
    assert (breaker.state, breaker.wait(0.0), breaker.wait(14.9) > 0, breaker.wait(15.0)) == ("open", 15.0, True, 0.0)


def test_fewer_calls_or_fewer_failures_conclude_nothing() -> None:
    few = Breaker()
    for _ in range(19):
        few.failed(0.0)
    well = Breaker()
    for n in range(100):
        (well.succeeded if n % 5 < 3 else well.failed)(0.0)
    assert (few.state, well.state) == ("closed", "closed")


def test_failures_long_ago_are_forgotten() -> None:
    breaker = Breaker()
    for _ in range(19):
        breaker.failed(0.0)
    breaker.failed(31.0)
    assert breaker.state == "closed"


def test_exactly_one_probe_is_made_and_its_success_closes() -> None:
    breaker = tripped()
    assert breaker.begin()
    assert (breaker.state, breaker.wait(15.0)) == ("half-open", math.inf)
    breaker.succeeded(15.5)  # of a call that began before it opened
    assert breaker.state == "half-open"
    breaker.succeeded(16.0, probe=True)
    assert (breaker.state, breaker.wait(16.0), breaker.rest) == ("closed", 0.0, 15.0)
    breaker.failed(16.0)
    assert breaker.state == "closed"  # what failed before the probe is forgotten


def test_a_failed_probe_doubles_the_rest_up_to_five_minutes() -> None:
    breaker = tripped()
    now, rests = 0.0, []
    for _ in range(7):
        now += breaker.wait(now)
        assert breaker.begin()
        breaker.failed(now, probe=True)
        rests.append(breaker.wait(now))
    assert rests == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0, 300.0]


def test_a_probe_whose_caller_left_makes_room_for_another() -> None:
    breaker = tripped()
    breaker.begin()
    breaker.abandoned(20.0)
    assert (breaker.state, breaker.wait(20.0)) == ("open", 0.0)


def test_calls_that_began_before_it_opened_change_nothing() -> None:
    breaker = tripped()
    breaker.failed(1.0)
    breaker.succeeded(2.0)
    breaker.abandoned(3.0)
    assert (breaker.state, breaker.wait(3.0)) == ("open", 12.0)
