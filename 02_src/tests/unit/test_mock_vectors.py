"""The mock's vectors: the same for the same text and seed, in whatever company."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from llm_gateway import EmbeddingError, InvalidRequestError, LLMMessage, LLMRequest, MockLLMGateway

MODELS = {"e": {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}}


def mock(**options: Any) -> MockLLMGateway:
    return MockLLMGateway({"models": MODELS}, **options)


async def test_a_text_has_the_same_vector_alone_and_among_others() -> None:
    async with mock() as gateway:
        alone = await gateway.embed(["red"], model="e")
        both, _ = await asyncio.gather(gateway.embed(["blue", "red"], model="e"), gateway.embed(["x"], model="e"))
    async with mock(seed=1) as other:
        elsewhere = await other.embed(["red"], model="e")
    assert alone.vectors[0] == both.vectors[1] != elsewhere.vectors[0]
    assert math.hypot(*alone.vectors[0]) == pytest.approx(1.0)
    assert len(alone.vectors[0]) == 64


async def test_its_length_is_what_the_models_options_say() -> None:
    models = {"e": {**MODELS["e"], "options": {"dimensions": 8}}}
    async with MockLLMGateway({"models": models}) as gateway:
        assert len((await gateway.embed(["red"], model="e")).vectors[0]) == 8


async def test_calls_are_counted_and_scripted_failures_hit_the_text_they_name() -> None:
    rules = {
        "rules": [{"match": {"contains": "bad"}, "replies": [{"error": {"status": 400}}]}],
        "default": {"content": ""},
    }
    async with mock(responses=rules) as gateway:
        with pytest.raises(EmbeddingError) as caught:
            await gateway.embed(["good", "bad", "fine"], model="e")
        assert sorted(caught.value.errors) == [1]
        gateway.assert_called(containing="fine", model="e")


async def test_a_price_is_found_in_the_list_and_a_receipt_has_it() -> None:
    async with mock() as gateway:
        answer = await gateway.embed(["some words of a text"] * 10, model="e")
    receipt = answer.receipt
    assert receipt is not None
    assert receipt.usage is not None
    assert receipt.cost_usd == pytest.approx(receipt.usage.input_tokens * 0.02 / 1e6)


async def test_words_are_not_asked_of_it() -> None:
    async with mock() as gateway:
        with pytest.raises(InvalidRequestError, match=r"makes vectors; ask it with gateway\.embed"):
            await gateway.request(LLMRequest(model="e", messages=[LLMMessage(role="user", content="hi")]))
