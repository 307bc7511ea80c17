"""A flood of callers comes in by and by: nobody else on the loop waits for it, and none of it is lost."""

from __future__ import annotations

import asyncio

import pytest

from fakes.provider import FakeProvider, ask, gateway_over
from llm_gateway import GatewayClosedError, LLMGateway, LLMRequest, LLMResponse, RequestPriority, TextDelta
from llm_gateway.batching import door
from llm_gateway.batching.door import AT_ONCE

HIGH, NORMAL, LOW = RequestPriority
FLOOD = 10 * AT_ONCE


def flood(gateway: LLMGateway, priority: RequestPriority = LOW) -> list[asyncio.Task[LLMResponse]]:
    return [asyncio.create_task(gateway.request(ask(str(n), priority))) for n in range(FLOOD)]


def queued(gateway: LLMGateway) -> int:
    count: int = gateway.get_stats()["queued"]["total"]
    return count


async def test_a_user_who_comes_after_a_flood_does_not_wait_until_all_of_it_is_in() -> None:
    provider = FakeProvider(latency=lambda _: 1.0)
    async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 10}}) as gateway:
        callers = flood(gateway)
        user = asyncio.create_task(gateway.request(ask("user", HIGH)))
        most = 0
        while "user" not in provider.sent:
            await asyncio.sleep(0)
            most = max(most, queued(gateway))
        assert most <= 3 * AT_ONCE
        await asyncio.gather(user, *callers)
    low = [int(name) for name in provider.sent if name != "user"]
    assert low == list(range(FLOOD))  # in the order in which they came


async def test_one_turn_of_the_loop_lets_in_so_many_and_no_more() -> None:
    provider = FakeProvider(latency=lambda _: 1.0)
    async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 1}}) as gateway:
        callers = flood(gateway)
        before, steps = 0, []
        while queued(gateway) + 1 < FLOOD:
            await asyncio.sleep(0)
            steps.append(queued(gateway) - before)
            before = queued(gateway)
        assert max(steps) <= AT_ONCE
        assert sum(step > 0 for step in steps) >= FLOOD / AT_ONCE - 1
        for caller in callers:
            caller.cancel()


@pytest.mark.parametrize("patience", [0.0, 100.0])
async def test_a_shutdown_forgets_nobody_who_is_on_the_way_in(patience: float) -> None:
    provider = FakeProvider(latency=lambda _: 1.0)
    gateway = gateway_over(provider)
    callers = flood(gateway)
    await asyncio.sleep(0)
    await gateway.shutdown(timeout=patience)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    if patience:
        assert all(isinstance(outcome, LLMResponse) for outcome in outcomes)
    else:
        assert {type(outcome) for outcome in outcomes} == {GatewayClosedError}
        assert "before this request was sent" in str(outcomes[-1])


async def test_who_leaves_outside_costs_nobody_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AT_ONCE", 1)
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        first, second, third, fourth = (asyncio.create_task(gateway.request(ask(name))) for name in "abcd")
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        third.cancel()  # it may have been called in already
        answers = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
    assert [type(answer) for answer in answers] == [
        LLMResponse,
        asyncio.CancelledError,
        asyncio.CancelledError,
        LLMResponse,
    ]
    assert provider.sent == ["a", "d"]


async def test_the_last_one_outside_leaves_while_the_gateway_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AT_ONCE", 1)
    gateway = gateway_over(FakeProvider())
    callers = [asyncio.create_task(gateway.request(ask(name))) for name in "ab"]
    await asyncio.sleep(0)
    closing = asyncio.create_task(gateway.shutdown())
    callers[1].cancel()
    await closing
    assert (await callers[0]).content == "ok"


async def test_streams_wait_for_their_turn_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AT_ONCE", 1)

    async def ask_for_pieces(gateway: LLMGateway, name: str) -> str:
        return "".join([event.text async for event in gateway.stream(ask(name)) if isinstance(event, TextDelta)])

    async with gateway_over(FakeProvider()) as gateway:
        texts = await asyncio.gather(*(ask_for_pieces(gateway, name) for name in "abc"))
    assert texts == ["ok"] * 3


async def test_the_wait_outside_counts_also_for_those_who_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AT_ONCE", 1)
    provider = FakeProvider(latency=lambda _: 1.0)
    async with gateway_over(provider, coalesce=True) as gateway:
        lane = gateway._lane(ask("first"))
        wait_outside = lane.turn

        async def turn(request: LLMRequest) -> float:
            since = await wait_outside(request)
            await asyncio.sleep(5.0)
            return since

        monkeypatch.setattr(lane, "turn", turn)
        texts = {name: f"question {name}" for name in "ab"}
        callers = [asyncio.create_task(gateway.request(ask(name, text=text))) for name, text in texts.items()]
        first, second = await asyncio.gather(*callers)
    assert first.receipt is not None
    assert second.receipt is not None
    assert (first.receipt.queue_wait, second.receipt.queue_wait) == (0.0, 5.0)


async def test_nobody_waits_at_a_door_that_is_closed() -> None:
    closed = door.Door(on_wait=lambda: None)
    closed.close("It is over.")
    with pytest.raises(GatewayClosedError, match="It is over"):
        await closed.turn()
