"""GatewayEmbeddings: parameters, order, priority, and calls that wait, from any thread."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.provider import Recorder
from llm_gateway import (
    EmbeddingError,
    GatewayError,
    InvalidRequestError,
    MockLLMGateway,
    RequestPriority,
    UnknownModelError,
)
from llm_gateway.events import RequestDone
from llm_gateway.integrations.langchain import GatewayEmbeddings
from llm_gateway.integrations.loops import background_loop

CONFIG = {"models": {"e": {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}}}
REFUSED = {"rules": [{"match": {"contains": "bad"}, "reply": {"error": {"kind": "rejected"}}}], "default": {}}


async def test_texts_of_many_callers_go_in_one_call_and_come_back_in_order() -> None:
    async with MockLLMGateway(CONFIG) as gateway:
        made = gateway.as_langchain_embeddings("e")
        one, two, query = await asyncio.gather(
            made.aembed_documents(["a", "b"]), made.aembed_documents(["c"]), made.aembed_query("b")
        )
        assert await made.aembed_documents([]) == []
    assert len(gateway.calls) == 1
    assert one[1] == query
    assert [len(each) for each in (*one, *two)] == [64] * 3


async def test_priority_and_agent_are_its_own_or_inherited() -> None:
    heard = Recorder()
    async with MockLLMGateway(CONFIG, observers=[heard]) as gateway:
        await gateway.as_langchain_embeddings("e", priority=RequestPriority.LOW, agent="indexer").aembed_query("a")
        with gateway.as_langchain("claude-haiku", priority=RequestPriority.HIGH, agent="reporter").on_behalf():
            await gateway.as_langchain_embeddings("e").aembed_query("b")
    ended = [event for event in heard.events if isinstance(event, RequestDone)]
    assert [(each.priority, each.agent) for each in ended] == [
        (RequestPriority.LOW, "indexer"),
        (RequestPriority.HIGH, "reporter"),
    ]


def test_without_any_loop_calls_wait_for_their_vectors() -> None:
    gateway = MockLLMGateway(CONFIG)
    made = gateway.as_langchain_embeddings("e", deadline=60)
    assert made.embed_documents(["a", "b"])[1] == made.embed_query("b")
    assert gateway.loop is background_loop()
    made.close()
    with pytest.raises(GatewayError):
        made.embed_query("late")


async def test_inside_the_gateways_own_loop_a_call_that_waits_is_an_error_and_a_thread_may() -> None:
    async with MockLLMGateway(CONFIG) as gateway:
        made = gateway.as_langchain_embeddings("e")
        vector = await made.aembed_query("a")
        with pytest.raises(GatewayError, match="would wait for itself"):
            made.embed_query("a")
        assert await asyncio.to_thread(made.embed_query, "a") == vector


async def test_where_some_texts_fail_the_error_has_the_vectors_of_the_others() -> None:
    async with MockLLMGateway(CONFIG, responses=REFUSED) as gateway:
        with pytest.raises(EmbeddingError) as caught:
            await gateway.as_langchain_embeddings("e").aembed_documents(["good", "bad", "fine"])
    assert [each is None for each in caught.value.vectors] == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "claude-haiku"}, r"model: 'claude-haiku' answers requests; ask a model that is configured with"),
        ({"chunk_size": 5}, r"GatewayEmbeddings\.chunk_size: no parameter of this model"),
        (
            {"api_key": "sk-canary-1"},
            r"api_key: no parameter of this model; keys belong to the gateway's configuration",
        ),
        ({"timeout": -1}, r"deadline: -1"),
        ({"priority": "urgent"}, r"priority: "),
    ],
    ids=["no-vectors", "chunk-size", "key", "timeout", "priority"],
)
def test_what_it_does_not_take_is_one_sentence(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told) as caught:
        GatewayEmbeddings(**{"gateway": MockLLMGateway(CONFIG), "model": "e", **fields})
    assert "canary" not in str(caught.value)


def test_a_model_that_nobody_configured_is_told_at_once() -> None:
    with pytest.raises(UnknownModelError):
        MockLLMGateway(CONFIG).as_langchain_embeddings("f")
