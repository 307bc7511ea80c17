"""Budgets that processes share through a real Redis, in virtual time: never exceeded, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from fakes.redis_limits import VirtualStore
from fakes.redis_server import RedisServer
from llm_gateway.budgets import Budgets, Hold, JointBudgets
from llm_gateway.clock import LoopClock
from llm_gateway.config import BudgetSettings, GatewayConfig, load_config
from llm_gateway.errors import BudgetExceededError
from llm_gateway.limits import Paces, budgets_of
from llm_gateway.limits.shared.budgets import SharedBudgets

START = 1_764_000_000.0


class Purse:
    """One process that spends."""

    def __init__(self, store: VirtualStore, config: GatewayConfig) -> None:
        budgets = budgets_of(config)
        assert isinstance(budgets, SharedBudgets)
        self.budgets = budgets
        self.paces = Paces(config, LoopClock(), store=store)
        self.paces.share(budgets)
        self._changed = asyncio.Event()
        budgets.on_change.append(self._changed.set)
        self.worst = 0.0  # spent and reserved, as its calls know it

    async def hold(self, amount: float, *, model: str = "m", agent: str | None = None) -> Hold:
        while True:
            self._changed.clear()
            hold = self.budgets.reserve(amount, model=model, agent=agent)
            if isinstance(hold, Hold):
                self.worst += amount
                return hold
            await self._changed.wait()

    def settle(self, hold: Hold, actual: float) -> None:
        self.worst += actual - hold.amount
        self.budgets.settle(hold, actual)

    def figures(self, name: str = "the gateway") -> dict[str, float]:
        figures: dict[str, float] = self.budgets.snapshot()[name]
        return figures

    def kill(self) -> None:
        for task in self.paces._tasks:
            task.cancel()


class Purses:
    def __init__(self, store: VirtualStore) -> None:
        self.store = store
        self.all: list[Purse] = []

    def join(self, count: int = 1, **budgets: Any) -> list[Purse]:
        config = load_config({"budgets": budgets, "limits": {"redis_url": "redis://unused"}})
        new = [Purse(self.store, config) for _ in range(count)]
        self.all += new
        return new

    @property
    def worst(self) -> float:
        return sum(purse.worst for purse in self.all)


@pytest.fixture
async def purses(redis_server: RedisServer) -> AsyncIterator[Purses]:
    loop = asyncio.get_running_loop()
    store = VirtualStore(redis_server, lambda: START + loop.time())
    store.flush()
    store.takes = 0.001
    purses = Purses(store)
    yield purses
    store.gone = False
    for purse in purses.all:
        await purse.paces.aclose()
    store.flush()
    store.close()


async def spend(purse: Purse, rng: Random, watch: Purses, limit: float) -> None:
    while True:
        try:
            hold = await purse.hold(0.05 + rng.random() * 0.1)
        except BudgetExceededError:
            return
        assert watch.worst <= limit * (1 + 1e-9)
        await asyncio.sleep(rng.random())
        purse.settle(hold, hold.amount * rng.random())


async def test_what_all_spend_and_reserve_never_exceeds_the_budget_and_nearly_all_of_it_is_spent(
    purses: Purses,
) -> None:
    members = purses.join(4, total=10.0)
    async with asyncio.timeout(600.0), asyncio.TaskGroup() as group:
        for number, purse in enumerate(members):
            for _ in range(3):
                group.create_task(spend(purse, Random(number), purses, 10.0))
    assert 9.7 <= purses.worst <= 10.0


async def test_a_call_that_never_fits_fails_at_once_and_says_what_is_left(purses: Purses) -> None:
    one, other = purses.join(2, total=1.0)
    one.settle(await one.hold(0.8), 0.75)
    await asyncio.sleep(2.0)
    with pytest.raises(BudgetExceededError) as caught:
        await other.hold(1.1)
    assert "the gateway" in str(caught.value)
    await asyncio.sleep(2.0)
    with pytest.raises(BudgetExceededError):
        await other.hold(0.3)
    assert other.figures()["spent"] == pytest.approx(0.75)
    assert other.figures()["left"] == pytest.approx(0.25)
    assert isinstance(await other.hold(0.2), Hold)


async def test_a_call_waits_for_what_another_process_may_give_back(purses: Purses) -> None:
    one, other = purses.join(2, total=1.0)
    hold = await one.hold(0.9)
    waiting = asyncio.create_task(other.hold(0.5))
    await asyncio.sleep(5.0)
    assert not waiting.done()
    one.budgets.release(hold)
    await asyncio.sleep(2.5)
    assert isinstance(await waiting, Hold)


async def test_agents_and_models_have_budgets_of_their_own(purses: Purses) -> None:
    one, other = purses.join(2, total=10.0, models={"gpt-4o-mini": 5.0}, agents={"a": 1.0}, each_agent=2.0)
    one.settle(await one.hold(0.9, model="gpt-4o-mini", agent="a"), 0.9)
    await asyncio.sleep(2.0)
    other.settle(await other.hold(1.9, model="gpt-4o-mini", agent="b"), 1.9)
    assert isinstance(await other.hold(0.1, agent="a"), Hold)
    await asyncio.sleep(2.0)
    with pytest.raises(BudgetExceededError, match="agent 'a'"):
        await other.hold(0.2, agent="a")


async def test_what_a_dead_process_borrowed_counts_as_spent(purses: Purses) -> None:
    dead, other = purses.join(2, total=1.0)
    await dead.hold(0.6)
    dead.kill()
    await asyncio.sleep(20.0)
    waiting = asyncio.create_task(other.hold(0.5))
    await asyncio.sleep(20.0)
    assert not waiting.done()
    waiting.cancel()


async def test_a_process_that_leaves_gives_back_what_it_did_not_spend(purses: Purses) -> None:
    leaving, other = purses.join(2, total=1.0)
    leaving.settle(await leaving.hold(0.6), 0.1)
    await leaving.hold(0.1)
    leaving.budgets.release(await leaving.hold(0.1))
    await leaving.paces.aclose()
    assert isinstance(await other.hold(0.8), Hold)


async def test_while_the_ledger_is_gone_nothing_is_lent_and_the_log_says_so(
    purses: Purses, caplog: pytest.LogCaptureFixture
) -> None:
    (purse,) = purses.join(1, total=1.0)
    await purse.hold(0.01)
    purses.store.gone = True
    waiting = asyncio.create_task(purse.hold(0.5))
    await asyncio.sleep(10.0)
    assert not waiting.done()
    assert caplog.text.count("does not answer") == 1
    purses.store.gone = False
    await asyncio.sleep(1.0)
    assert isinstance(await waiting, Hold)


async def test_after_a_flush_what_was_spent_is_told_anew(purses: Purses, caplog: pytest.LogCaptureFixture) -> None:
    leaving, one, other = purses.join(3, total=1.0)
    leaving.settle(await leaving.hold(0.3), 0.3)
    one.settle(await one.hold(0.3), 0.3)
    other.budgets.release(await other.hold(0.01))
    await leaving.paces.aclose()
    await asyncio.sleep(3.0)
    purses.store.flush()
    with pytest.raises(BudgetExceededError):
        await other.hold(0.45)
    await asyncio.sleep(3.0)
    assert isinstance(await other.hold(0.35), Hold)
    assert purses.worst <= 1.0
    assert "emptied" in caplog.text


async def test_budgets_that_processes_share_are_borrowed_also_beside_those_of_a_job(purses: Purses) -> None:
    (purse,) = purses.join(1, total=1.0)
    joint = JointBudgets(purse.budgets, Budgets(BudgetSettings(total=0.5), owner="the job"))
    paces = Paces(load_config({"limits": {"redis_url": "redis://unused"}}), LoopClock(), store=purses.store)
    paces.share(joint)
    lent = asyncio.Event()
    joint.on_change.append(lent.set)
    assert not isinstance(joint.reserve(0.4, model="m", agent=None), Hold)
    async with asyncio.timeout(5.0):
        await lent.wait()
    hold = joint.reserve(0.4, model="m", agent=None)
    assert isinstance(hold, Hold)
    joint.settle(hold, 0.3)
    assert {name: each["spent"] for name, each in joint.snapshot().items()} == {"the gateway": 0.3, "the job": 0.3}
    await paces.aclose()


def test_without_a_store_budgets_are_this_gateways_own() -> None:
    assert budgets_of(load_config({})) is None
    budgets = budgets_of(load_config({"budgets": {"total": 1.0}}))
    assert budgets is not None
    assert not isinstance(budgets, SharedBudgets)
