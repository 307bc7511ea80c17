"""What goes to each provider, and what comes back, over real HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, connected, request, said, tool
from fakes.emulator import Emulator, Reply, ToolCall, Usage
from llm_gateway.models import LLMToolCall, TokenUsage

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)
WEATHER = tool("weather", {"city": {"type": "string"}}, required=["city"])
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@every_kind
async def test_a_question_is_answered_by_one_call_that_carries_the_key(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="Paris", usage=Usage(input=12, output=3)))
    async with connected(emulator, kind) as client:
        answer = await client.generate(request())
    assert (answer.content, answer.finish_reason, answer.tool_calls) == ("Paris", "stop", ())
    assert answer.usage == TokenUsage(input_tokens=12, output_tokens=3)
    [call] = emulator.ledger
    assert (call.api, call.key) == (kind, CANARY)
    assert call.body["messages"] == [{"role": "user", "content": "hello"}]


@every_kind
async def test_an_empty_answer_is_an_answer(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text=""))
    async with connected(emulator, kind) as client:
        answer = await client.generate(request())
    assert (answer.content, answer.finish_reason) == ("", "stop")


CONVERSATION = (
    said("system", "Be brief."),
    said("user", "Weather in Oslo?"),
    said(
        "assistant", "Let me look.", tool_calls=[LLMToolCall(id="call_1", name="weather", arguments={"city": "Oslo"})]
    ),
    said("tool", "rain", tool_call_id="call_1"),
    said("user", "And tomorrow?"),
)
FUNCTION = {
    "type": "function",
    "function": {"name": "weather", "description": WEATHER.description, "parameters": WEATHER.input_schema},
}


async def test_openai_gets_a_conversation_with_tools_in_its_own_form(emulator: Emulator) -> None:
    async with connected(emulator, "openai") as client:
        await client.generate(request(*CONVERSATION, tools=[WEATHER], stop=["END"], max_tokens=9, temperature=0.5))
    body = emulator.ledger[0].body
    system, user, assistant, tool, last = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"] == "Weather in Oslo?"
    [call] = assistant["tool_calls"]
    assert (call["id"], call["function"]["name"]) == ("call_1", "weather")
    assert call["function"]["arguments"] == '{"city": "Oslo"}'
    assert tool == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    assert last["content"] == "And tomorrow?"
    assert body["tools"] == [FUNCTION]
    assert (body["temperature"], body["max_completion_tokens"], body["stop"]) == (0.5, 9, ["END"])


async def test_anthropic_gets_a_conversation_with_tools_in_its_own_form(emulator: Emulator) -> None:
    async with connected(emulator, "anthropic") as client:
        await client.generate(request(*CONVERSATION, tools=[WEATHER], stop=["END"], max_tokens=9, temperature=0.5))
    body = emulator.ledger[0].body
    assert body["system"] == "Be brief."
    user, assistant, results = body["messages"]
    assert user["content"] == "Weather in Oslo?"
    assert assistant["content"] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
    ]
    assert results["role"] == "user"
    assert results["content"][0] | {"is_error": False} == {
        "type": "tool_result", "tool_use_id": "call_1", "content": "rain", "is_error": False,
    }  # fmt: skip
    assert results["content"][1] == {"type": "text", "text": "And tomorrow?"}
    assert body["tools"] == [
        {"name": "weather", "description": WEATHER.description, "input_schema": WEATHER.input_schema}
    ]
    assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.5, 9, ["END"])


async def test_ollama_gets_a_conversation_with_tools_in_its_own_form(emulator: Emulator) -> None:
    async with connected(emulator, "ollama", options={"num_ctx": 2048, "temperature": 1.0}, context=9) as client:
        await client.generate(request(*CONVERSATION, tools=[WEATHER], stop=["END"], max_tokens=9, temperature=0.5))
    body = emulator.ledger[0].body
    system, user, assistant, tool, last = body["messages"]
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert (system["content"], user["content"], last["content"]) == ("Be brief.", "Weather in Oslo?", "And tomorrow?")
    assert assistant["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert tool["content"] == "rain"
    [function] = body["tools"]
    assert function["function"]["name"] == "weather"
    assert function["function"]["description"] == WEATHER.description
    assert body["options"] == {"num_ctx": 2048, "temperature": 0.5, "num_predict": 9, "stop": ["END"]}


@every_kind
async def test_a_tool_call_comes_back_with_its_arguments(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="weather", args={"city": "Oslo"}),)))
    async with connected(emulator, kind) as client:
        answer = await client.generate(request(tools=[WEATHER]))
    [call] = answer.tool_calls
    assert (call.name, call.arguments, answer.finish_reason) == ("weather", {"city": "Oslo"}, "tool_calls")
    assert call.id
    assert answer.content == ""


async def test_text_beside_a_tool_call_is_the_content(emulator: Emulator) -> None:
    emulator.script(Reply(text="One moment.", tool_calls=(ToolCall(name="weather", args={"city": "Oslo"}),)))
    async with connected(emulator, "anthropic") as client:
        answer = await client.generate(request(tools=[WEATHER]))
    assert answer.content == "One moment."


@pytest.mark.parametrize(
    ("choice", "openai", "anthropic"),
    [
        ("auto", "auto", {"type": "auto"}),
        ("any", "required", {"type": "any"}),
        ("none", "none", {"type": "none"}),
        ("weather", {"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
async def test_the_choice_of_a_tool_is_said_in_each_providers_words(
    emulator: Emulator, choice: str, openai: Any, anthropic: Any
) -> None:
    for kind in ("openai", "anthropic"):
        async with connected(emulator, kind) as client:
            await client.generate(request(tools=[WEATHER], tool_choice=choice))
    assert [call.body["tool_choice"] for call in emulator.ledger] == [openai, anthropic]
    assert all(call.body["tools"] for call in emulator.ledger)


async def test_ollama_is_not_sent_tools_that_it_may_not_call(emulator: Emulator) -> None:
    async with connected(emulator, "ollama") as client:
        await client.generate(request(tools=[WEATHER], tool_choice="none"))
        await client.generate(request(tools=[WEATHER], tool_choice="auto"))
    assert [len(call.body["tools"]) for call in emulator.ledger] == [0, 1]


async def test_a_schema_is_enforced_by_each_provider(emulator: Emulator) -> None:
    for kind in KINDS:
        async with connected(emulator, kind, **({"model": "claude-opus-5-5"} if kind == "anthropic" else {})) as client:
            client.check(request(response_format=SCHEMA))
            answer = await client.generate(request(response_format=SCHEMA))
            assert answer.content == "ok"
    openai, anthropic, ollama = (call.body for call in emulator.ledger)
    closed = {**SCHEMA, "additionalProperties": False}
    assert openai["response_format"]["type"] == "json_schema"
    assert openai["response_format"]["json_schema"] == {"name": "answer", "schema": closed, "strict": True}
    assert anthropic["output_config"]["format"] == {"type": "json_schema", "schema": closed}
    assert ollama["format"] == SCHEMA
    assert "additionalProperties" not in SCHEMA


async def test_an_answer_that_was_cut_below_its_schema_is_still_returned(emulator: Emulator) -> None:
    usage = Usage(input=20, output=4, cache_read=8, reasoning=2)
    emulator.script(Reply(text='{"n": ', finish_reason="length", usage=usage))
    async with connected(emulator, "openai") as client:
        answer = await client.generate(request(response_format=SCHEMA))
    assert (answer.content, answer.finish_reason) == ('{"n": ', "length")
    expected = TokenUsage(input_tokens=20, output_tokens=4, cache_read_tokens=8, reasoning_tokens=2)
    assert answer.usage == expected


async def test_an_answer_that_was_filtered_below_its_schema_is_still_returned(emulator: Emulator) -> None:
    emulator.script(Reply(text="", finish_reason="content_filter"))
    async with connected(emulator, "openai") as client:
        answer = await client.generate(request(response_format=SCHEMA))
    assert (answer.content, answer.finish_reason) == ("", "content_filter")


@pytest.mark.parametrize(
    ("kind", "usage", "counted"),
    [
        (
            "openai",
            Usage(input=100, output=50, cache_read=40, reasoning=30),
            TokenUsage(input_tokens=100, output_tokens=50, cache_read_tokens=40, reasoning_tokens=30),
        ),
        (
            "anthropic",
            Usage(input=100, output=50, cache_read=40, cache_write=10, cache_write_1h=20, reasoning=30),
            TokenUsage(
                input_tokens=100,
                output_tokens=50,
                cache_read_tokens=40,
                cache_write_tokens=30,
                reasoning_tokens=30,
                cache_write_1h_tokens=20,
            ),
        ),
        ("ollama", Usage(input=100, output=50), TokenUsage(input_tokens=100, output_tokens=50)),
    ],
)
async def test_cached_and_reasoning_tokens_are_counted_once(
    emulator: Emulator, kind: str, usage: Usage, counted: TokenUsage
) -> None:
    emulator.script(Reply(usage=usage))
    async with connected(emulator, kind) as client:
        assert (await client.generate(request())).usage == counted


@pytest.mark.parametrize(
    ("kind", "word", "reason"),
    [
        ("openai", "stop", "stop"),
        ("openai", "length", "length"),
        ("openai", "content_filter", "content_filter"),
        ("openai", "function_call", "tool_calls"),
        ("anthropic", "end_turn", "stop"),
        ("anthropic", "stop_sequence", "stop"),
        ("anthropic", "max_tokens", "length"),
        ("anthropic", "model_context_window_exceeded", "length"),
        ("anthropic", "refusal", "refusal"),
        ("anthropic", "pause_turn", "pause_turn"),
        ("ollama", "stop", "stop"),
        ("ollama", "length", "length"),
    ],
)
async def test_finish_reasons_have_one_name_for_all_providers(
    emulator: Emulator, kind: str, word: str, reason: str
) -> None:
    emulator.script(Reply(finish_reason=word))
    async with connected(emulator, kind) as client:
        assert (await client.generate(request())).finish_reason == reason


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("anthropic", "claude-opus-5-5"),
        ("anthropic", "claude-sonnet-5-5"),
        ("openai", "gpt-5"),
        ("openai", "gpt-5-2025-08-07"),
        ("anthropic", "claude-opus-5-5-20260922"),
    ],
)
async def test_a_temperature_is_left_out_for_models_that_refuse_one(emulator: Emulator, kind: str, model: str) -> None:
    async with connected(emulator, kind, model=model) as client:
        asked = request(temperature=0.7)
        client.check(asked)
        await client.generate(asked)
    assert "temperature" not in emulator.ledger[0].body


@pytest.mark.parametrize(("settings", "expected"), [({}, 4096), ({"max_tokens": 77}, 77)])
async def test_anthropic_is_always_told_a_limit(emulator: Emulator, settings: dict[str, int], expected: int) -> None:
    async with connected(emulator, "anthropic", **settings) as client:
        await client.generate(request())
        await client.generate(request(max_tokens=5))
    assert [call.body["max_tokens"] for call in emulator.ledger] == [expected, 5]


async def test_a_configured_limit_holds_where_the_request_sets_none(emulator: Emulator) -> None:
    for kind in ("openai", "ollama"):
        async with connected(emulator, kind, max_tokens=77) as client:
            await client.generate(request())
            await client.generate(request(max_tokens=5))
    limits = [call.body.get("max_completion_tokens") or call.body["options"]["num_predict"] for call in emulator.ledger]
    assert limits == [77, 5, 77, 5]


@every_kind
async def test_images_go_out_as_content_blocks(emulator: Emulator, kind: str) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    picture = said(
        "user", [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": pixel}}]
    )
    async with connected(emulator, kind) as client:
        client.check(request(picture))
        await client.generate(request(picture))
    assert "iVBORw0KGgo=" in str(emulator.ledger[0].body["messages"])


async def test_constructor_options_reach_the_provider(emulator: Emulator) -> None:
    async with connected(emulator, "openai", options={"seed": 7, "top_p": 0.5}) as client:
        await client.generate(request())
    assert (emulator.ledger[0].body["seed"], emulator.ledger[0].body["top_p"]) == (7, 0.5)


async def test_broken_arguments_of_a_cut_answer_are_dropped_with_their_call(emulator: Emulator) -> None:
    emulator.script(Reply(tool_calls=(ToolCall(name="weather", args='{"city": "Os'),), finish_reason="length"))
    async with connected(emulator, "openai") as client:
        answer = await client.generate(request(tools=[WEATHER]))
    assert (answer.tool_calls, answer.finish_reason) == ((), "length")


async def test_empty_arguments_mean_none(emulator: Emulator) -> None:
    emulator.script(Reply(tool_calls=(ToolCall(name="weather", args=""),)))
    async with connected(emulator, "openai") as client:
        [call] = (await client.generate(request(tools=[WEATHER]))).tool_calls
    assert (call.name, call.arguments) == ("weather", {})


@pytest.mark.parametrize("count", [12.5, -5, 10**12])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_an_answer_with_nonsense_for_its_usage_is_an_answer(emulator: Emulator, kind: str, count: Any) -> None:
    emulator.script(Reply(text="Paris", usage=Usage(input=3, output=count)))
    async with connected(emulator, kind) as client:
        answer = await client.generate(request())
    assert (answer.content, answer.usage) == ("Paris", None)
