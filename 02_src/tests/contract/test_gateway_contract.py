"""What every gateway promises its callers; the mock keeps the promises of the real one."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings

import pytest

from fakes.provider import Recorder, ask
from fakes.stages import MODEL, MockStage, RealStage, Says, Stage
from llm_gateway import (
    AuthenticationError,
    BatchError,
    DeadlineExceededError,
    GatewayClosedError,
    GatewayError,
    InvalidRequestError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    ModelNotFoundError,
    ModelProvider,
    ProviderError,
    ProviderOverloadedError,
    ProviderUnavailableError,
    QueueFullError,
    RateLimitError,
    RequestPriority,
    RequestRejectedError,
    UnknownModelError,
)
from llm_gateway.events import RetryScheduled

HIGH, NORMAL, LOW = RequestPriority
FOREVER = 3600.0  # the latency of a call that is held until somebody ends it
ONE_SLOT = {MODEL: {"max_concurrency": 1}}
SEARCH = LLMTool(
    name="search",
    description="Search the web.",
    input_schema={"type": "object", "properties": {"query": {"type": "string"}}},
)


@pytest.fixture(params=[MockStage, RealStage], ids=["mock", "real"])
def stage(request: pytest.FixtureRequest) -> Stage:
    made: Stage = request.param()
    return made


def about(text: str, *, priority: RequestPriority = NORMAL, deadline: float | None = None) -> LLMRequest:
    """A request whose id is its prompt."""
    return ask(text, priority, text=text, deadline=deadline)


# --- answers ------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_with_usage_and_a_receipt(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"hi": [Says(text="hello", usage=(12, 3))]}) as gateway:
        response = await gateway.request(about("hi"))
    assert (response.request_id, response.content, response.tool_calls) == ("hi", "hello", None)
    assert (response.model, response.finish_reason, response.tokens_used) == (MODEL, "stop", 15)
    receipt = response.receipt
    assert receipt is not None
    assert (receipt.deployment, receipt.attempts, receipt.cached) == ("openai/gpt-4o-mini", 1, False)
    assert receipt.usage is not None
    assert (receipt.usage.input_tokens, receipt.usage.output_tokens) == (12, 3)
    assert receipt.cost_usd == pytest.approx((12 * 0.15 + 3 * 0.60) / 1e6)
    assert receipt.queue_wait >= 0
    assert receipt.provider_time > 0


async def test_a_member_of_model_provider_and_its_name_are_the_same_model(stage: Stage) -> None:
    hello = [LLMMessage(role="user", content="hi")]
    async with stage.provider(), stage.gateway() as gateway:
        answers = await gateway.batch(
            [LLMRequest(model=model, messages=hello) for model in (ModelProvider.GPT_4O_MINI, MODEL)]
        )
    assert [answer.model for answer in answers] == [MODEL, MODEL]


async def test_tool_calls_come_back_parsed_and_their_results_go_out(stage: Stage) -> None:
    script = {
        "who?": [Says(tool=("search", {"query": "who", "limit": 3}), usage=(20, 8))],
        "and?": [Says(text="they")],
    }
    question = LLMMessage(role="user", content="who?")
    async with stage.provider(), stage.gateway(script) as gateway:
        first = await gateway.request(
            LLMRequest(model=MODEL, messages=[question], tools=[SEARCH], tool_choice="search")
        )
        assert first.tool_calls is not None
        call = first.tool_calls[0]
        turns = [
            question,
            LLMMessage(role="assistant", content=first.content, tool_calls=first.tool_calls),
            LLMMessage(role="tool", content="found: they", tool_call_id=call.id),
            LLMMessage(role="user", content="and?"),
        ]
        last = await gateway.request(LLMRequest(model=MODEL, messages=turns, tools=[SEARCH]))
    assert (call.name, call.arguments) == ("search", {"query": "who", "limit": 3})
    assert call.id
    assert (first.finish_reason, first.content, first.tokens_used) == ("tool_calls", "", 28)
    assert (last.content, last.tool_calls, last.finish_reason) == ("they", None, "stop")


# --- batches ------------------------------------------------------------------------------------------------------


async def test_a_batch_keeps_the_order_of_its_requests(stage: Stage) -> None:
    script = {str(n): [Says(text=f"answer {n}", latency=0.01 * (4 - n))] for n in range(4)}
    async with stage.provider(), stage.gateway(script) as gateway:
        answers = await gateway.batch([about(str(n)) for n in range(4)])
    assert [(answer.request_id, answer.content) for answer in answers] == [(str(n), f"answer {n}") for n in range(4)]


async def test_an_empty_batch_has_no_answers(stage: Stage) -> None:
    async with stage.provider(), stage.gateway() as gateway:
        assert await gateway.batch([]) == []


async def test_errors_stand_in_their_places_if_asked_for(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"bad": [Says(status=400)]}) as gateway:
        outcomes = await gateway.batch([about("a"), about("bad"), about("b")], return_exceptions=True)
    assert isinstance(outcomes[1], RequestRejectedError)
    assert [each.request_id for each in outcomes if isinstance(each, LLMResponse)] == ["a", "b"]


async def test_a_batch_error_holds_every_outcome_and_fails_no_neighbour(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"bad": [Says(status=400)]}) as gateway:
        with pytest.raises(BatchError, match="1 of 3 requests failed; the first with RequestRejectedError") as caught:
            await gateway.batch([about("a"), about("bad"), about("b")])
    assert [each.request_id for each in caught.value.responses] == ["a", "b"]
    assert [type(each) for each in caught.value.errors] == [RequestRejectedError]
    assert caught.value.outcomes[1] is caught.value.errors[0]


async def test_a_malformed_batch_costs_no_provider_call(stage: Stage) -> None:
    async with stage.provider(), stage.gateway() as gateway:
        with pytest.raises(InvalidRequestError, match=r"LLMRequest.request_id: 'a' stands twice"):
            await gateway.batch([about("a"), about("a")])
        with pytest.raises(UnknownModelError, match="did you mean 'gpt-4o-mini'"):
            await gateway.batch([about("b"), ask("c", model="gpt-4o-mimi")])
        with pytest.raises(InvalidRequestError, match="expected an LLMRequest, got dict"):
            await gateway.request({"model": MODEL})  # type: ignore[arg-type]
    assert stage.sent == []


async def test_malformed_items_take_their_places_as_errors_and_the_others_are_answered(stage: Stage) -> None:
    batch = [about("a"), about("a"), ask("c", model="nobody")]
    async with stage.provider(), stage.gateway() as gateway:
        first, second, third = await gateway.batch(batch, return_exceptions=True)
    assert isinstance(first, LLMResponse)
    assert isinstance(second, InvalidRequestError)
    assert isinstance(third, UnknownModelError)
    assert stage.sent == ["a"]


async def test_a_slow_item_delays_no_neighbour(stage: Stage) -> None:
    async with stage.provider():
        gateway = stage.gateway({"slow": [Says(latency=FOREVER)]})
        slow = asyncio.create_task(gateway.request(about("slow")))
        quick = await asyncio.gather(*(gateway.request(about(str(n))) for n in range(5)))
        assert [answer.content for answer in quick] == ["ok"] * 5
        assert not slow.done()
        await gateway.shutdown(timeout=0)
        with pytest.raises(GatewayClosedError):
            await slow


# --- order and room -----------------------------------------------------------------------------------------------


async def test_high_goes_before_normal_before_low(stage: Stage) -> None:
    requests = [about("l", priority=LOW), about("n"), about("h", priority=HIGH), about("m")]
    async with stage.provider(), stage.gateway(models=ONE_SLOT) as gateway:
        await gateway.batch(requests)
    assert stage.sent == ["h", "n", "m", "l"]


async def test_requests_that_wait_together_leave_together(stage: Stage) -> None:
    async with stage.provider(), stage.gateway() as gateway:
        await asyncio.gather(*(gateway.request(about(str(n))) for n in range(20)))
        assert gateway.get_stats()["batches"]["sizes"] == {"20": 1}


async def test_a_full_queue_turns_requests_away_and_says_how_full_it_is(stage: Stage) -> None:
    async with stage.provider():
        gateway = stage.gateway({"held": [Says(latency=FOREVER)]}, models=ONE_SLOT, batching={"max_queue_size": 2})
        held = [asyncio.create_task(gateway.request(about("held")))]
        await stage.arrived(1)
        held += [asyncio.create_task(gateway.request(about(text))) for text in ("a", "b")]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="2 of 2 requests wait"):
            await gateway.request(about("c"))
        await gateway.shutdown(timeout=0)
        ends = await asyncio.gather(*held, return_exceptions=True)
    assert all(isinstance(end, GatewayClosedError) for end in ends)


# --- repetition ---------------------------------------------------------------------------------------------------


async def test_what_goes_away_by_itself_is_retried_with_the_providers_hint(stage: Stage) -> None:
    seen = Recorder()
    script = {"try": [Says(status=429, retry_after=0.02), Says(status=500), Says(status=503), Says(text="done")]}
    async with stage.provider(), stage.gateway(script, observers=[seen]) as gateway:
        response = await gateway.request(about("try"))
        stats = gateway.get_stats()
    assert response.content == "done"
    assert response.receipt is not None
    assert response.receipt.attempts == 4
    assert stage.sent == ["try"] * 4
    waits = [event for event in seen.events if isinstance(event, RetryScheduled)]
    assert [(event.kind, event.attempt) for event in waits] == [
        ("rate_limit", 1),
        ("unavailable", 2),
        ("unavailable", 3),
    ]
    assert 0.02 <= waits[0].wait <= 0.02 + 0.002
    assert response.receipt.queue_wait >= sum(event.wait for event in waits)
    assert (stats["attempts"], stats["retries"]) == (4, 3)
    assert stats["errors"] == {"rate_limit": 1, "unavailable": 2}


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, RateLimitError), (500, ProviderUnavailableError), (529, ProviderOverloadedError)],
)
async def test_a_retry_comes_to_an_end_with_the_last_error(
    stage: Stage, status: int, error: type[ProviderError]
) -> None:
    patience = {"max_attempts": 3, "max_throttles": 2, "base_delay": 0.001}
    async with stage.provider(), stage.gateway({"try": [Says(status=status)]}, retry=patience) as gateway:
        with pytest.raises(error) as caught:
            await gateway.request(about("try"))
    assert type(caught.value) is error
    assert (caught.value.attempts, len(stage.sent)) == (3, 3)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRejectedError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, ModelNotFoundError),
        (413, RequestRejectedError),
        (422, RequestRejectedError),
    ],
)
async def test_what_a_retry_does_not_mend_is_called_once(stage: Stage, status: int, error: type[ProviderError]) -> None:
    async with stage.provider(), stage.gateway({"try": [Says(status=status)]}) as gateway:
        with pytest.raises(error) as caught:
            await gateway.request(about("try"))
    assert stage.sent == ["try"]
    failure = caught.value
    assert type(failure) is error
    assert (failure.provider, failure.model, failure.status) == ("openai", "gpt-4o-mini", status)
    assert (failure.request_id, failure.attempts, failure.retryable) == ("try", 1, False)
    assert f"(HTTP {status})" in str(failure)
    assert "openai" in str(failure)


async def test_a_pause_that_is_asked_for_too_long_is_no_pause(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"try": [Says(status=429, retry_after=1000.0)]}) as gateway:
        with pytest.raises(RateLimitError) as caught:
            await gateway.request(about("try"))
    assert (caught.value.retry_after, len(stage.sent)) == (1000.0, 1)


# --- leaving ------------------------------------------------------------------------------------------------------


async def test_a_leaving_caller_cancels_its_own_call_alone(stage: Stage) -> None:
    script = {"leaves": [Says(latency=FOREVER)], "stays": [Says(text="stayed", latency=0.05)]}
    async with stage.provider(), stage.gateway(script) as gateway:
        stays = asyncio.create_task(gateway.request(about("stays")))
        leaves = asyncio.create_task(gateway.request(about("leaves")))
        await stage.arrived(2)
        leaves.cancel()
        assert (await stays).content == "stayed"
        with pytest.raises(asyncio.CancelledError):
            await leaves
        stats = gateway.get_stats()
    assert (stats["completed"], stats["cancelled"], stats["in_flight"]) == (1, 1, 0)


async def test_a_caller_that_leaves_the_queue_costs_no_call(stage: Stage) -> None:
    script = {"first": [Says(latency=0.05)]}
    async with stage.provider(), stage.gateway(script, models=ONE_SLOT) as gateway:
        first = asyncio.create_task(gateway.request(about("first")))
        leaves = asyncio.create_task(gateway.request(about("leaves")))
        await stage.arrived(1)
        leaves.cancel()
        await first
        await gateway.request(about("next"))
    assert stage.sent == ["first", "next"]


async def test_a_deadline_ends_the_waiting(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"slow": [Says(latency=FOREVER)]}) as gateway:
        await gateway.request(about("warm up"))
        with pytest.raises(DeadlineExceededError, match=r"within the deadline of 0.05 s; .* in the provider's hands"):
            await gateway.request(about("slow", deadline=0.05))
        assert (await gateway.request(about("after"))).content == "ok"


async def test_a_request_that_expires_in_the_queue_is_never_sent(stage: Stage) -> None:
    async with stage.provider():
        gateway = stage.gateway({"held": [Says(latency=FOREVER)]}, models=ONE_SLOT)
        held = asyncio.create_task(gateway.request(about("held")))
        await stage.arrived(1)
        with pytest.raises(DeadlineExceededError, match="waiting in the queue"):
            await gateway.request(about("late", deadline=0.01))
        await gateway.shutdown(timeout=0)
        with pytest.raises(GatewayClosedError):
            await held
    assert stage.sent == ["held"]


# --- the end ------------------------------------------------------------------------------------------------------


async def test_shutdown_drains_what_was_accepted(stage: Stage) -> None:
    script = {"a": [Says(latency=0.03)], "b": [Says(status=500), Says(text="at last")]}
    async with stage.provider():
        gateway = stage.gateway(script, models=ONE_SLOT)
        under_way = [asyncio.create_task(gateway.request(about(text))) for text in ("a", "b", "c")]
        await stage.arrived(1)
        await gateway.shutdown()
        assert [task.result().content for task in under_way] == ["ok", "at last", "ok"]


async def test_after_its_patience_shutdown_tells_every_caller_that_is_left(stage: Stage) -> None:
    async with stage.provider():
        gateway = stage.gateway({"held": [Says(latency=FOREVER)]}, models=ONE_SLOT)
        batch = asyncio.create_task(gateway.batch([about("held"), about("queued")], return_exceptions=True))
        await stage.arrived(1)
        await gateway.shutdown(timeout=0.01)
        held, queued = await batch
    assert isinstance(held, GatewayClosedError)
    assert "under way" in str(held)
    assert isinstance(queued, GatewayClosedError)
    assert "before this request was sent" in str(queued)
    assert stage.sent == ["held"]


async def test_after_shutdown_every_request_is_turned_away(stage: Stage) -> None:
    async with stage.provider():
        gateway = stage.gateway()
        await gateway.request(about("a"))
        await gateway.shutdown()
        with pytest.raises(GatewayClosedError, match="build a new LLMGateway"):
            await gateway.request(about("b"))
        with pytest.raises(GatewayClosedError):
            await gateway.batch([about("b")], return_exceptions=True)
    assert stage.sent == ["a"]


async def test_shutdown_may_be_called_twice_and_before_anything_else(stage: Stage) -> None:
    async with stage.provider():
        used, unused = stage.gateway(), stage.gateway()
        await used.request(about("a"))
        await asyncio.gather(used.shutdown(), used.shutdown())
        await used.shutdown()
        await unused.shutdown()
        for gateway in (used, unused):
            with pytest.raises(GatewayClosedError):
                await gateway.request(about("b"))
    assert stage.sent == ["a"]


async def test_leaving_the_async_with_shuts_down(stage: Stage) -> None:
    async with stage.provider():
        async with stage.gateway() as gateway:
            await gateway.request(about("a"))
        with pytest.raises(GatewayClosedError):
            await gateway.request(about("b"))


async def test_an_error_in_the_async_with_waits_for_no_answer(stage: Stage) -> None:
    asked: list[asyncio.Task[LLMResponse]] = []

    async def agents() -> None:
        async with stage.gateway({"held": [Says(latency=FOREVER)]}) as gateway:
            asked.append(asyncio.create_task(gateway.request(about("held"))))
            await stage.arrived(1)
            raise RuntimeError("an agent failed")

    async with stage.provider():
        with pytest.raises(RuntimeError, match="an agent failed"):
            await agents()
        with pytest.raises(GatewayClosedError):
            await asked[0]


# --- loops, figures -----------------------------------------------------------------------------------------------


def test_a_gateway_is_built_without_a_loop_and_serves_one_loop_after_another(stage: Stage) -> None:
    gateway = stage.gateway({"last": [Says(text="goodbye")]})

    async def ask_one(text: str, *, end: bool) -> str:
        async with stage.provider():
            response = await gateway.request(about(text))
            if end:
                await gateway.shutdown()
            return response.content

    assert asyncio.run(ask_one("first", end=False)) == "ok"
    assert asyncio.run(ask_one("last", end=True)) == "goodbye"
    assert gateway.get_stats()["completed"] == 2
    with warnings.catch_warnings():
        # Nobody could close the connections of the first loop once it was closed itself.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_another_loop_at_the_same_time_is_told_to_build_its_own_gateway(stage: Stage) -> None:
    async with stage.provider(), stage.gateway() as gateway:
        await gateway.request(about("a"))
        with pytest.raises(GatewayError, match="build an LLMGateway for each loop"):
            await asyncio.to_thread(asyncio.run, gateway.request(about("b")))


async def test_the_stats_are_json_and_add_up(stage: Stage) -> None:
    script = {"bad": [Says(status=400)], "flaky": [Says(status=500), Says()]}
    async with stage.provider(), stage.gateway(script) as gateway:
        await gateway.batch([about("a"), about("bad"), about("flaky")], return_exceptions=True)
        stats = gateway.get_stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["submitted"], stats["completed"], stats["failed"], stats["cancelled"]) == (3, 2, 1, 0)
    assert (stats["attempts"], stats["retries"]) == (4, 1) == (len(stage.sent), len(stage.sent) - 3)
    assert stats["failures"] == {"rejected": 1}
    assert stats["tokens"] == {"input": 20, "output": 10, "cache_read": 0, "cache_write": 0, "total": 30}
    assert stats["cost_usd"] == pytest.approx(2 * (10 * 0.15 + 5 * 0.60) / 1e6)
    assert stats["queued"] == {"high": 0, "normal": 0, "low": 0, "total": 0}
    assert stats["queue_wait"]["count"] == stats["provider_time"]["count"] == 3
    assert set(stats["by_model"]) == {MODEL}
