"""Streams of servers and packages that are not ours: aimock's three APIs, Groq's package, a real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from fakes.aimock import Aimock
from fakes.deployments import KINDS, base_url, deployment, request, said, tool
from fakes.emulator import Emulator, Reply, ToolCall, Usage, server
from fakes.streams import streamed
from llm_gateway import local_model
from llm_gateway.clients.base import ChatClient
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import IncompleteResponseError, ProviderUnavailableError, RateLimitError
from llm_gateway.models import TextDelta, TokenUsage

every_kind = pytest.mark.parametrize("kind", KINDS)
TOOL = tool("look", {"where": {"type": "string"}})
LONG = "Paris, which has been the capital of France for longer than most of its bridges stand."
FIXTURES: list[dict[str, Any]] = [
    {"match": {"userMessage": "capital"}, "response": {"content": LONG}},
    {
        "match": {"userMessage": "look"},
        "response": {"toolCalls": [{"name": "look", "arguments": '{"where": "up"}', "id": "call_1"}]},
    },
    {"match": {"userMessage": "cut"}, "response": {"content": LONG}, "truncateAfterChunks": 2, "chunkSize": 5},
]


@pytest.fixture
async def aimock() -> AsyncIterator[Aimock]:
    async with Aimock.serve(fixtures=FIXTURES) as served:
        yield served


@pytest.fixture
async def client(aimock: Aimock, kind: str) -> AsyncIterator[ChatClient]:
    clients = LangChainClients()
    yield clients.connect(deployment(kind, base_url(aimock.url, kind)))
    await clients.aclose()


@every_kind
async def test_aimocks_stream_adds_up_to_its_plain_answer(client: ChatClient) -> None:
    question = request(said("system", "Be brief."), said("user", "The capital?"))
    seen, plain = await streamed(client, question), await client.generate(question)
    assert len(seen.texts) > 1
    assert (seen.text, seen.whole.content, seen.whole.finish_reason) == (LONG, plain.content, plain.finish_reason)
    assert seen.whole.usage is not None


@every_kind
async def test_aimocks_tool_calls_come_in_a_stream(client: ChatClient) -> None:
    seen = await streamed(client, request(said("user", "look"), tools=[TOOL]))
    [call] = seen.whole.tool_calls
    assert (call.name, call.arguments, seen.whole.finish_reason) == ("look", {"where": "up"}, "tool_calls")
    assert [name for _, name, _ in seen.calls()] == ["look"]


@every_kind
async def test_a_stream_that_aimock_cuts_is_never_whole(client: ChatClient) -> None:
    seen = await streamed(client, request(said("user", "cut")))
    assert LONG.startswith(seen.text)
    assert isinstance(seen.failure, ProviderUnavailableError)


@every_kind
async def test_aimocks_failures_are_told_apart(client: ChatClient, aimock: Aimock) -> None:
    await aimock.fail_next(429)
    assert type((await streamed(client, request(said("user", "The capital?")))).failure) is RateLimitError
    await aimock.chaos(malformed=1.0)
    assert type((await streamed(client, request(said("user", "The capital?")))).failure) is IncompleteResponseError


@pytest.fixture
async def groq(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChatClient]:
    monkeypatch.setitem(server.CHATS, "/openai/v1/chat/completions", server.OPENAI)
    clients = LangChainClients()
    yield clients.connect(deployment("groq", emulator.url, model="llama-3.3-70b-versatile"))
    await clients.aclose()


async def test_another_package_streams(emulator: Emulator, groq: ChatClient) -> None:
    calls = (ToolCall(name="look", args={"where": "up"}, id="a"),)
    reply = Reply(text="I look.", tool_calls=calls, usage=Usage(input=10, output=4))
    emulator.script(reply, reply)
    seen, plain = await streamed(groq, request(tools=[TOOL])), await groq.generate(request(tools=[TOOL]))
    assert seen.texts == ["I", " look."]
    assert (seen.whole.content, seen.whole.tool_calls) == (plain.content, plain.tool_calls)
    assert seen.whole.usage in {None, TokenUsage(input_tokens=10, output_tokens=4)}  # it need not ask for it


@pytest.mark.parametrize("fault", ["cut_body", "bad_json", "reset"])
async def test_another_packages_stream_that_breaks_is_never_whole(
    emulator: Emulator, groq: ChatClient, fault: Any
) -> None:
    emulator.script(Reply(text="one two three", fault=fault, after=2))
    assert isinstance((await streamed(groq, request())).failure, ProviderUnavailableError)


async def test_leaving_another_packages_stream_closes_its_connection(emulator: Emulator, groq: ChatClient) -> None:
    emulator.script(Reply(text="one two three", fault="stall", after=1))
    async with aclosing(groq.stream(request())) as stream:
        assert await anext(stream) == TextDelta("one")
    await emulator.settled()
    assert emulator.ledger[0].disconnected


async def test_a_real_model_in_this_process_streams() -> None:
    pytest.importorskip("xllamacpp")
    local_model.pull("smollm2-135m", lambda _: None)
    clients = LangChainClients()
    made = clients.connect(deployment("llamacpp", None, model="smollm2-135m", key=None, max_concurrency=1, context=512))
    question = request(said("user", "Name three cities in France."), max_tokens=16)
    seen, plain = await streamed(made, question), await made.generate(question)
    assert len(seen.texts) > 3
    assert (seen.text, seen.whole.content) == (plain.content, plain.content)
    assert seen.whole.finish_reason == plain.finish_reason
    assert seen.whole.usage is not None
    assert plain.usage is not None
    assert seen.whole.usage.output_tokens == plain.usage.output_tokens
    async with aclosing(made.stream(question)) as stream:
        await anext(stream)
    assert (await made.generate(question)).content == plain.content
    await made.aclose()
    await clients.aclose()
