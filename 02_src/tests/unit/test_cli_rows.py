"""What a line of an input means, and what is said of one that means nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_gateway import LLMRequest, RequestPriority
from llm_gateway.cli.rows import Malformed, Row, RowReader, stored
from llm_gateway.cli.settings import Loaded
from llm_gateway.config import load_config
from llm_gateway.jobs.tables import PromptTemplate

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def reader(**options: Any) -> RowReader:
    only_model = options.pop("only_model", None)
    return RowReader(Loaded(config=load_config({}), file=None, only_model=only_model), **options)


def asked(line: dict[str, Any], **options: Any) -> LLMRequest:
    row = reader(**options).read(7, json.dumps(line).encode())
    assert isinstance(row, Row), row
    return row.request


def refused(line: dict[str, Any] | bytes, **options: Any) -> str:
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    row = reader(**options).read(7, text)
    assert isinstance(row, Malformed), row
    return str(row.error)


def openai(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**BODY, **body}}


# --- our own lines ----------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_conversation_after_its_system_message() -> None:
    request = asked({"prompt": "hi", "system": "be brief", "model": "claude-haiku", "max_tokens": 5, "stop": ["x"]})
    assert [(each.role, each.content) for each in request.messages] == [("system", "be brief"), ("user", "hi")]
    assert (request.model, request.max_tokens, request.stop) == ("claude-haiku", 5, ["x"])


def test_a_request_as_json_stays_as_it_is() -> None:
    given = LLMRequest(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], request_id="r")
    row = reader().read(1, given.model_dump_json().encode())
    assert isinstance(row, Row)
    assert (row.request, row.form, row.line) == (given, "gateway", 1)


@pytest.mark.parametrize("blank", [b"", b"  ", b"\r", b"\t"])
def test_a_blank_line_is_no_row(blank: bytes) -> None:
    assert reader().read(1, blank) is None


def test_a_line_without_an_id_is_called_by_its_number() -> None:
    assert asked({"prompt": "hi", "model": "gpt-4o-mini"}).request_id == "line-7"
    assert asked({"prompt": "hi", "model": "gpt-4o-mini", "request_id": None}).request_id == "line-7"
    assert asked({"prompt": "hi", "model": "gpt-4o-mini", "request_id": "line-7"}).request_id == "line-7"


@pytest.mark.parametrize(
    ("line", "option", "expected"),
    [
        ({}, None, RequestPriority.LOW),
        ({"priority": "high"}, None, RequestPriority.HIGH),
        ({"priority": "Normal"}, None, RequestPriority.NORMAL),
        ({"priority": 1}, None, RequestPriority.HIGH),
        ({"priority": "high"}, RequestPriority.NORMAL, RequestPriority.NORMAL),
    ],
)
def test_bulk_rows_make_way_unless_they_or_the_command_line_say_otherwise(
    line: dict[str, Any], option: RequestPriority | None, expected: RequestPriority
) -> None:
    assert asked({"prompt": "hi", "model": "gpt-4o-mini", **line}, priority=option).priority is expected


@pytest.mark.parametrize(
    ("named", "option", "only", "expected"),
    [
        ("claude-haiku", None, None, "claude-haiku"),
        ("claude-haiku", "gpt-4o-mini", None, "gpt-4o-mini"),
        ("claude-haiku", None, "local-llama", "claude-haiku"),
        (None, None, "local-llama", "local-llama"),
        (None, "gpt-4o-mini", "local-llama", "gpt-4o-mini"),
    ],
)
def test_the_command_line_decides_on_the_model_then_the_line_then_the_configuration(
    named: str | None, option: str | None, only: str | None, expected: str
) -> None:
    ours = asked({"prompt": "hi", "model": named}, model=option, only_model=only)
    theirs = asked(openai(model=named), model=option, only_model=only)
    assert (ours.model, theirs.model) == (expected, expected)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"nonsense", "not JSON: "),
        (b'{"prompt": "\xff"}', "not JSON: "),
        (b'{"prompt": NaN}', "not JSON: "),
        (b"[" * 2000, "not JSON: "),
        (b"[1]", "expected a JSON object, found a list."),
        (b'"hi"', "expected a JSON object, found a text."),
        (b"null", "expected a JSON object, found null."),
        (b"4", "expected a JSON object, found a number."),
        ({"prompt": "hi"}, "the line names no model; add one to it, or give --model."),
        ({"prompt": 5, "model": "gpt-4o-mini"}, "prompt: expected a text, found a number."),
        ({"prompt": None, "model": "gpt-4o-mini"}, "prompt: expected a text, found null."),
        ({"prompt": "hi", "system": True, "model": "gpt-4o-mini"}, "system: expected a text, found true or false."),
        ({"prompt": "hi", "messages": [], "model": "gpt-4o-mini"}, "prompt, messages: the line has both"),
        ({"model": "gpt-4o-mini"}, "messages: missing; it has no default."),
        ({"prompt": "hi", "model": "gpt-4o-minni"}, "model: 'gpt-4o-minni' is not configured; did you mean"),
        ({"prompt": "hi", "model": "gpt-4o-mini", "max_token": 5}, "max_token: unknown; did you mean 'max_tokens'?"),
        ({"prompt": "hi", "model": "gpt-4o-mini", "priority": "urgent"}, "priority: 'urgent' is not one of 1, 2 or 3."),
        ({"prompt": "hi", "model": "gpt-4o-mini", "request_id": 5}, "request_id: 5 is wrong"),
        ({"prompt": "hi", "model": "gpt-4o-mini", "request_id": ""}, "request_id: empty"),
        ({"prompt": "hi", "model": "gpt-4o-mini", "request_id": "line-3"}, "'line-3' is the id of another line"),
        ({"messages": [{"role": "robot"}], "model": "gpt-4o-mini"}, "messages[0].role: 'robot' is not one of"),
    ],
)
def test_a_malformed_line_is_told_in_one_sentence(line: dict[str, Any] | bytes, sentence: str) -> None:
    assert refused(line).startswith(sentence)


def test_a_line_beyond_the_limit_is_told_as_such() -> None:
    row = reader().read(7, None)
    assert isinstance(row, Malformed)
    assert (row.line, row.request_id, str(row.error)) == (7, None, "the line is longer than 32 MiB.")


def test_the_path_of_a_field_stays_short_however_deep_it_lies() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    told = refused({"prompt": "hi", "model": "gpt-4o-mini", "metadata": {"a": deep}})
    assert len(told) < 400


# --- rows of tables ---------------------------------------------------------------------------------------------


def test_a_template_makes_the_prompt_of_a_row() -> None:
    options = {"template": PromptTemplate("Sort {text} by {{mood}}."), "system": "Be brief.", "model": "gpt-4o-mini"}
    row = reader(**options).read(3, {"text": "Fine!", "stars": 5, "request_id": 17})
    assert isinstance(row, Row)
    assert [each.content for each in row.request.messages] == ["Be brief.", "Sort Fine! by {mood}."]
    assert row.request.request_id == "17"
    unnamed = reader(**options).read(4, b'{"text": null}')  # an empty cell is an empty text
    assert isinstance(unnamed, Row)
    assert (unnamed.request.messages[1].content, unnamed.request.request_id) == ("Sort  by {mood}.", "line-4")


def test_a_row_without_a_column_of_the_template_is_malformed() -> None:
    row = reader(template=PromptTemplate("{text}"), model="gpt-4o-mini").read(3, {"txet": "x"})
    assert isinstance(row, Malformed)
    assert str(row.error) == "the row has no 'text', which the prompt template names."


def test_a_schema_is_asked_for_where_the_line_asks_for_nothing_else() -> None:
    tool = {"name": "t", "description": "d", "input_schema": {"type": "object"}}
    line: dict[str, Any] = {"prompt": "hi", "model": "gpt-4o-mini"}
    assert asked(line, schema=SCHEMA).response_format == SCHEMA
    assert asked({**line, "tools": [tool]}, schema=SCHEMA).response_format is None
    assert asked({**line, "response_format": {"type": "object"}}, schema=SCHEMA).response_format == {"type": "object"}


def test_a_row_goes_into_the_store_with_what_tells_it_from_others() -> None:
    one, other = (reader(model="gpt-4o-mini").read(3, text) for text in (b'{"prompt": "a"}', b'{"prompt": "b"}'))
    assert one is not None
    assert other is not None
    assert stored(one).fingerprint != stored(other).fingerprint
    assert (stored(one).number, stored(one).key, stored(one).model) == (3, "line-3", "gpt-4o-mini")
    malformed = reader().read(4, b"nonsense")
    assert malformed is not None
    failure = stored(malformed).failure
    assert failure is not None
    assert failure.kind == "invalid_request"


# --- OpenAI's lines ---------------------------------------------------------------------------------------------


def test_a_line_of_openai_means_what_it_means_there() -> None:
    request = asked(openai())
    assert (request.request_id, request.model, request.priority) == ("a", "gpt-4o-mini", RequestPriority.LOW)
    assert request.temperature == 1.0  # what OpenAI takes where a line names none


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({"temperature": 0.3}, "temperature", 0.3),
        ({"max_tokens": 9}, "max_tokens", 9),
        ({"max_completion_tokens": 9, "max_tokens": None}, "max_tokens", 9),
        ({"stop": "x"}, "stop", ["x"]),
        ({"stop": ["x", "y"]}, "stop", ["x", "y"]),
        ({"metadata": {"k": "v"}}, "metadata", {"k": "v"}),
        ({"n": 1, "stream": False, "top_p": None}, "metadata", None),
        ({"response_format": {"type": "text"}}, "response_format", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}},
            "response_format",
            SCHEMA,
        ),
    ],
)
def test_keys_of_openai_find_their_field(body: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(asked(openai(**body)), field) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "any"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
    ],
)
def test_tools_of_openai_are_tools(choice: object, expected: str) -> None:
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "looks", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "now"}},
    ]
    request = asked(openai(tools=tools, tool_choice=choice))
    assert [(each.name, each.description) for each in request.tools or ()] == [("weather", "looks"), ("now", "")]
    assert [each.input_schema for each in request.tools or ()] == [SCHEMA, {"type": "object", "properties": {}}]
    assert request.tool_choice == expected


def test_a_conversation_of_openai_keeps_its_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    request = asked(
        openai(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
                {"role": "tool", "content": "sunny", "tool_call_id": "c"},
            ]
        )
    )
    assert [each.role for each in request.messages] == ["system", "user", "assistant", "tool"]
    assert request.messages[1].content == [{"type": "text", "text": "hi"}]
    calls = request.messages[2].tool_calls or []
    assert [(each.id, each.name, each.arguments) for each in calls] == [("c", "weather", {"city": "Rome"})]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (openai(top_p=0.5), "body.top_p: not supported; supported are max_completion_tokens, "),
        (openai(logprobs=True), "body.logprobs: not supported"),
        (openai(n=2), "body.n: 2 is not one of 1."),
        (openai(stream=True), "body.stream: "),
        (openai(max_tokens=1, max_completion_tokens=2), "body.max_tokens, max_completion_tokens: give one of the two."),
        (openai(response_format={"type": "json_object"}), "body.response_format.type: 'json_object' is not one of"),
        (openai(response_format={"type": "json_schema"}), "response_format.json_schema: missing"),
        (openai(messages=[]), "messages: empty"),
        (openai(messages="hi"), "body.messages: 'hi' is wrong"),
        (openai(messages=[{"role": "user", "name": "Ann"}]), "body.messages[0].name: not supported"),
        (openai(temperature=3), "temperature: 3.0 is wrong"),
        ({**openai(), "url": "/v1/embeddings"}, "url: '/v1/embeddings' is not one of '/v1/chat/completions'."),
        ({**openai(), "method": "GET"}, "method: 'GET' is not one of 'POST'."),
        ({**openai(), "extra": 1}, "extra: not supported"),
        ({**openai(), "body": 5}, "body: 5 is wrong"),
        ({"custom_id": "a"}, "body: missing"),
        ({"body": BODY}, "custom_id: missing"),
        (openai(tools=[{"type": "function", "function": {"name": "f", "strict": True}}]), "body.tools[0].function.str"),
    ],
)
def test_nothing_of_a_line_of_openai_is_dropped_silently(line: dict[str, Any], sentence: str) -> None:
    assert refused(line).startswith(sentence)


@pytest.mark.parametrize("arguments", ["{", "[]"])
def test_tool_calls_whose_arguments_are_no_object_are_refused(arguments: str) -> None:
    call = {"id": "c", "function": {"name": "weather", "arguments": arguments}}
    told = refused(openai(messages=[{"role": "assistant", "tool_calls": [call]}]))
    assert told == "tool call 'c' arguments: not a JSON object in a text."
