"""Batches of the mock: answered by the same script, and at once."""

from __future__ import annotations

import pytest

from fakes.provider import ask
from llm_gateway import LLMResponse, MockLLMGateway, RequestPriority
from llm_gateway.errors import AuthenticationError, RequestRejectedError

MODELS = {"m": {"provider": "openai", "model": "gpt-4o-mini", "lane": "batch"}}


async def test_the_mock_answers_a_batch_as_it_answers_a_call() -> None:
    responses = {
        "rules": [
            {"match": {"contains": "locked"}, "reply": {"error": {"kind": "authentication"}}},
            {"match": {"contains": "known"}, "reply": "an answer"},
        ]
    }
    async with MockLLMGateway({"models": MODELS}, responses=responses) as gateway:
        asked = [ask(text, model="m", text=text) for text in ("known", "locked", "else")]
        answer, refused, unmatched = await gateway.batch(asked, return_exceptions=True)
        calls = [(call.request.request_id, call.outcome) for call in gateway.calls]
    assert isinstance(answer, LLMResponse)
    assert (answer.content, answer.receipt and answer.receipt.price_lane) == ("an answer", "batch")
    assert isinstance(refused, AuthenticationError)
    assert isinstance(unmatched, RequestRejectedError)
    assert "No rule of the mock fits" in str(unmatched)
    assert calls == [("known", "ok"), ("locked", "authentication"), ("else", "rejected")]


@pytest.mark.parametrize("model", ["gpt-4o-mini", "local-llama"])
async def test_auto_in_the_mock_takes_the_lane_that_the_provider_would_have(model: str) -> None:
    async with MockLLMGateway() as gateway:
        response = await gateway.request(ask("a", RequestPriority.LOW, model=model, lane="auto"))
    assert response.receipt is not None
    assert response.receipt.price_lane == ("batch" if model == "gpt-4o-mini" else "standard")
