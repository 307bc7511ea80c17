"""The records of the contract: fields, defaults, positions, and one sentence for each kind of bad input."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

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
from llm_gateway.models import Record

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
        ({"request_id": ""}, "LLMRequest.request_id: empty; give a text of at least 1 character."),
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


def test_records_are_frozen_copied_and_pickled() -> None:
    request = LLMRequest(model="m", messages=[HELLO])
    with pytest.raises(ValidationError):
        request.model = "other"  # type: ignore[misc]
    assert request.model_copy(update={"priority": RequestPriority.LOW}).priority is RequestPriority.LOW
    assert copy.deepcopy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own bytes


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
NOT_A_NAME = "is not the name of a model; give a ModelProvider, or any name from the configuration."


class Shapes(Record):
    """What the records of the contract do not have, those of a user's file do."""

    whole: int = 0
    yes: bool = False
    one: LLMTool | None = None
    either: LLMTool | list[LLMToolCall] | None = None
    places: dict[str, str | list[dict[str, JsonValue]]] | None = None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: asked(model=None), f"LLMRequest.model: None {NOT_A_NAME}"),
        (lambda: asked(model=""), f"LLMRequest.model: '' {NOT_A_NAME}"),
        (lambda: asked(model=5), f"LLMRequest.model: 5 {NOT_A_NAME}"),
        (lambda: asked(agent=5), "LLMRequest.agent: 5 is wrong: it should be a valid string."),
        (lambda: asked(messages=5), "LLMRequest.messages: 5 is wrong: it should be a valid list."),
        (lambda: asked(priority=True), "LLMRequest.priority: True is wrong: it should be a number."),
        (lambda: asked(max_tokens=True), "LLMRequest.max_tokens: True is wrong: it should be a number."),
        (lambda: asked(temperature=False), "LLMRequest.temperature: False is wrong: it should be a number."),
        (lambda: asked(deadline=True), "LLMRequest.deadline: True is wrong: it should be a number."),
        (lambda: asked(max_tokens="x"), "LLMRequest.max_tokens: 'x' is wrong: it should be a valid integer."),
        (lambda: asked(max_tokens=1.5), "LLMRequest.max_tokens: 1.5 is wrong: it should be a valid integer."),
        (lambda: asked(temperature="x"), "LLMRequest.temperature: 'x' is wrong: it should be a valid number."),
        (lambda: asked(metadata=[]), "LLMRequest.metadata: [] is wrong: it should be a valid dictionary."),
        (lambda: asked(metadata={1: 2}), "LLMRequest.metadata[1]: the name is not a text; put it in quotes."),
        (
            lambda: asked(metadata={"a": {"dict": {"a": 1j}}}),
            (
                "LLMRequest.metadata.a.dict.a: 1j is wrong: it should be a JSON value: a text, a number, true, false, "
                "null, a list or a dictionary."
            ),
        ),
        (
            lambda: asked(metadata={"list": CYCLE}),
            (
                "LLMRequest.metadata.list[0]: [[...]] is wrong: it should be a value that does not contain itself and "
                "is not nested too deeply."
            ),
        ),
        (lambda: asked(metadata={"a\nb": 1j}), "LLMRequest.metadata.'a\\nb': 1j is wrong: it should be a JSON value"),
        (lambda: asked(metadata={"api_key": 1j}), "LLMRequest.metadata.api_key: the value is wrong: it should be"),
        (
            lambda: asked(tools=[TOOL | {"name": "a b"}]),
            "LLMRequest.tools[0].name: 'a b' is wrong: it should be a text that matches ^[a-zA-Z0-9_-]{1,64}$.",
        ),
        (
            lambda: asked(messages=["hi"]),
            (
                "LLMRequest.messages[0]: 'hi' is wrong: it should be a dictionary with the keys role, content, "
                "tool_calls, tool_call_id."
            ),
        ),
        (
            lambda: LLMMessage(role="user", content=5),
            "LLMMessage.content: 5 is wrong: it should be a valid string or a valid list.",
        ),
        (
            lambda: LLMMessage(role="user", content=[5]),
            "LLMMessage.content[0]: 5 is wrong: it should be a valid dictionary.",
        ),
        (lambda: LLMRequest.model_validate_json("{"), "LLMRequest: not JSON: EOF while parsing an object at line 1"),
        (lambda: LLMRequest.model_validate_json("5"), "LLMRequest: 5 is wrong: it should be "),
        (lambda: LLMRequest.model_validate(5), "LLMRequest: 5 is wrong: it should be a dictionary with the keys model"),
        (lambda: LLMRequest.model_validate({"model": "m"}), "LLMRequest.messages: missing; it has no default."),
        (
            lambda: LLMRequest.model_validate_json('{"model": "m", "messages": [{"role": "x"}]}'),
            "LLMRequest.messages[0].role: 'x' is not one of",
        ),
        (lambda: TokenUsage(input_tokens=-1), "TokenUsage.input_tokens: -1 is wrong: it should be greater than or"),
        (lambda: built(Shapes, whole="9" * 5000), "Shapes.whole: '9999"),
        (lambda: built(Shapes, yes="x"), "Shapes.yes: 'x' is wrong: it should be a valid boolean."),
        (lambda: built(Shapes, yes=5.5), "Shapes.yes: 5.5 is wrong: it should be a valid boolean."),
        (
            lambda: built(Shapes, one=5),
            "Shapes.one: 5 is wrong: it should be a dictionary with the keys name, description, input_schema.",
        ),
        (
            lambda: built(Shapes, either=5),
            (
                "Shapes.either: 5 is wrong: it should be a dictionary with the keys name, description, input_schema or "
                "a valid list."
            ),
        ),
        (lambda: built(Shapes, either=[{"id": "1"}]), "Shapes.either[0].name: missing; it has no default."),
        (
            lambda: built(Shapes, places={"str": [{"list": 1j}]}),
            "Shapes.places.str[0].list: 1j is wrong: it should be a JSON value",
        ),
    ],
)
def test_every_kind_of_problem_reads_as_a_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    told = str(caught.value)
    assert told.startswith(sentence)
    assert told.endswith(".")
    assert "\n" not in told


