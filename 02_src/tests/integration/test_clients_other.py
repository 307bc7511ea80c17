"""A provider that only LangChain's `init_chat_model` knows: Groq's package, against the emulator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from fakes.deployments import CANARY, deployment, request, tool
from fakes.emulator import Emulator, Reply, ToolCall, server
from llm_gateway.clients.base import ChatClient
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import AuthenticationError, IncompleteResponseError, ProviderUnavailableError, RateLimitError

TOOL = tool("look")


@pytest.fixture
async def client(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChatClient]:
    monkeypatch.setitem(server.CHATS, "/openai/v1/chat/completions", server.OPENAI)
    clients = LangChainClients()
    yield clients.connect(deployment("groq", emulator.url, model="llama-3.3-70b-versatile", max_tokens=50))
    await clients.aclose()


async def test_a_provider_of_init_chat_model_answers(emulator: Emulator, client: ChatClient) -> None:
    emulator.script(Reply(text="hi"), Reply(text="", tool_calls=(ToolCall(name="look", args={}),)))
    first = await client.generate(request(temperature=0.5))
    second = await client.generate(request(tools=[TOOL], tool_choice="any", max_tokens=7, stop=["END"]))
    assert (first.content, first.finish_reason) == ("hi", "stop")
    assert first.usage is not None
    assert [call.name for call in second.tool_calls] == ["look"]
    bodies = [call.body for call in emulator.ledger]
    assert [body["max_tokens"] for body in bodies] == [50, 7]
    assert (bodies[0]["temperature"], bodies[1]["tool_choice"], bodies[1]["stop"]) == (0.5, "required", ["END"])
    assert emulator.ledger[0].key == CANARY


async def test_its_failures_are_told_apart_after_one_call_each(emulator: Emulator, client: ChatClient) -> None:
    cases: list[tuple[Reply, Any]] = [
        (Reply(status=401), AuthenticationError),
        (Reply(status=429, headers={"retry-after": "3"}), RateLimitError),
        (Reply(status=500), ProviderUnavailableError),
        (Reply(fault="reset"), ProviderUnavailableError),
        (Reply(fault="cut_body"), IncompleteResponseError),
        (Reply(fault="html"), IncompleteResponseError),
        (Reply(fault="bad_json"), IncompleteResponseError),
    ]
    for number, (reply, expected) in enumerate(cases, 1):
        emulator.script(reply)
        with pytest.raises(expected) as caught:
            await client.generate(request())
        assert len(emulator.ledger) == number
        assert caught.value.retry_after == (3.0 if reply.status == 429 else None)


async def test_its_package_speaks_over_our_own_connections(client: ChatClient) -> None:
    made: Any = client
    [*_, lease] = made._leases
    assert isinstance(lease.client, httpx.AsyncClient | httpx2.AsyncClient)
    assert made._model.http_async_client is lease.client
    assert made._model.max_retries == 0


async def test_a_package_of_the_openai_family_speaks_over_aiohttp(emulator: Emulator) -> None:
    clients = LangChainClients()
    options = {"api_version": "2024-10-21"}
    azure = deployment("azure_openai", None, model="gpt-4o-mini", options={"azure_endpoint": emulator.url, **options})
    made: Any = clients.connect(azure)
    assert isinstance(made._model.http_async_client, httpx2.AsyncClient)
    assert made._model.stream_usage is True
    await clients.aclose()
