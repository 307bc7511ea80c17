"""Identical requests at temperature 0 that are under way at the same time share one call, where that is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.provider import FakeProvider, Outcome, Recorder, ask, gateway_over, rate_limited, refused_key, unavailable
from llm_gateway import (
    DeadlineExceededError,
    GatewayClosedError,
    LLMGateway,
    LLMRequest,
    LLMTool,
    ModelProvider,
    ProviderUnavailableError,
    QueueFullError,
    RequestPriority,
)
from llm_gateway.coalescing import fingerprint
from llm_gateway.events import RequestDone

HIGH, NORMAL, LOW = RequestPriority
ONE_SLOT = {"gpt-4o-mini": {"max_concurrency": 1}}


def sharing(provider: FakeProvider, **config: Any) -> LLMGateway:
    return gateway_over(provider, coalesce=True, **config)


def asking(gateway: LLMGateway, *names: str, **fields: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(gateway.request(ask(name, **fields))) for name in names]


def test_only_what_changes_the_answer_tells_requests_apart() -> None:
    same = [
        ask("a"),
        ask("b", HIGH, deadline=1.0, agent="x", metadata={"k": 1}),
        ask("c", model=ModelProvider.GPT_4O_MINI),
    ]
    tool = LLMTool(name="t", description="d", input_schema={"type": "object"})
    others = [
        ask("d", text="other"),
        ask("e", model="claude-haiku"),
        ask("f", max_tokens=5),
        ask("g", stop=["x"]),
        ask("h", tools=[tool]),
        ask("i", tools=[tool], tool_choice="t"),
        ask("j", response_format={"type": "object"}),
    ]
    assert len({fingerprint(each) for each in same}) == 1
    assert len({fingerprint(each) for each in [*same, *others]}) == 8


async def test_one_call_answers_all_and_its_cost_stands_in_one_receipt() -> None:
    provider = FakeProvider()
    async with sharing(provider) as gateway:
        first, second, third = await asyncio.gather(*asking(gateway, "a", "b", "c"))
    assert provider.sent == ["a"]
    assert [each.request_id for each in (first, second, third)] == ["a", "b", "c"]
    assert first.receipt.cost_usd > 0
    assert (first.receipt.coalesced, first.receipt.attempts) == (False, 1)
    for other in (second, third):
        assert (other.receipt.coalesced, other.receipt.cost_usd, other.receipt.attempts) == (True, 0.0, 0)
        assert other.content == "ok"


async def test_without_the_setting_and_above_temperature_zero_each_has_its_own_call() -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        await asyncio.gather(*asking(gateway, "a", "b"))
    async with sharing(provider) as gateway:
        await asyncio.gather(*asking(gateway, "c", "d", temperature=0.1))
        await asyncio.gather(*asking(gateway, "e"))
        await asyncio.gather(*asking(gateway, "f"))  # the one before is answered
    assert provider.sent == ["a", "b", "c", "d", "e", "f"]


async def test_the_first_caller_may_leave_and_the_others_are_answered() -> None:
    provider = FakeProvider()
    seen = Recorder()
    async with sharing(provider, observers=[seen]) as gateway:
        first, second, third = asking(gateway, "a", "b", "c")
        await asyncio.sleep(0.5)
        first.cancel()
        answered = await asyncio.gather(second, third)
        assert first.cancelled()
    assert [each.request_id for each in answered] == ["b", "c"]
    assert [each.receipt.coalesced for each in answered] == [False, True]
    assert sum(each.receipt.cost_usd for each in answered) == pytest.approx((10 * 0.15 + 5 * 0.60) / 1e6)
    assert [event.outcome for event in seen.events if isinstance(event, RequestDone)] == ["ok"]


@pytest.mark.parametrize("slots", [1, 2], ids=["waiting", "under-way"])
async def test_the_last_caller_that_leaves_takes_the_call_with_it(slots: int) -> None:
    provider = FakeProvider(latency=lambda _: 10.0)
    models = {"gpt-4o-mini": {"max_concurrency": slots}}
    async with sharing(provider, models=models) as gateway:
        (busy,) = asking(gateway, "busy", text="other")
        await asyncio.sleep(0.1)
        callers = asking(gateway, "a", "b")
        await asyncio.sleep(0.5)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        await asyncio.sleep(0)
        assert (provider.under_way, set(gateway.get_stats()["queued"].values())) == (1, {0})
        (again,) = asking(gateway, "again")  # joins nothing that was cancelled
        await busy
        assert (await again).content == "ok"


async def test_a_high_request_that_joins_a_low_one_lifts_it() -> None:
    provider = FakeProvider()
    async with sharing(provider, models=ONE_SLOT) as gateway:
        requests = [ask("busy", text="busy"), ask("n", NORMAL, text="n"), ask("low", LOW)]
        tasks = [asyncio.create_task(gateway.request(each)) for each in requests]
        await asyncio.sleep(0.5)
        tasks += asking(gateway, "high", priority=HIGH)
        await asyncio.gather(*tasks)
    assert provider.sent == ["busy", "low", "n"]


async def test_a_low_request_that_joins_a_high_one_does_not_lower_it() -> None:
    provider = FakeProvider()
    async with sharing(provider, models=ONE_SLOT) as gateway:
        requests = [ask("busy", text="busy"), ask("n", NORMAL, text="n"), ask("high", HIGH), ask("low", LOW)]
        await asyncio.gather(*(gateway.request(each) for each in requests))
    assert provider.sent == ["high", "busy", "n"]


async def test_a_call_under_way_that_a_high_request_joined_is_repeated_as_high() -> None:
    provider = FakeProvider(script=[unavailable()], latency=lambda _: 3.0)
    async with sharing(provider, models=ONE_SLOT) as gateway:
        low = asking(gateway, "low", priority=LOW)
        await asyncio.sleep(0.5)
        high = asking(gateway, "high", priority=HIGH)
        normal = [asyncio.create_task(gateway.request(ask(f"n{n}", text=str(n)))) for n in range(3)]
        await asyncio.gather(*low, *high, *normal)
    assert provider.sent == ["low", "n0", "low", "n1", "n2"]


async def test_each_callers_deadline_ends_its_own_wait_alone() -> None:
    provider = FakeProvider(latency=lambda _: 2.0)
    async with sharing(provider) as gateway:
        (first,) = asking(gateway, "a", deadline=1.0)
        await asyncio.sleep(0.5)
        (second,) = asking(gateway, "b", deadline=5.0)
        with pytest.raises(DeadlineExceededError, match="deadline of 1 s; the request was in the provider's hands"):
            await first
        assert asyncio.get_running_loop().time() == 1.0
        response = await second
    assert response.receipt.cost_usd > 0
    assert len(provider.ledger) == 1


async def test_the_deadline_of_the_last_caller_cancels_the_call() -> None:
    provider = FakeProvider(latency=lambda _: 9.0)
    async with sharing(provider) as gateway:
        outcomes = await asyncio.gather(*asking(gateway, "a", "b", deadline=1.0), return_exceptions=True)
        assert [type(each) for each in outcomes] == [DeadlineExceededError] * 2
        await asyncio.sleep(0)
        assert provider.under_way == 0


async def test_the_error_of_the_last_attempt_is_the_cause_of_a_deadline() -> None:
    provider = FakeProvider(script=[unavailable(retry_after=50.0)])
    async with sharing(provider) as gateway:
        with pytest.raises(DeadlineExceededError, match="pausing before attempt 2") as caught:
            await gateway.request(ask("a", deadline=5.0))
    assert isinstance(caught.value.__cause__, ProviderUnavailableError)


async def test_an_error_reaches_every_caller() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with sharing(provider, retry={"max_attempts": 2}) as gateway:
        outcomes = await asyncio.gather(*asking(gateway, "a", "b", "c"), return_exceptions=True)
    assert [type(each) for each in outcomes] == [ProviderUnavailableError] * 3
    assert len(provider.ledger) == 2


async def test_a_timeout_that_is_a_bug_of_the_client_is_no_deadline(caplog: pytest.LogCaptureFixture) -> None:
    provider = FakeProvider(script=[TimeoutError("a bug")])
    async with sharing(provider) as gateway:
        with pytest.raises(TimeoutError, match="a bug"):
            await gateway.request(ask("a", deadline=50.0))
    assert "a call of the gateway met a bug" in caplog.text


async def test_a_shared_request_falls_back_and_can_be_joined_there() -> None:
    provider = FakeProvider(by={"openai/gpt-4o-mini": refused_key()})
    async with sharing(provider, models={"gpt-4o-mini": {"fallbacks": ["claude-haiku"]}}) as gateway:
        (first,) = asking(gateway, "a", priority=LOW)
        await asyncio.sleep(1.5)
        (second,) = asking(gateway, "b", priority=HIGH)
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second).model == "claude-haiku"
    assert len(provider.ledger) == 2


async def test_what_finds_no_room_leaves_nothing_to_join() -> None:
    provider = FakeProvider()
    async with sharing(provider, models=ONE_SLOT, batching={"max_queue_size": 1}) as gateway:
        waiting = [asyncio.create_task(gateway.request(ask(str(n), text=str(n)))) for n in range(2)]
        await asyncio.sleep(0.1)
        waiting += [asyncio.create_task(gateway.request(ask("2", text="2")))]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError):
            await gateway.request(ask("a"))
        joined = await gateway.request(ask("j", text="0" if provider.sent == ["0"] else "1"))
        assert joined.receipt is not None
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await gateway.request(ask("b"))).content == "ok"


async def test_shutdown_settles_every_caller_of_a_shared_call() -> None:
    provider = FakeProvider(latency=lambda _: 100.0)
    gateway = sharing(provider)
    callers = asking(gateway, "a", "b", "c")
    await asyncio.sleep(1.0)
    await gateway.shutdown(timeout=1.0)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(each) for each in outcomes] == [GatewayClosedError] * 3


async def test_a_rate_limit_in_between_changes_nothing_for_those_who_share() -> None:
    provider = FakeProvider(script=[rate_limited(5.0)])
    async with sharing(provider) as gateway:
        await asyncio.gather(*asking(gateway, "a", "b"))
    assert provider.sent == ["a", "a"]


async def test_a_call_that_asks_its_own_question_does_not_wait_for_itself() -> None:
    async def work(request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            return "saw " + (await gateway.request(ask("inner"))).content
        return None

    gateway = sharing(FakeProvider(work=work), models=ONE_SLOT)
    async with gateway:
        assert (await gateway.request(ask("outer"))).content == "saw ok"


async def test_a_call_that_joins_what_waits_for_its_own_slot_lends_it() -> None:
    async def work(request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await asyncio.sleep(1.0)
            return "saw " + (await gateway.request(ask("inner", text="same"))).content
        return None

    provider = FakeProvider(work=work)
    gateway = sharing(provider, models=ONE_SLOT)
    async with gateway:
        outer, same = asking(gateway, "outer", text="outer") + asking(gateway, "waits", text="same")
        assert (await outer).content == "saw ok"
        assert (await same).content == "ok"
    assert provider.sent == ["outer", "waits"]
