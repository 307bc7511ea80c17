"""How each provider is asked for an answer in a format, and what comes back, over real HTTP and both transports."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from fakes.deployments import CANARY, KINDS, MODELS, base_url, connected, deployment, request, said, tool
from fakes.emulator import Emulator, Reply, ToolCall, Usage
from fakes.emulator import server as emulated
from fakes.streams import streamed
from llm_gateway import InvalidAnswerError, LLMGateway, LLMRequest
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import ConfigurationError, InvalidRequestError

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)
FORCING = ("openai", "anthropic")  # those that can be made to call a tool


class Box(BaseModel):
    """A box."""

    width: int = Field(ge=1)
    label: str | None = None
    color: Literal["red", "blue"] = "red"


class Folder(BaseModel):
    """It holds itself."""

    name: str
    folders: list[Folder] = []


class Counts(BaseModel):
    """Words nobody knows beforehand."""

    words: dict[str, int]


BOX = {"width": 3, "label": None, "color": "blue"}
LOOK = tool("look")


def format_sent(body: dict[str, Any]) -> Any:
    """The schema where each provider enforces one."""
    openai = body.get("response_format", {}).get("json_schema", {}).get("schema")
    return openai or body.get("output_config", {}).get("format", {}).get("schema") or body.get("format")


def gateway_at(emulator: Emulator, kind: str, transport: str, **settings: Any) -> LLMGateway:
    provider = {"kind": kind, "base_url": base_url(emulator.url, kind), "api_key": CANARY, "transport": transport}
    model = {"provider": "p", "model": MODELS[kind], **settings}
    return LLMGateway({"providers": {"p": provider}, "models": {"m": model}, "logs": {"dir": False}})


# --- through the whole gateway -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("way", [None, "tool", "prompt"])
async def test_an_answer_that_does_not_fit_is_mended_at_every_provider_in_every_way(
    emulator: Emulator, transport: str, kind: str, way: str | None
) -> None:
    if (kind, way) == ("ollama", "tool"):
        return  # see below
    usage = Usage(input=20, output=6)
    # Anthropic itself reads the arguments of a whole answer.
    broken: Any = {"wide": 3} if (kind, way) == ("anthropic", "tool") else '{"width": '
    told: list[Reply] = [
        Reply(text="", tool_calls=(ToolCall(name="Box", args=args),), usage=usage)
        if way == "tool"
        else Reply(text=args if isinstance(args, str) else json.dumps(args), usage=usage)
        for args in (broken, {**BOX, "width": 0}, BOX)
    ]
    emulator.script(*told)
    async with gateway_at(emulator, kind, transport, structured_output=way) as gateway:
        response = await gateway.request(LLMRequest(model="m", messages=[said("user", "a box")], response_format=Box))
    assert response.parsed == Box(width=3, color="blue")
    assert (response.tool_calls, response.finish_reason) == (None, "stop")
    assert response.receipt is not None
    assert (response.receipt.attempts, response.tokens_used) == (3, 78)
    bodies = [call.body for call in emulator.ledger]
    assert [bool(format_sent(body)) for body in bodies] == [way is None] * 3
    assert [bool(body.get("tools")) for body in bodies] == [way == "tool"] * 3
    assert ["fits this JSON schema" in json.dumps(body) for body in bodies] == [way == "prompt"] * 3
    last = [(each["role"], each["content"]) for each in bodies[2]["messages"] if each["role"] != "system"]
    assert [role for role, _ in last] == ["user", "assistant", "user"]
    assert "width" in str(last[1][1])
    assert "greater than or equal to 1" in str(last[2][1])


@every_kind
async def test_a_stream_brings_the_answer_as_text_and_then_whole(emulator: Emulator, transport: str, kind: str) -> None:
    for way in (None, "prompt", *(["tool"] if kind in FORCING else [])):
        text = json.dumps(BOX)
        called = Reply(text="", tool_calls=(ToolCall(name="Box", args=BOX),))
        emulator.script(called if way == "tool" else Reply(text=text))
        async with gateway_at(emulator, kind, transport, structured_output=way) as gateway:
            *pieces, whole = [
                piece
                async for piece in gateway.stream(
                    LLMRequest(model="m", messages=[said("user", "a box")], response_format=Box)
                )
            ]
        assert getattr(whole, "parsed", None) == Box(width=3, color="blue")
        assert json.loads("".join(getattr(piece, "text", "") for piece in pieces)) == BOX


@pytest.mark.parametrize("kind", FORCING)
async def test_a_refusal_beside_a_format_is_an_error_after_one_call(
    emulator: Emulator, transport: str, kind: str
) -> None:
    reason = {"openai": "content_filter", "anthropic": "refusal"}[kind]
    emulator.script(Reply(text="No.", finish_reason=reason))
    async with gateway_at(emulator, kind, transport) as gateway:
        with pytest.raises(InvalidAnswerError) as caught:
            await gateway.request(LLMRequest(model="m", messages=[said("user", "a box")], response_format=Box))
    assert len(emulator.ledger) == 1
    assert caught.value.response is not None
    assert caught.value.response.receipt is not None


# --- what is sent ------------------------------------------------------------------------------------------------


async def test_a_class_is_strict_where_that_is_possible_and_requires_all(emulator: Emulator) -> None:
    for kind in KINDS:
        async with connected(emulator, kind) as client:
            await client.generate(request(response_format=Box))
    openai, anthropic, ollama = (call.body for call in emulator.ledger)
    form = openai["response_format"]["json_schema"]
    assert (form["name"], form["strict"]) == ("Box", True)
    schema = form["schema"]
    assert (schema["required"], schema["additionalProperties"]) == (["width", "label", "color"], False)
    assert "default" not in json.dumps(schema)
    assert anthropic["output_config"]["format"]["schema"]["additionalProperties"] is False
    assert ollama["format"]["required"] == ["width", "label", "color"]


async def test_what_strict_modes_cannot_say_is_asked_for_in_another_way(emulator: Emulator) -> None:
    for model in (Counts, Folder):
        for kind in FORCING:
            async with connected(emulator, kind) as client:
                client.check(request(response_format=model))
                await client.generate(request(response_format=model))
    open_openai, open_anthropic, deep_openai, deep_anthropic = (call.body for call in emulator.ledger)
    assert open_openai["response_format"]["json_schema"]["strict"] is False
    assert deep_openai["response_format"]["json_schema"]["strict"] is True
    for body, name in ((open_anthropic, "Counts"), (deep_anthropic, "Folder")):
        assert format_sent(body) is None
        assert body["tool_choice"] == {"type": "tool", "name": name}
        assert [each["name"] for each in body["tools"]] == [name]


async def test_a_name_that_providers_would_refuse_is_made_one(emulator: Emulator) -> None:
    schema = {"title": "A box, or [two]!", "type": "object", "properties": {"n": {"type": "integer"}}}
    async with connected(emulator, "openai") as client:
        await client.generate(request(response_format=schema))
    assert emulator.ledger[0].body["response_format"]["json_schema"]["name"] == "A_box_or_two"


@pytest.mark.parametrize("kind", FORCING)
async def test_the_answers_tool_stands_beside_those_of_the_request(emulator: Emulator, kind: str) -> None:
    asked = request(response_format=Box, tools=[LOOK, tool("Box")])
    both = (ToolCall(name="look", args={}), ToolCall(name="Box_as_asked", args=BOX))
    emulator.script(Reply(text="", tool_calls=both), Reply(text="", tool_calls=both[1:]), Reply(text="", tool_calls=()))
    async with connected(emulator, kind, structured_output="tool") as client:
        called = await client.generate(asked)
        answered = await client.generate(asked)
        silent = await client.generate(asked)
        chosen = [
            await client.generate(asked.model_copy(update={"tool_choice": choice})) for choice in ("none", "look")
        ]
    assert [call.name for call in called.tool_calls] == ["look"]
    assert (json.loads(answered.content), answered.tool_calls) == (BOX, ())
    assert (silent.content, len(chosen)) == ("", 2)
    choices = [call.body["tool_choice"] for call in emulator.ledger]
    some: Any = {"openai": "required", "anthropic": {"type": "any"}}[kind]
    assert choices[:3] == [some] * 3
    assert [("Box_as_asked" in str(choices[3])), ("look" in str(choices[4]))] == [True, True]


@every_kind
async def test_a_format_and_tools_go_together(emulator: Emulator, kind: str) -> None:
    asked = request(response_format=Box, tools=[LOOK])
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="look", args={}),)), Reply(text=json.dumps(BOX)))
    async with connected(emulator, kind) as client:
        client.check(asked)
        called = await client.generate(asked)
        seen = await streamed(client, asked)
    assert [call.name for call in called.tool_calls] == ["look"]
    assert json.loads(seen.whole.content) == BOX
    for call in emulator.ledger:
        assert call.body["tools"]
        told = "fits this JSON schema" in json.dumps(call.body["messages"])
        assert (told, bool(format_sent(call.body))) == (kind == "ollama", kind != "ollama")


async def test_a_prompt_adds_to_the_system_message_that_is_there(emulator: Emulator) -> None:
    async with connected(emulator, "openai", structured_output="prompt") as client:
        await client.generate(request(said("system", "Be brief."), said("user", "a box"), response_format=Box))
    system, user = emulator.ledger[0].body["messages"]
    assert system["content"].startswith("Be brief.\n\nGive your final answer as JSON")
    assert user["content"] == "a box"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_arguments_that_break_off_in_a_stream_are_an_answer_to_be_judged(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="Box", args='{"width": '),)))
    async with connected(emulator, kind, structured_output="tool") as client:
        seen = await streamed(client, request(response_format=Box))
    assert seen.whole.content == '{"width": '
    assert seen.text == '{"width": '


# --- who is asked how ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "model", "options", "way"),
    [
        ("openai", "gpt-4-turbo", {}, "tool"),  # its profile denies it
        ("openai", "a-server-of-my-own", {}, "native"),
        ("anthropic", "claude-haiku-4-5-20251001", {}, "native"),  # denied by its own profile, not by its family's
        ("anthropic", "claude-haiku-5-5", {}, "tool"),
        ("anthropic", "claude-haiku-5-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "prompt"),
        ("ollama", "llama3.2", {}, "native"),
        ("groq", "some-model", {}, "tool"),
    ],
)
def test_the_way_is_that_of_the_deployment(kind: str, model: str, options: Any, way: str) -> None:
    made: Any = LangChainClients().connect(deployment(kind, "http://localhost:9", model=model, options=options))
    asked = request(response_format=Box)
    assert made._dialect.way(asked, made._profile, made._model) == way
    made.check(asked)


def test_ollama_cannot_be_made_to_call_a_tool() -> None:
    with pytest.raises(ConfigurationError, match=r"models\.m\.structured_output: Ollama cannot be made to call"):
        LangChainClients().connect(deployment("ollama", "http://localhost:9", structured_output="tool"))


@every_kind
def test_an_answer_by_tool_is_an_object(kind: str) -> None:
    way = "prompt" if kind == "ollama" else "tool"
    made: Any = LangChainClients().connect(deployment(kind, "http://localhost:9", structured_output=way))
    listed = request(response_format={"type": "array", "items": {"type": "integer"}})
    if way == "prompt":
        made.check(listed)
        return
    with pytest.raises(InvalidRequestError, match="its schema must be that of an object"):
        made.check(listed)


async def test_any_other_provider_answers_by_tool(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emulated.CHATS, "/openai/v1/chat/completions", emulated.OPENAI)
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="Box", args=BOX),)))
    clients = LangChainClients()
    client = clients.connect(deployment("groq", emulator.url, model="llama-3.3-70b-versatile"))
    answer = await client.generate(request(response_format=Box))
    await clients.aclose()
    assert json.loads(answer.content) == BOX
    assert emulator.ledger[0].body["tool_choice"]["function"]["name"] == "Box"
