"""Provider batches behind a plain await, over real clients: the emulator's two APIs, and aimock's `/v1/batches`."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest

from fakes.aimock import Aimock
from fakes.emulator import Emulator
from fakes.emulator.batches import COMPLETED, Fate, answer_to
from fakes.emulator.script import Reply
from fakes.provider import QUIET, ask
from llm_gateway import GatewayClosedError, LLMGateway, LLMRequest, LLMResponse
from llm_gateway.clients.base import Completion
from llm_gateway.errors import RequestRejectedError
from llm_gateway.models import LLMToolCall

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
KEY = "sk-canary-0123456789"
QUICK = {"max_wait": 0.005, "poll": 0.001}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def over(emulator: Emulator, kind: str, **more: Any) -> LLMGateway:
    url = emulator.url if kind == "anthropic" else f"{emulator.url}/v1"
    model = {"provider": kind, "model": MODELS[kind], "price": {"input": 1.0, "output": 2.0}, "limits": False}
    config = {
        **QUIET,
        "providers": {kind: {"base_url": url, "api_key": KEY}},
        "models": {"m": model},
        "retry": {"base_delay": 0.0},
        "provider_batches": QUICK,
    }
    return LLMGateway({**config, **more})


def some(count: int, **fields: Any) -> list[LLMRequest]:
    return [ask(f"r{n}", model="m", text=f"q{n}", lane="batch", **fields) for n in range(1, count + 1)]


def told(outcome: object) -> tuple[Any, ...]:
    assert isinstance(outcome, LLMResponse)
    assert outcome.receipt is not None
    return outcome.content, outcome.receipt.price_lane, outcome.receipt.cost_usd, outcome.receipt.attempts


async def test_a_list_is_answered_by_one_batch_of_the_provider(emulator: Emulator, kind: str) -> None:
    async with over(emulator, kind, budgets={"total": 1.0}) as gateway:
        answers = await gateway.batch(some(5, max_tokens=100))
        budget = gateway.get_stats()["budgets"]["the gateway"]
    assert [told(answer) for answer in answers] == [
        (answer_to(f"q{n}"), "batch", pytest.approx(10e-6), 1) for n in range(1, 6)
    ]
    assert [len(made.lines) for made in emulator.batches.made] == [5]
    assert (budget["spent"], budget["reserved"]) == (pytest.approx(50e-6), pytest.approx(0.0))
    assert emulator.ledger == []


async def test_every_fate_of_a_row_reaches_its_own_caller(emulator: Emulator, kind: str) -> None:
    provider = emulator.batches
    provider.path = lambda made: ("in_progress", "expired") if made.id == "batch_1" else COMPLETED
    fates: dict[str, Fate] = {"-1": "ok", "-2": "expired", "-3": "refused", "-4": "broken", "-5": "garbage"}
    provider.fate = lambda name, state: fates[name[-2:]] if state == "expired" else "twice"
    provider.fail = {"create": [(429, False)], "look": [(500, False)]}
    async with over(emulator, kind) as gateway:
        outcomes = await gateway.batch(some(5), return_exceptions=True)
    assert isinstance(outcomes[2], RequestRejectedError)
    assert KEY not in str(outcomes[2])
    attempts = [told(outcome)[3] for outcome in outcomes if isinstance(outcome, LLMResponse)]
    assert attempts == [1, 2, 2, 2]
    assert provider.paid == Counter({"q1": 1, "q2": 1, "q4": 1, "q5": 2})


async def test_a_batch_that_was_made_though_the_call_failed_is_found(emulator: Emulator, kind: str) -> None:
    emulator.batches.fail = {"create": [(500, True)]}
    async with over(emulator, kind) as gateway:
        answers = await gateway.batch(some(3))
    assert [told(answer)[3] for answer in answers] == [1, 1, 1]
    assert len(emulator.batches.made) == 1


async def test_a_format_is_asked_for_and_read_as_in_a_call(emulator: Emulator, kind: str) -> None:
    schema = {"title": "label", "type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    emulator.default = Reply(text='{"label": "a"}')
    async with over(emulator, kind) as gateway:
        [asked] = some(1, response_format=schema)
        direct = await gateway.request(asked.model_copy(update={"lane": "standard"}))
        batched = await gateway.request(asked)  # whose batches answer with no JSON
    assert direct.parsed == batched.parsed == {"label": "a"}
    assert told(batched)[1] == "standard"
    assert told(batched)[3] == 3
    line = emulator.batches.made[-1].lines[0]
    body = emulator.ledger[0].body
    sent = line.get("body", line.get("params"))
    assert sent == {name: value for name, value in body.items() if name != "stream"}


async def test_a_format_that_a_tool_has_to_take_is_text_for_the_caller(emulator: Emulator, kind: str) -> None:
    schema = {"title": "label", "type": "object", "properties": {"label": {"type": "string"}}}
    [asked] = some(1, response_format=schema)
    model = {"provider": kind, "model": MODELS[kind], "structured_output": "tool"}
    async with over(emulator, kind, models={"m": model}) as gateway:
        line = gateway.batch_line("m")
        assert line is not None
        [tool] = orjson.loads(line.client.line("i-1", asked) or b"")["body" if kind == "openai" else "params"]["tools"]
        name = tool["function"]["name"] if kind == "openai" else tool["name"]
        called = Completion(content="", tool_calls=(LLMToolCall(id="1", name=name, arguments={"label": "a"}),))
        assert line.client.finished(asked, called).content == '{"label": "a"}'
        plain = Completion(content="text")
        assert line.client.finished(some(1)[0], plain) is plain


async def test_a_shutdown_cancels_the_batch_at_the_provider(emulator: Emulator, kind: str) -> None:
    emulator.batches.path = lambda _made: ("in_progress",) * 10_000
    gateway = over(emulator, kind)
    asking = asyncio.create_task(gateway.batch(some(2), return_exceptions=True))
    while "look" not in emulator.batches.steps:  # noqa: ASYNC110 - it knows no events
        await asyncio.sleep(0.001)
    await gateway.shutdown(0.0)
    assert [type(each) for each in await asking] == [GatewayClosedError] * 2
    assert emulator.batches.steps[-1] == "cancel"
    assert emulator.batches.made[0].states == ["cancelling", "cancelled"]


async def test_a_batch_that_somebody_else_wrote_answers_too() -> None:
    fixtures = [{"match": {"userMessage": "question"}, "response": {"content": "an answer"}}]
    async with Aimock.serve(fixtures=fixtures) as aimock:
        providers = {"openai": {"base_url": f"{aimock.url}/v1", "api_key": KEY}}
        async with LLMGateway({**QUIET, "providers": providers, "provider_batches": QUICK}) as gateway:
            asked = [ask(f"r{n}", text=f"question {n}", lane="batch") for n in range(20)]
            answers = await gateway.batch(asked)
        paths = [entry["path"] for entry in await aimock.journal()]
    assert {told(answer)[:2] for answer in answers} == {("Mock batch completion", "batch")}
    assert paths.count("/v1/batches") == 1
    assert "/v1/chat/completions" not in paths