def asked(**fields: Any) -> LLMRequest:
    """Make a request that is right but for `fields`."""
    return LLMRequest(**{"model": "m", "messages": [HELLO], **fields})


def test_the_path_of_a_field_and_a_value_of_a_hostile_class_stay_short() -> None:
    deep: Any = 1j
    for _ in range(90):
        deep = [deep]
    with pytest.raises(InvalidRequestError) as caught:
        asked(metadata={"a": deep})
    assert len(str(caught.value)) < 300

    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(InvalidRequestError, match="agent: the Rude is wrong: it should be a valid string"):
        asked(agent=Rude())


def test_values_that_hold_a_secret_are_not_shown() -> None:
    for value in ({"api_key": "canary"}, ["x", {"password": "canary"}], "sk-canary-123", "http://u:canary@host"):
        with pytest.raises(InvalidRequestError) as caught:
            asked(messages=value)
        assert "canary" not in str(caught.value)


def test_a_changed_copy_is_checked_like_a_new_record() -> None:
    request = asked(metadata={"rows": [1]})
    with pytest.raises(InvalidRequestError, match=r"^LLMRequest\.temperature: 9 is wrong: it should be less than"):
        request.model_copy(update={"temperature": 9})
    with pytest.raises(InvalidRequestError, match="temprature: unknown; did you mean 'temperature'"):
        request.model_copy(update={"temprature": 1})
    with pytest.raises(InvalidRequestError, match="tool_choice: 'f' is none of"):
        request.model_copy(update={"tool_choice": "f"})
    changed = request.model_copy(update={"priority": 3, "messages": [{"role": "user", "content": "hi"}]})
    assert changed.priority is RequestPriority.LOW
    assert changed.messages == [LLMMessage(role="user", content="hi")]
    assert changed.request_id == request.request_id
    assert changed.metadata is request.metadata
    assert changed.model_fields_set == request.model_fields_set | {"priority"}


def test_a_deep_copy_shares_nothing_and_a_plain_one_everything() -> None:
    request = asked(metadata={"rows": [1]})
    assert request.model_copy().metadata is request.metadata
    for deep in (request.model_copy(deep=True), request.model_copy(update={"agent": "a"}, deep=True)):
        assert deep.metadata == request.metadata
        assert deep.metadata is not request.metadata


def test_usage_adds_up() -> None:
    usage = TokenUsage(input_tokens=10, output_tokens=5, cache_read_tokens=8)
    assert usage.total_tokens == 15
    receipt = Receipt(queue_wait=0.0, attempts=1, provider_time=1.0, deployment="openai/gpt-4o-mini", usage=usage)
    assert (receipt.price_lane, receipt.cached, receipt.cost_usd) == ("standard", False, None)
