"""The clients against aimock, whose idea of the three APIs is not ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from fakes.aimock import Aimock
from fakes.deployments import KINDS, base_url, deployment, request, said, tool
from llm_gateway.clients.base import ChatClient, Completion
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import ProviderError, ProviderUnavailableError, RateLimitError
from llm_gateway.models import LLMToolCall

TOOL = tool("look", {"where": {"type": "string"}})
FIXTURES: list[dict[str, Any]] = [
    {"match": {"userMessage": "capital"}, "response": {"content": "Paris"}},
    {
        "match": {"userMessage": "look", "hasToolResult": False},
        "response": {"toolCalls": [{"name": "look", "arguments": '{"where": "up"}', "id": "call_1"}]},
    },
    {"match": {"userMessage": "look", "hasToolResult": True}, "response": {"content": "Clouds."}},
    {"match": {"userMessage": "long"}, "response": {"content": "and so on", "finishReason": "length"}},
]
pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def aimock() -> AsyncIterator[Aimock]:
    async with Aimock.serve(fixtures=FIXTURES) as served:
        yield served


@pytest.fixture
async def client(aimock: Aimock, kind: str, transport: str) -> AsyncIterator[ChatClient]:
    clients = LangChainClients()
    yield clients.connect(deployment(kind, base_url(aimock.url, kind), transport=transport))
    await clients.aclose()


@every_kind
async def test_a_question_is_answered(client: ChatClient) -> None:
    answer = await client.generate(request(said("system", "Be brief."), said("user", "The capital?")))
    assert (answer.content, answer.finish_reason) == ("Paris", "stop")
    assert answer.usage is not None


@every_kind
async def test_a_tool_is_called_and_its_result_taken(client: ChatClient) -> None:
    question = said("user", "look")
    first = await client.generate(request(question, tools=[TOOL]))
    [call] = first.tool_calls
    assert (call.name, call.arguments, first.finish_reason) == ("look", {"where": "up"}, "tool_calls")
    turn = said("assistant", "", tool_calls=[LLMToolCall(id=call.id, name="look", arguments=call.arguments)])
    result = said("tool", "clouds", tool_call_id=call.id)
    second = await client.generate(request(question, turn, result, tools=[TOOL]))
    assert (second.content, second.finish_reason) == ("Clouds.", "stop")


@pytest.mark.parametrize("kind", ["openai", "anthropic"])  # aimock's Ollama ends every answer with "stop"
async def test_a_cut_answer_says_so(client: ChatClient) -> None:
    answer = await client.generate(request(said("user", "long")))
    assert (answer.content, answer.finish_reason) == ("and so on", "length")


@every_kind
async def test_a_scripted_failure_is_told_apart_and_not_repeated(client: ChatClient, aimock: Aimock) -> None:
    await aimock.fail_next(429)
    with pytest.raises(RateLimitError):
        await client.generate(request(said("user", "The capital?")))
    assert (await client.generate(request(said("user", "The capital?")))).content == "Paris"
    assert len(await aimock.journal()) == 2


@every_kind
async def test_chaos_is_never_an_answer(client: ChatClient, aimock: Aimock) -> None:
    for chaos in ({"drop": 1.0}, {"malformed": 1.0}, {"disconnect": 1.0}, {"rate_limit": 1.0}):
        await aimock.chaos(**chaos)
        with pytest.raises(ProviderError) as caught:
            await client.generate(request(said("user", "The capital?")))
        assert isinstance(caught.value, ProviderUnavailableError | RateLimitError)
        assert caught.value.retryable


def told(outcome: Completion | ProviderError) -> dict[str, Any]:
    """All that a caller can see of an outcome, but ids, which aimock and LangChain draw anew."""
    if isinstance(outcome, ProviderError):
        return {name: value for name, value in vars(outcome).items() if name != "headers"} | {"kind": outcome.kind}
    calls = [call.model_dump(exclude={"id"}) for call in outcome.tool_calls]
    return asdict(replace(outcome, tool_calls=(), headers={})) | {"calls": calls}


CASES: list[tuple[str, int | None]] = [
    ("The capital?", None),
    ("look", None),
    ("long", None),
    ("nothing that it knows", None),
]
CASES += [("The capital?", status) for status in (400, 401, 429, 500, 503)]


@every_kind
async def test_both_transports_tell_the_same(aimock: Aimock, kind: str) -> None:
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for transport in ("lean", "sdk"):
        clients = LangChainClients()
        client = clients.connect(deployment(kind, base_url(aimock.url, kind), transport=transport))
        outcomes[transport] = []
        for text, status in CASES:
            if status is not None:
                await aimock.fail_next(status)
            asked = request(said("user", text), tools=[TOOL] if text == "look" else None, request_id="r")
            try:
                outcomes[transport].append(told(await client.generate(asked)))
            except ProviderError as error:
                outcomes[transport].append(told(error))
        await clients.aclose()
    assert outcomes["lean"] == outcomes["sdk"]
