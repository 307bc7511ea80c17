"""Texts to vectors over real HTTP, at each provider that has embedding models, in both transports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.deployments import CANARY, base_url, connected, request
from fakes.emulator import Call, Emulator, Reply, Usage
from fakes.emulator.dialect import vector_of
from llm_gateway import LLMGateway
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import (
    AuthenticationError,
    ConfigurationError,
    IncompleteResponseError,
    InvalidRequestError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitError,
    RequestRejectedError,
)
from llm_gateway.models import EmbeddingRequest, LLMMessage, TokenUsage

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", ["openai", "ollama"])
PATHS = {"openai": "/v1/embeddings", "ollama": "/api/embed"}


def texts(*given: str) -> EmbeddingRequest:
    messages = [LLMMessage(role="user", content=text) for text in given]
    return EmbeddingRequest(model="m", messages=messages, request_id="r")


def vectors_of(*given: str) -> list[list[float]]:
    return [vector_of(text).tolist() for text in given]


@every_kind
async def test_texts_come_back_as_vectors_in_their_order_with_the_usage(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(usage=Usage(input=17)))
    async with connected(emulator, kind, embedding=True) as client:
        answer = await client.generate(texts("aa", "b", "c a"))
    assert answer.vectors == vectors_of("aa", "b", "c a")
    assert answer.usage == TokenUsage(input_tokens=17)
    [call] = emulator.ledger
    assert (call.path, call.key, call.body["input"]) == (PATHS[kind], CANARY, ["aa", "b", "c a"])


@every_kind
async def test_options_reach_the_provider(emulator: Emulator, kind: str) -> None:
    async with connected(emulator, kind, embedding=True, model="some", options={"dimensions": 4}) as client:
        await client.generate(texts("a"))
    body = emulator.ledger[0].body
    assert (body["model"], body["dimensions"]) == ("some", 4)


async def test_a_server_that_sends_numbers_is_read_as_well(emulator: Emulator) -> None:
    options = {"model_kwargs": {"encoding_format": "float"}}
    async with connected(emulator, "openai", embedding=True, options=options) as client:
        answer = await client.generate(texts("aa", "b"))
    assert answer.vectors == vectors_of("aa", "b")


@every_kind
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=400), RequestRejectedError),
        (Reply(status=401), AuthenticationError),
        (Reply(status=429, headers={"retry-after": "3"}), RateLimitError),
        (Reply(status=503), ProviderUnavailableError),
        (Reply(fault="reset"), ProviderUnavailableError),
        (Reply(fault="bad_json"), IncompleteResponseError),
        (Reply(fault="html"), IncompleteResponseError),
        (Reply(fault="empty_object"), IncompleteResponseError),
    ],
    ids=["400", "401", "429", "503", "reset", "bad json", "html", "empty"],
)
async def test_failures_are_those_of_every_call(
    emulator: Emulator, kind: str, reply: Reply, error: type[Exception]
) -> None:
    emulator.script(reply)
    async with connected(emulator, kind, embedding=True) as client:
        with pytest.raises(error) as caught:
            await client.generate(texts("a secret prompt"))
    assert getattr(caught.value, "retry_after", None) == (3.0 if reply.status == 429 else None)
    assert CANARY not in f"{caught.value!r}"
    assert len(emulator.ledger) == 1  # nobody below repeats it


@every_kind
async def test_a_provider_that_says_nothing_times_out(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(fault="stall"))
    async with connected(emulator, kind, embedding=True, timeout=0.2) as client:
        with pytest.raises(ProviderTimeoutError):
            await client.generate(texts("a"))


@every_kind
async def test_a_cancelled_call_leaves_the_provider(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(latency=600.0))
    async with connected(emulator, kind, embedding=True) as client:
        call = asyncio.create_task(client.generate(texts("a")))
        await emulator.arrived(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await emulator.settled()
    assert emulator.ledger[0].disconnected


async def test_a_request_for_words_is_refused_before_it_is_sent(emulator: Emulator) -> None:
    async with connected(emulator, "openai", embedding=True) as client:
        with pytest.raises(
            InvalidRequestError, match=r"^LLMRequest.model: 'm' is configured with `embedding` and makes"
        ):
            client.check(request())


@pytest.mark.parametrize("kind", ["anthropic", "llamacpp"])
async def test_who_has_no_embedding_models_says_so_at_once(emulator: Emulator, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^Configuration key models.m.embedding: .* use another provider"):
        async with connected(emulator, kind, embedding=True):
            pass


async def test_the_gateway_puts_callers_together_and_parts_them_again(emulator: Emulator) -> None:
    def answer(call: Call) -> Reply | None:
        return Reply(status=400) if "bad" in call.body["input"] else None

    emulator.answer = answer
    config: dict[str, Any] = {
        "logs": {"dir": False},
        "providers": {"openai": {"base_url": base_url(emulator.url, "openai"), "api_key": CANARY}},
        "models": {"e": {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}},
    }
    async with LLMGateway(config) as gateway:
        asked = [gateway.embed([text], model="e") for text in ("a", "b", "bad", "c")]
        first, second, third, fourth = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(third, RequestRejectedError)
    found = [each.vectors for each in (first, second, fourth) if not isinstance(each, BaseException)]
    assert found == [vectors_of("a"), vectors_of("b"), vectors_of("c")]
    assert emulator.ledger[0].body["input"] == ["a", "b", "bad", "c"]
    assert len(emulator.ledger) == 5


async def test_any_other_provider_is_asked_through_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding

    from fakes.deployments import deployment

    seen: list[Any] = []

    def init(model: str, **options: Any) -> DeterministicFakeEmbedding:
        seen.append((model, options))
        return DeterministicFakeEmbedding(size=3)

    monkeypatch.setattr("langchain.embeddings.init_embeddings", init)
    client = LangChainClients().connect(deployment("cohere", None, model="embed-v4", embedding=True))
    answer = await client.generate(texts("a", "b"))
    assert [len(vector) for vector in answer.vectors or ()] == [3, 3]
    assert answer.usage is None
    assert seen == [("embed-v4", {"provider": "cohere", "api_key": CANARY})]
