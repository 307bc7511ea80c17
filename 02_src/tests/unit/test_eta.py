"""How long a request would wait, and what waits ahead."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, unavailable
from llm_gateway import GatewayClosedError, LLMGateway, QueueFullError, RequestPriority, UnknownModelError

HIGH, NORMAL, LOW = RequestPriority


async def warmed(gateway: LLMGateway) -> None:
    """Let the gateway learn how long a call takes."""
    await gateway.request(ask("warm"))


def flood(
    gateway: LLMGateway, count: int, priority: RequestPriority = NORMAL, **fields: Any
) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(gateway.request(ask(f"{priority} {n}", priority, **fields))) for n in range(count)]


async def left(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_an_idle_gateway_sends_at_once() -> None:
    async with gateway_over(FakeProvider()) as gateway:
        assert gateway.eta(ask("a")) == 0.0
        await warmed(gateway)
        assert gateway.eta(ask("a")) == 0.0


@pytest.mark.parametrize(("ahead", "slots"), [(4, 1), (40, 4), (40, 20)])
async def test_slots_bound_the_wait_by_the_time_that_calls_take(ahead: int, slots: int) -> None:
    provider = FakeProvider(latency=lambda _: 2.0)
    async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": slots}}) as gateway:
        await warmed(gateway)
        tasks = flood(gateway, ahead)
        await asyncio.sleep(0.5)
        told, asked = gateway.eta(ask("a")), asyncio.get_running_loop().time()
        await gateway.request(ask("a"))
        waited = provider.ledger[-1].began - asked
        assert told == pytest.approx(waited, abs=2.0)
        await asyncio.gather(*tasks)


async def test_what_waits_behind_counts_for_nothing() -> None:
    async with gateway_over(FakeProvider(), models={"gpt-4o-mini": {"max_concurrency": 1}}) as gateway:
        await warmed(gateway)
        tasks = flood(gateway, 10, LOW) + flood(gateway, 5, NORMAL)
        await asyncio.sleep(0.5)
        high, normal, low = (gateway.eta(ask("a", each)) for each in RequestPriority)
        with gateway.on_behalf_of(ask("user", HIGH)):
            assert gateway.eta(ask("a")) == high
        assert high == pytest.approx(0.5)
        assert high < normal < low
        assert [normal, low] == pytest.approx([4.5, 14.5])
        await left(*tasks)


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        ({"rpm": 60}, {}),
        ({"tpm": 6000, "charge": "admission_max"}, {"max_tokens": 100}),
        ({"otpm": 6000, "charge": "admission_max"}, {"max_tokens": 100}),
    ],
    ids=["requests", "tokens", "output"],
)
async def test_a_limit_bounds_the_wait_by_what_waits_ahead_and_its_rate(
    limits: dict[str, object], fields: dict[str, int]
) -> None:
    provider = FakeProvider(latency=lambda _: 0.0)
    models = {"gpt-4o-mini": {"limits": {"safety": 1, **limits}}}
    async with gateway_over(provider, models=models) as gateway:
        tasks = flood(gateway, 20, NORMAL, **fields)
        await asyncio.sleep(0.5)
        told, asked = gateway.eta(ask("a", **fields)), asyncio.get_running_loop().time()  # type: ignore[arg-type]
        await gateway.request(ask("a", **fields))  # type: ignore[arg-type]
        assert told == pytest.approx(provider.ledger[-1].began - asked, rel=0.1)
        await asyncio.gather(*tasks)


async def test_a_gate_is_waited_for() -> None:
    provider = FakeProvider(script=[rate_limited(30.0)], latency=lambda _: 0.0)
    async with gateway_over(provider) as gateway:
        tasks = flood(gateway, 1)
        await asyncio.sleep(10.0)
        assert gateway.eta(ask("a")) == pytest.approx(20.0)
        await asyncio.gather(*tasks)


async def test_an_open_breaker_is_waited_for_and_a_probe_has_no_end_that_is_known() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await asyncio.gather(*flood(gateway, 20), return_exceptions=True)
        assert gateway.eta(ask("a")) == pytest.approx(15.0)
        probe = asyncio.create_task(gateway.request(ask("probe")))
        await asyncio.sleep(15.5)
        assert gateway.eta(ask("a")) == math.inf
        await asyncio.wait([probe])


async def test_of_several_deployments_the_soonest_counts_and_the_load_is_shared() -> None:
    provider = FakeProvider(by={"ollama/gpt-4o-mini": rate_limited(100.0)})
    models = {"gpt-4o-mini": {"max_concurrency": 1, "deployments": [{"provider": "ollama"}]}}
    async with gateway_over(provider, models=models) as gateway:
        await asyncio.gather(gateway.request(ask("a")), gateway.request(ask("b")))
        assert gateway.eta(ask("c")) == 0.0
        tasks = flood(gateway, 5)
        await asyncio.sleep(0.5)
        assert 0.5 <= gateway.eta(ask("c")) <= 4.5
        await left(*tasks)


async def test_a_full_queue_says_when_to_come_again_if_that_is_known() -> None:
    provider = FakeProvider(latency=lambda _: 2.0)
    config: dict[str, Any] = {"models": {"gpt-4o-mini": {"max_concurrency": 1}}, "batching": {"max_queue_size": 3}}
    async with gateway_over(provider, **config) as gateway:
        tasks = flood(gateway, 1)
        await asyncio.sleep(0.5)
        tasks += flood(gateway, 3, text="later")
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="Try again later") as caught:
            await gateway.request(ask("a"))
        assert caught.value.retry_after is None  # nothing was answered yet
        await asyncio.sleep(2.0)
        tasks += flood(gateway, 1, text="last")
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError) as caught:
            await gateway.request(ask("a"))
        assert caught.value.retry_after == pytest.approx(7.0)
        await left(*tasks)


async def test_a_full_queue_before_a_probe_that_is_under_way_gives_no_hint() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with gateway_over(provider, retry={"max_attempts": 1}, batching={"max_queue_size": 20}) as gateway:
        await asyncio.gather(*flood(gateway, 20), return_exceptions=True)
        tasks = flood(gateway, 20)
        await asyncio.sleep(15.5)
        tasks += flood(gateway, 1, text="in the place of the probe")
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="Try again later") as caught:
            await gateway.request(ask("a"))
        assert caught.value.retry_after is None
        await left(*tasks)


async def test_it_submits_nothing_and_raises_what_a_request_would() -> None:
    provider = FakeProvider()
    gateway = gateway_over(provider)
    assert gateway.eta(ask("a")) == 0.0
    assert (provider.ledger, set(gateway.get_stats()["queued"].values())) == ([], {0})
    with pytest.raises(UnknownModelError):
        gateway.eta(ask("a", model="nobody"))
    await gateway.shutdown()
    with pytest.raises(GatewayClosedError):
        gateway.eta(ask("a"))


async def test_statistics_list_those_that_wait_in_the_order_in_which_they_go() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 1}}) as gateway:
        asked = [
            ask("sent", HIGH),
            ask("l", LOW),
            ask("a1", agent="a"),
            ask("a2", agent="a"),
            ask("b1", agent="b"),
            ask("h", HIGH),
        ]
        tasks = []
        for each in asked:
            tasks.append(asyncio.create_task(gateway.request(each)))
            await asyncio.sleep(0.1)
        waiting = gateway.get_stats()["waiting"]
        await asyncio.gather(*tasks)
    assert [each["request_id"] for each in waiting] == provider.sent[1:] == ["h", "a1", "b1", "a2", "l"]
    assert [each["position"] for each in waiting] == [1, 2, 3, 4, 5]
    assert waiting[1] == {
        "request_id": "a1",
        "model": "gpt-4o-mini",
        "priority": "normal",
        "agent": "a",
        "position": 2,
        "waited": pytest.approx(0.4),
    }
