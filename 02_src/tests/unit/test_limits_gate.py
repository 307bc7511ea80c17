"""A refusal shuts the gate for everybody."""

from __future__ import annotations

import math

import pytest

from llm_gateway.limits import Gate


def test_the_gate_stays_shut_until_the_hint() -> None:
    gate = Gate()
    assert gate.wait(0.0) == 0.0
    gate.refused(10.0, began=9.9, hint=3.0, draw=0.5)
    assert gate.wait(10.0) == 3.0
    assert gate.wait(12.9) == pytest.approx(0.1)
    assert gate.wait(13.0) == 0.0


def test_a_later_shorter_hint_never_opens_it_early() -> None:
    gate = Gate()
    gate.refused(0.0, began=0.0, hint=30.0, draw=0.0)
    gate.refused(1.0, began=0.5, hint=0.0, draw=0.0)
    gate.refused(2.0, began=2.0, hint=None, draw=0.0)
    assert gate.opens_at == 30.0
    gate.refused(3.0, began=0.5, hint=60.0, draw=0.0)
    assert gate.opens_at == 63.0


def test_without_a_hint_the_pauses_double_up_to_a_minute() -> None:
    gate = Gate()
    now, pauses = 0.0, []
    for _ in range(100):
        gate.refused(now + 0.1, began=now, hint=None, draw=1.0)
        pauses.append(gate.opens_at - now - 0.1)
        now = gate.opens_at + 1.0
    assert pauses[:7] == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0])
    assert max(pauses) == pytest.approx(60.0)


def test_chance_spreads_a_pause_between_its_half_and_its_whole() -> None:
    gate = Gate()
    gate.refused(0.0, began=-1.0, hint=None, draw=0.0)
    assert gate.opens_at == 0.5


def test_many_refusals_of_one_moment_are_one() -> None:
    gate = Gate()
    for number in range(50):
        gate.refused(1.0 + number / 100, began=number / 100, hint=None, draw=1.0)
    assert gate.opens_at == 2.0
    assert gate.refusals == 1


def test_an_answer_to_a_later_call_ends_the_row_of_refusals() -> None:
    gate = Gate()
    gate.refused(1.0, began=0.0, hint=None, draw=1.0)
    gate.answered(began=0.5)
    assert gate.refusals == 1
    gate.answered(began=2.5)
    assert gate.refusals == 0


@pytest.mark.parametrize("hint", [math.nan, math.inf, -1.0])
def test_a_hint_that_makes_no_sense_is_none(hint: float) -> None:
    gate = Gate()
    gate.refused(0.0, began=0.0, hint=hint, draw=1.0)
    assert gate.opens_at == 1.0


def test_no_hint_shuts_it_for_longer_than_a_day() -> None:
    gate = Gate()
    gate.refused(0.0, began=0.0, hint=1e300, draw=1.0)
    assert gate.opens_at == 86_400.0
