"""Answers in a format from aimock, whose idea of the three APIs is not ours."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fakes.aimock import Aimock
from fakes.deployments import CANARY, KINDS, MODELS, base_url, said
from llm_gateway import LLMGateway, LLMRequest

FIXTURES: list[dict[str, Any]] = [
    {"match": {"userMessage": "does not fit"}, "response": {"content": '{"name": "Oslo", "people": 700000}'}},
    {"match": {"userMessage": "native"}, "response": {"content": '{"name": "Oslo", "people": "many"}'}},
    {
        "match": {"userMessage": "tool"},
        "response": {"toolCalls": [{"name": "City", "arguments": '{"name": "Oslo", "people": 7}', "id": "call_1"}]},
    },
]


class City(BaseModel):
    """A city."""

    name: str
    people: int


async def test_an_answer_is_mended_and_a_tool_answers_at_each_provider_over_both_transports() -> None:
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        for transport in ("lean", "sdk"):
            providers = {
                kind: {"base_url": base_url(aimock.url, kind), "api_key": CANARY, "transport": transport}
                for kind in KINDS
            }
            models = {kind: {"provider": kind, "model": MODELS[kind]} for kind in KINDS}
            models |= {
                f"{kind}-tool": {"provider": kind, "model": MODELS[kind], "structured_output": "tool"}
                for kind in KINDS
                if kind != "ollama"
            }
            config = {"providers": providers, "models": models, "logs": {"dir": False}}
            async with LLMGateway(config) as gateway:
                questions = {name: "by tool" if name.endswith("tool") else "native" for name in models}
                answers = await gateway.batch(
                    LLMRequest(model=name, messages=[said("user", text)], response_format=City)
                    for name, text in questions.items()
                )
            for answer in answers:
                by_tool = answer.model.endswith("tool")
                assert answer.parsed == City(name="Oslo", people=7 if by_tool else 700000)
                assert answer.receipt is not None
                assert answer.receipt.attempts == (1 if by_tool else 2)
