"""Typical use, for the type checker alone: `make types` reads this file, and nothing runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from pydantic import BaseModel

from llm_gateway import (
    BatchError,
    GatewayError,
    InvalidAnswerError,
    LLMGateway,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    LLMToolCall,
    MockLLMGateway,
    ModelProvider,
    ProviderError,
    QueueFullError,
    Receipt,
    RequestPriority,
    TokenUsage,
)


def a_request() -> LLMRequest:
    search = LLMTool(name="search", description="Find pages.", input_schema={"type": "object", "properties": {}})
    return LLMRequest(
        model=ModelProvider.CLAUDE_HAIKU,
        messages=[LLMMessage(role="system", content="Be short."), LLMMessage(role="user", content="Hello")],
        tools=[search],
        priority=RequestPriority.HIGH,
        agent="guide",
        deadline=20,
        metadata={"page": 3},
    )


def a_request_to_a_model_of_the_configuration() -> LLMRequest:
    return LLMRequest(model="house", messages=[LLMMessage(role="user", content=[{"type": "text", "text": "Hello"}])])


async def asks_once(gateway: LLMGateway) -> str:
    try:
        response = await gateway.request(a_request())
    except QueueFullError as error:
        assert_type(error.retry_after, float | None)
        return f"{error.depth} wait"
    except ProviderError as error:
        assert_type(error.status, int | None)
        return error.kind
    assert_type(response, LLMResponse)
    assert_type(response.tool_calls, list[LLMToolCall] | None)
    assert_type(response.receipt, Receipt | None)
    if response.receipt is not None:
        assert_type(response.receipt.cost_usd, float | None)
        assert_type(response.receipt.usage, TokenUsage | None)
    return response.content


async def asks_many(gateway: LLMGateway, requests: Sequence[LLMRequest]) -> list[str]:
    try:
        responses = await gateway.batch(requests)
    except BatchError as error:
        assert_type(error.responses, list[LLMResponse])
        return [str(each) for each in error.errors]
    assert_type(responses, list[LLMResponse])
    return [response.content for response in responses]


async def asks_many_and_looks_at_each(gateway: LLMGateway, requests: Sequence[LLMRequest]) -> list[str]:
    outcomes = await gateway.batch(requests, return_exceptions=True)
    assert_type(outcomes, list[LLMResponse | BaseException])
    return [outcome.content if isinstance(outcome, LLMResponse) else str(outcome) for outcome in outcomes]


class Verdict(BaseModel):
    good: bool


async def asks_in_a_format(gateway: LLMGateway, request: LLMRequest) -> Verdict | None:
    try:
        response = await gateway.request(request.model_copy(update={"response_format": Verdict}))
    except InvalidAnswerError as error:
        assert_type(error.response, LLMResponse | None)
        return None
    return response.parsed if isinstance(response.parsed, Verdict) else None


async def lives_and_ends() -> None:
    async with LLMGateway({"batching": {"max_batch_size": 8}}) as gateway:
        assert_type(gateway, LLMGateway)
        await gateway.request(a_request())
        assert_type(gateway.log_path, Path | None)
    by_hand = LLMGateway()
    await by_hand.shutdown(timeout=5)


async def tests_with_the_mock() -> None:
    async with MockLLMGateway(responses={"default": {}}, seed=7, skip_waits=True) as gateway:
        assert_type(gateway, MockLLMGateway)
        await asks_once(gateway)
        gateway.assert_called(times=1, model=ModelProvider.CLAUDE_HAIKU, agent="guide")
        assert_type(gateway.last_call.attempt, int)


def what_went_wrong(error: GatewayError) -> tuple[str, bool]:
    return error.kind, error.retryable
