"""The records of the contract: fields, defaults, positions, and one sentence for each kind of bad input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from llm_gateway import (
    InvalidRequestError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    LLMToolCall,
    ModelProvider,
    Receipt,
    RequestPriority,
    TokenUsage,
)

HELLO = LLMMessage(role="user", content="hello")


def built(record: Any, *values: Any, **fields: Any) -> Any:
    """Build a record by position; type checkers see the keyword signature alone, each in its own words."""
    return record(*values, **fields)


def test_enums_have_the_values_of_the_contract() -> None:
    assert [each.value for each in ModelProvider] == [
        "claude-haiku",
        "claude-sonnet",
        "claude-opus",
        "gpt-4o-mini",
        "local-llama",
    ]
    assert {each.name: each.value for each in RequestPriority} == {"HIGH": 1, "NORMAL": 2, "LOW": 3}


def test_a_request_has_the_defaults_of_the_contract_and_an_id_of_its_own() -> None:
    request = LLMRequest(model=ModelProvider.CLAUDE_HAIKU, messages=[HELLO])
    assert (request.tools, request.priority, request.temperature, request.max_tokens) == (
        None,
        RequestPriority.NORMAL,
        0.0,
        None,
    )
    assert request.request_id
    assert request.request_id != LLMRequest(model="m", messages=[HELLO]).request_id


def test_fields_can_be_given_by_position_in_the_order_of_the_contract() -> None:
    assert built(LLMMessage, "user", "hello") == HELLO
    tool = built(LLMTool, "search", "finds", {"type": "object"})
    request = built(LLMRequest, "gpt-4o-mini", [HELLO], [tool], "id", RequestPriority.LOW, 0.5, 10)
    assert (request.request_id, request.priority, request.temperature, request.max_tokens) == (
        "id",
        RequestPriority.LOW,
        0.5,
        10,
    )
    response = built(LLMResponse, "id", "text", None, "gpt-4o-mini", 12)
    assert (response.model, response.tokens_used, response.receipt) == ("gpt-4o-mini", 12, None)
    with pytest.raises(TypeError, match="takes 4 values by position, 5 were given"):
        built(LLMMessage, "user", "a", None, None, "too many")
    with pytest.raises(TypeError, match="got 'role' by position and by name"):
        built(LLMMessage, "user", role="user")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": []}, "LLMRequest.messages: empty; give at least 1."),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "LLMRequest.messages[0].role: 'robot' is not one of 'system', 'user', 'assistant' or 'tool'.",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "LLMRequest.messages[0].tool_call_id: missing; a message of role 'tool' names the call it answers.",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "name": "f"}]}]},
            "LLMRequest.messages[0].tool_calls: only a message of role 'assistant' has them, this one is 'user'.",
        ),
        ({"max_tokens": -1}, "LLMRequest.max_tokens: -1 is wrong: it should be greater than or equal to 1."),
        ({"temperature": 2.5}, "LLMRequest.temperature: 2.5 is wrong: it should be less than or equal to 2."),
        ({"temperature": float("nan")}, "LLMRequest.temperature: nan is wrong: it should be a finite number."),
        ({"deadline": 0}, "LLMRequest.deadline: 0 is wrong: it should be greater than 0."),
        ({"priority": 9}, "LLMRequest.priority: 9 is not one of 1, 2 or 3."),
        ({"temprature": 1}, "LLMRequest.temprature: unknown; did you mean 'temperature'?"),
        ({"request_id": ""}, "LLMRequest.request_id: empty; give at least 1."),
        (
            {"tools": [{"name": "f", "description": "d"}]},
            "LLMRequest.tools[0].input_schema: missing; it has no default.",
        ),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": {}}]},
            (
                "LLMRequest.tools[0].input_schema: {} is not the schema of an object; a tool without arguments has "
                "{'type': 'object', 'properties': {}}."
            ),
        ),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}] * 2},
            "LLMRequest.tools: two tools are named 'f'; give each its own name.",
        ),
        (
            {"tool_choice": "f"},
            "LLMRequest.tool_choice: 'f' is none of 'auto', 'any', 'none' and the names of the tools [].",
        ),
    ],
)
def test_bad_input_is_one_sentence_with_field_value_and_remedy(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        LLMRequest(**{"model": "m", "messages": [HELLO], **fields})
    assert str(caught.value) == sentence
    assert caught.value.field == sentence.split(":", 1)[0].removeprefix("LLMRequest.")


def test_a_long_wrong_value_is_shown_shortened() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        LLMMessage(role="x" * 10_000, content="")
    assert len(str(caught.value)) < 200


def test_invalid_requests_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="messages"):
        LLMRequest(model="m", messages=[])


def test_json_of_a_request_makes_the_same_request() -> None:
    call = LLMToolCall(id="1", name="search", arguments={"q": "x"})
    request = LLMRequest(
        model=ModelProvider.GPT_4O_MINI,
        messages=[
            HELLO,
            LLMMessage(role="assistant", tool_calls=[call]),
            LLMMessage(role="tool", tool_call_id="1", content="found"),
            LLMMessage(role="user", content=[{"type": "text", "text": "and?"}]),
        ],
        tools=[LLMTool(name="search", description="finds", input_schema={"type": "object"})],
        tool_choice="search",
        metadata={"row": 7},
    )
    assert LLMRequest.model_validate_json(request.model_dump_json()) == request
    with pytest.raises(ValidationError):
        LLMRequest.model_validate_json("{")


def test_records_are_frozen_copied_and_pickled() -> None:
    request = LLMRequest(model="m", messages=[HELLO])
    with pytest.raises(ValidationError):
        request.model = "other"  # type: ignore[misc]
    assert request.model_copy(update={"priority": RequestPriority.LOW}).priority is RequestPriority.LOW
    assert copy.deepcopy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own bytes


def test_usage_adds_up() -> None:
    usage = TokenUsage(input_tokens=10, output_tokens=5, cache_read_tokens=8)
    assert usage.total_tokens == 15
    receipt = Receipt(queue_wait=0.0, attempts=1, provider_time=1.0, deployment="openai/gpt-4o-mini", usage=usage)
    assert (receipt.price_lane, receipt.cached, receipt.cost_usd) == ("standard", False, None)
