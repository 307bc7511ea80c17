"""Requests asked inside other requests: what they inherit, and why they never wait for those who wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fakes.provider import FakeProvider, Outcome, Recorder, ask, gateway_over, refused_key, unavailable
from llm_gateway import DeadlineExceededError, LLMGateway, LLMRequest, LLMResponse, RequestPriority
from llm_gateway.events import RequestDone, RequestQueued

HIGH, NORMAL, LOW = RequestPriority
ONE_SLOT = {"gpt-4o-mini": {"max_concurrency": 1}}
TWO_MODELS = ONE_SLOT | {"claude-haiku": {"max_concurrency": 1}}
Work = Callable[[LLMGateway, LLMRequest], Awaitable[Outcome | None]]


def agents(work: Work, *, observers: list[Recorder] | None = None, **config: Any) -> tuple[LLMGateway, FakeProvider]:
    """A gateway whose models are agents: they work inside their calls, and may ask the gateway themselves."""
    provider = FakeProvider(work=lambda request: work(gateway, request))
    config = {"models": ONE_SLOT} | config
    gateway = gateway_over(provider, observers=observers or [], **config)
    return gateway, provider


def inner(request: LLMRequest) -> bool:
    return request.request_id.startswith("inner")


# --- what is inherited ------------------------------------------------------------------------------------------------


async def test_a_request_asked_inside_a_call_inherits_its_class_and_its_agent() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await gateway.request(ask("inner"))
            await gateway.request(ask("inner own", LOW, agent="b"))
            await gateway.batch([ask("inner batch")])
        return None

    seen = Recorder()
    gateway, _ = agents(work, observers=[seen])
    async with gateway:
        await gateway.request(ask("outer", HIGH, agent="a"))
    done = {e.request_id: (e.priority, e.agent) for e in seen.events if isinstance(e, RequestDone)}
    assert done == {"outer": (HIGH, "a"), "inner": (HIGH, "a"), "inner own": (LOW, "b"), "inner batch": (HIGH, "a")}


async def test_requests_on_behalf_of_another_inherit_across_tasks_and_only_inside_the_block() -> None:
    seen = Recorder()
    async with gateway_over(FakeProvider(), observers=[seen]) as gateway:
        with gateway.on_behalf_of(ask("user", HIGH, agent="a")):
            later = asyncio.create_task(gateway.request(ask("in a task")))
            await asyncio.gather(gateway.request(ask("gathered")), gateway.batch([ask("batched")]))
            with gateway.on_behalf_of(ask("other", LOW, agent="b")):
                await gateway.request(ask("innermost"))
            await gateway.request(ask("own", NORMAL, agent="c"))
        await gateway.request(ask("after"))
        await later
    done = {e.request_id: (e.priority, e.agent) for e in seen.events if isinstance(e, RequestDone)}
    assert done == {
        "in a task": (HIGH, "a"),
        "gathered": (HIGH, "a"),
        "batched": (HIGH, "a"),
        "innermost": (LOW, "b"),
        "own": (NORMAL, "c"),
        "after": (NORMAL, None),
    }


async def test_concurrent_users_do_not_inherit_from_each_other() -> None:
    seen = Recorder()

    async def user(gateway: LLMGateway, name: str, priority: RequestPriority) -> None:
        with gateway.on_behalf_of(ask(f"user {name}", priority, agent=name)):
            for n in range(3):
                await gateway.request(ask(f"{name}{n}"))

    async with gateway_over(FakeProvider(), observers=[seen]) as gateway:
        await asyncio.gather(user(gateway, "a", HIGH), user(gateway, "b", LOW))
    done = [event for event in seen.events if isinstance(event, RequestDone)]
    assert {(event.request_id[0], event.agent, event.priority) for event in done} == {("a", "a", HIGH), ("b", "b", LOW)}


async def test_items_of_a_batch_wait_for_room_in_the_class_that_they_inherit() -> None:
    seen = Recorder()
    provider = FakeProvider()
    async with gateway_over(provider, observers=[seen], models=ONE_SLOT, batching={"max_queue_size": 4}) as gateway:
        normal = asyncio.create_task(gateway.batch([ask(f"n{n}") for n in range(6)]))
        await asyncio.sleep(0.5)
        with gateway.on_behalf_of(ask("user", HIGH)):
            await gateway.batch([ask("h0"), ask("h1")])
        assert asyncio.get_running_loop().time() == 3.0
        await normal
    queued = [event.request_id for event in seen.events if isinstance(event, RequestQueued)]
    assert queued.index("h1") < queued.index("n3")


async def test_a_request_that_joins_nothing_is_of_nobodys_call_once_that_call_ended() -> None:
    tasks: list[asyncio.Task[LLMResponse]] = []

    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        async def later() -> LLMResponse:
            await asyncio.sleep(0.5)
            return await gateway.request(ask("inner"))

        if request.request_id == "outer":
            tasks.append(asyncio.create_task(later()))
        return None

    gateway, provider = agents(work)
    async with gateway:
        await asyncio.gather(gateway.request(ask("outer")), gateway.request(ask("next")))
        await tasks[0]
    assert [entry.began for entry in provider.ledger] == [0.0, 1.0, 2.0]  # it waited for the slot like everybody


# --- who waits for whom -----------------------------------------------------------------------------------------------


async def deep(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
    """An agent that asks itself, five calls deep."""
    depth = int(request.request_id)
    return f"{depth}{(await gateway.request(ask(str(depth - 1)))).content}" if depth else None


async def test_nested_requests_finish_at_concurrency_one_however_deep() -> None:
    gateway, provider = agents(deep)
    async with gateway:
        assert (await gateway.request(ask("5"))).content == "54321ok"
    assert provider.most_under_way == 6


async def test_two_models_that_ask_each_other_finish_at_concurrency_one() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        depth, model = int(request.request_id[1]), request.model
        other = "claude-haiku" if model == "gpt-4o-mini" else "gpt-4o-mini"
        if not depth:
            return None
        return (await gateway.request(ask(f"{request.request_id[0]}{depth - 1}", model=other))).content

    gateway, provider = agents(work, models=TWO_MODELS)
    async with gateway:
        # Each holds the slot that the other one's nested request would need.
        asked = [ask("a3"), ask("b3", model="claude-haiku"), ask("c3"), ask("d3", model="claude-haiku")]
        responses = await asyncio.gather(*(gateway.request(each) for each in asked))
    assert [each.content for each in responses] == ["ok"] * 4
    assert len(provider.ledger) == 16


async def test_calls_that_do_not_wait_never_outnumber_the_slots() -> None:
    working = 0
    most = 0

    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        nonlocal working, most
        if not inner(request):
            await gateway.batch([ask(f"inner {request.request_id} {n}") for n in range(10)])
            return None
        working += 1
        most = max(most, working)
        await asyncio.sleep(1.0)
        working -= 1
        return None

    gateway, provider = agents(work, models={"gpt-4o-mini": {"max_concurrency": 3}})
    async with gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(5)))
    assert most == 3
    assert len(provider.ledger) == 55


async def test_a_nested_request_goes_by_its_class_where_a_slot_is_free_for_everybody() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await gateway.batch([ask(f"inner{n}", model="claude-haiku") for n in range(4)])
        return None

    gateway, provider = agents(work, models=TWO_MODELS)
    async with gateway:
        outer = asyncio.create_task(gateway.request(ask("outer", LOW)))
        await asyncio.sleep(1.5)
        user = asyncio.create_task(gateway.request(ask("user", HIGH, model="claude-haiku")))
        await asyncio.gather(outer, user)
    assert provider.sent == ["outer", "inner0", "user", "inner1", "inner2", "inner3"]


async def test_a_nested_request_is_retried_at_concurrency_one() -> None:
    failures = iter([unavailable(), unavailable()])

    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if inner(request):
            return next(failures, None)
        first, second = await asyncio.gather(gateway.request(ask("inner1")), gateway.request(ask("inner2")))
        return f"{first.content} {second.content}"

    gateway, provider = agents(work)
    async with gateway:
        assert (await gateway.request(ask("outer"))).content == "ok ok"
    assert len(provider.ledger) == 5


async def test_a_nested_request_that_pauses_before_a_retry_can_be_left() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if inner(request):
            return unavailable(retry_after=20.0)
        with pytest.raises(DeadlineExceededError, match="pausing"):
            await gateway.request(ask("inner", deadline=5.0))
        return "gave up"

    gateway, _ = agents(work)
    async with gateway:
        assert (await gateway.request(ask("outer"))).content == "gave up"
        assert set(gateway.get_stats()["queued"].values()) == {0}


async def test_a_nested_request_falls_back_to_a_model_that_is_busy_with_its_parents() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            return (await gateway.request(ask("inner"))).content
        return None

    gateway, provider = agents(work, models=TWO_MODELS | {"gpt-4o-mini": {"fallbacks": ["claude-haiku"]}})
    provider.by["openai/gpt-4o-mini"] = refused_key()
    provider.by["anthropic/claude-haiku-5-5"] = "from haiku"
    async with gateway:
        response = await gateway.request(ask("outer", model="claude-haiku"))
    assert response.content == "from haiku"
    assert provider.asked == ["anthropic/claude-haiku-5-5", "openai/gpt-4o-mini", "anthropic/claude-haiku-5-5"]


async def test_a_nested_request_whose_model_rests_falls_back_and_one_that_cannot_is_refused() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            return (await gateway.request(ask("inner"))).model
        return None

    models = TWO_MODELS | {"gpt-4o-mini": {"fallbacks": ["claude-haiku"]}}
    gateway, provider = agents(work, models=models, retry={"max_attempts": 1})
    async with gateway:
        provider.by["openai/gpt-4o-mini"] = unavailable()
        await gateway.batch([ask(f"trip {n}") for n in range(20)])
        assert (await gateway.request(ask("outer", model="claude-haiku"))).content == "claude-haiku"
        assert set(gateway.get_stats()["queued"].values()) == {0}


async def test_a_parent_that_is_cancelled_takes_its_nested_requests_with_it() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if inner(request):
            await asyncio.sleep(100.0)
        elif request.request_id == "outer":
            await gateway.batch([ask("inner sent"), ask("inner waiting")])
        return None

    gateway, provider = agents(work)
    async with gateway:
        outer = asyncio.create_task(gateway.request(ask("outer")))
        await asyncio.sleep(5.0)
        assert provider.under_way == 2
        outer.cancel()
        await asyncio.wait([outer])
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        assert (provider.under_way, gateway.get_stats()["in_flight"]) == (0, 0)
        assert (await gateway.request(ask("next"))).content == "ok"
    assert provider.sent == ["outer", "inner sent", "next"]


async def test_a_nested_batch_does_not_wait_for_room_behind_those_that_wait_for_its_parent() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await asyncio.sleep(0.5)
            await gateway.batch([ask(f"inner{n}") for n in range(5)])
        return None

    gateway, provider = agents(work, batching={"max_queue_size": 2})
    async with gateway:
        outer = asyncio.create_task(gateway.request(ask("outer")))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(gateway.request(ask(f"o{n}"))) for n in range(2)]
        await outer
        await asyncio.gather(*others)
    assert provider.sent[1:6] == [f"inner{n}" for n in range(5)]


async def test_shutdown_cuts_off_a_parent_and_its_nested_request() -> None:
    async def work(gateway: LLMGateway, request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await gateway.request(ask("inner"))
        await asyncio.sleep(100.0)
        return None

    gateway, provider = agents(work)
    outer = asyncio.create_task(gateway.request(ask("outer")))
    await asyncio.sleep(5.0)
    await gateway.shutdown(timeout=1.0)
    await asyncio.wait([outer])
    assert outer.exception() is not None
    assert provider.under_way == 0
