"""The budget of a shared job: what it lends, to whom, and what is left when processes come and go."""

from __future__ import annotations

import asyncio
import io
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llm_gateway.cli import running
from llm_gateway.cli.jobs import budget_fact
from llm_gateway.cli.running import Run
from llm_gateway.jobs.lending import KEPT, PURSE, SILENT, Purse
from llm_gateway.limits.shared.protocol import Lending, Part

AMOUNTS = st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5])


def says(me: str, *, lent: float = 0.0, spent: float = 0.0, need: float = 0.0, bye: bool = False) -> Lending:
    part = Part(limit=10.0, lent=lent, spent=spent, gone=0.0, need=need)
    return Lending(me=me, born="", parts={"total:": part}, bye=bye)


def loan(purse: Purse, said: Lending, now: float) -> float:
    return float(purse.lend(said, now)["parts"]["total:"]["loan"])


@given(st.data())
def test_what_was_lent_never_exceeds_the_budget_whoever_dies_leaves_or_returns(data: st.DataObject) -> None:
    purse = Purse(limit=data.draw(st.sampled_from([1.0, 4.0])))
    held: dict[str, tuple[float, float]] = {}  # lent, spent
    gone, now = 0.0, 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0.1, 1.0, SILENT + 1, KEPT + 1]))
        me = data.draw(st.sampled_from("abc"))
        lent, spent = held.get(me, (0.0, 0.0))
        spent = min(lent, spent + data.draw(AMOUNTS))
        if data.draw(st.booleans()):
            lent = max(spent, lent - data.draw(AMOUNTS))
        bye = data.draw(st.integers(0, 4)) == 0
        lent += loan(purse, says(me, lent=lent, spent=spent, need=data.draw(AMOUNTS), bye=bye), now)
        purse = Purse.read(purse.model_dump(mode="json"))
        held[me] = (lent, spent)
        if bye:
            gone += held.pop(me)[1]
        assert gone + sum(each for each, _ in held.values()) <= purse.limit * (1 + 1e-9)
        assert purse.spent(now) >= gone + sum(each for _, each in held.values()) - 1e-9


def test_a_process_that_returns_after_it_was_forgotten_has_its_loan_once() -> None:
    purse = Purse(limit=10.0)
    lent = loan(purse, says("a", need=5.0), 0.0)
    loan(purse, says("b"), KEPT + 1)
    assert purse.gone == lent
    loan(purse, says("a", lent=lent, spent=0.5), KEPT + 2)
    loan(purse, says("a", lent=lent, spent=0.5, bye=True), KEPT + 3)
    assert purse.gone == pytest.approx(0.5)


def test_a_process_gets_what_it_needs_and_some_more_and_others_hear_when_somebody_waits() -> None:
    purse = Purse(limit=10.0)
    assert loan(purse, says("a", need=0.1), 0.0) == pytest.approx(1.0)
    assert loan(purse, says("b", need=4.0), 0.0) == pytest.approx(4.0 + 5.0 / 4)
    assert loan(purse, says("b", lent=5.25, need=4.0), 0.5) == 0.0
    answer = purse.lend(says("a", lent=1.0), 1.0)["parts"]["total:"]
    assert (answer["wanted"], answer.get("limit")) == (True, 10.0)
    assert purse.lend(says("a", lent=1.0), 5.0)["parts"]["total:"]["wanted"] is False


def test_what_a_process_that_fell_silent_had_counts_as_spent_until_it_is_back() -> None:
    purse = Purse(limit=10.0, gone=1.0)
    loan(purse, says("a", need=0.2), 0.0)
    loan(purse, says("a", lent=2.0, spent=0.5), 1.0)
    assert (purse.spent(2.0), purse.in_doubt(2.0)) == (1.5, 0.0)
    assert (purse.spent(2.0 + SILENT), purse.in_doubt(2.0 + SILENT)) == (3.0, 1.5)
    told = "$1.50 of $10.00 spent by all processes"
    assert budget_fact(purse.model_dump(), 2.0) == told
    assert budget_fact(purse.model_dump(), 2.0 + SILENT) == f"{told}, and up to $1.50 by some that were killed"
    loan(purse, says("a", lent=2.0, spent=0.5), 40.0)
    assert purse.spent(40.0) == 1.5
    loan(purse, says("b"), 50.0 + KEPT)
    assert (purse.gone, [*purse.members]) == (3.0, ["b"])


@pytest.mark.parametrize(("has_budget", "facts"), [(False, {PURSE: {}}), (True, {PURSE: {}, "cancelled": "now"})])
async def test_a_process_that_counts_no_budget_stops_when_the_job_gets_one(
    has_budget: bool,  # noqa: FBT001 - a parameter of the test
    facts: dict[str, Any],
) -> None:
    class Store:
        looks = 0

        async def facts(self) -> dict[str, Any]:
            self.looks += 1
            return facts if self.looks > 1 else {PURSE: {}} if has_budget else {}

    class Job:
        store = Store()

    nothing = cast("Any", None)
    console = Console(file=io.StringIO())
    job = cast("Any", Job())
    run = Run(
        nothing,
        job,
        rows=nothing,
        reader=nothing,
        writer=nothing,
        tally=nothing,
        console=console,
        has_budget=has_budget,
    )
    await run._look()
    assert asyncio.get_running_loop().time() == 2 * running.LOOK_PERIOD
    assert run._stop is not None
    assert run._stop.sentence.startswith("The job was cancelled" if has_budget else "The job was given a budget")
