"""The loop whose clock jumps, and its interleavings."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fakes.provider import FakeProvider, ask, gateway_over
from llm_gateway.simulation import VirtualTimeLoop, run_virtual


def test_a_wait_of_a_day_takes_no_time_and_the_clock_says_that_it_did() -> None:
    async def main() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(86_400)


def test_alarms_ring_in_the_order_of_their_instants() -> None:
    rang: list[tuple[float, str]] = []

    async def ring(after: float, name: str) -> None:
        await asyncio.sleep(after)
        rang.append((round(asyncio.get_running_loop().time(), 6), name))

    async def main() -> None:
        await asyncio.gather(ring(3, "c"), ring(1, "a"), ring(2, "b"))

    run_virtual(main())
    assert rang == [(1, "a"), (2, "b"), (3, "c")]


def test_where_all_wait_and_nothing_can_wake_them_the_loop_says_so() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock: every task waits"):
        run_virtual(main())


def test_the_loop_waits_for_work_in_a_thread() -> None:
    go = threading.Event()

    async def main() -> str:
        asyncio.get_running_loop().call_soon(go.set)
        return await asyncio.to_thread(lambda: "done" if go.wait(10) else "late")

    assert run_virtual(main()) == "done"


def test_an_exception_that_nobody_awaited_is_told_unless_it_was_planted() -> None:
    async def main() -> str:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)
        return "done"

    with pytest.raises(RuntimeError, match="by zero"):
        run_virtual(main())
    assert run_virtual(main(), bugs=("integer division or modulo by zero", "division by zero")) == "done"


def order(seed: int | None, tasks: int = 5) -> tuple[list[int], list[str]]:
    steps: list[int] = []
    callbacks: list[str] = []

    async def step(number: int) -> None:
        for _ in range(3):
            steps.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for name in "abc":
            loop.call_soon(callbacks.append, name)
        await asyncio.gather(*(step(number) for number in range(tasks)))

    run_virtual(main(), seed=seed)
    return steps, callbacks


def test_without_a_seed_tasks_take_turns_in_the_order_in_which_they_were_made() -> None:
    assert order(None)[0] == [0, 1, 2, 3, 4] * 3


def test_a_seed_decides_the_interleaving_of_tasks_and_always_the_same_one() -> None:
    orders = {tuple(order(seed)[0]) for seed in range(20)}
    assert len(orders) > 15
    assert all(sorted(each) == sorted([0, 1, 2, 3, 4] * 3) for each in orders)
    assert [order(seed) for seed in range(5)] == [order(seed) for seed in range(5)]


def test_callbacks_that_are_no_tasks_keep_their_order_under_every_seed() -> None:
    assert all(order(seed)[1] == ["a", "b", "c"] for seed in range(20))


@pytest.mark.parametrize("seed", range(10))
def test_the_gateway_answers_everybody_under_any_interleaving(seed: int) -> None:
    provider = FakeProvider()

    async def main() -> int:
        async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 3}}) as gateway:
            answers = await asyncio.gather(*(gateway.request(ask(f"r{number}")) for number in range(20)))
        return len(answers)

    assert run_virtual(main(), seed=seed) == 20
    assert len(provider.ledger) == 20


def test_the_loop_serves_as_the_loop_of_a_runner() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(5))
        assert runner.get_loop().time() == pytest.approx(5)
