"""The flex lane: who goes there, who comes back, and what the receipt says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fakes.provider import FakeProvider, Recorder, ask, gateway_over, unavailable
from llm_gateway import ConfigurationError, InvalidRequestError, LLMGateway, RequestPriority
from llm_gateway.clients.base import Completion
from llm_gateway.errors import ProviderOverloadedError, ProviderTimeoutError
from llm_gateway.events import AttemptFailed, RequestDone, RetryScheduled
from llm_gateway.models import LLMRequest, LLMResponse
from llm_gateway.price_lanes import LaneChoice

LOW = RequestPriority.LOW
MODELS: dict[str, dict[str, Any]] = {
    "flexible": {"provider": "openai", "model": "gpt-5-mini", "price": {"input": 1.0, "output": 2.0}},
    "rigid": {"provider": "openai", "model": "gpt-4o-mini"},
}


def no_room() -> ProviderOverloadedError:
    return ProviderOverloadedError("resource unavailable", provider="openai", model="gpt-5-mini", status=429)


def over(provider: FakeProvider, lane: LaneChoice | None = None, observers: tuple[Recorder, ...] = ()) -> LLMGateway:
    lanes = {"lane": lane} if lane else {}
    return gateway_over(provider, observers=observers, models={**MODELS, "flexible": MODELS["flexible"] | lanes})


def lanes_of(provider: FakeProvider) -> list[str | None]:
    return [entry.request.lane for entry in provider.ledger]


async def answered(provider: FakeProvider, request: LLMRequest, lane: LaneChoice | None = None) -> LLMResponse:
    async with over(provider, lane) as gateway:
        return await gateway.request(request)


def told(response: LLMResponse) -> tuple[Any, ...]:
    receipt = response.receipt
    assert receipt is not None
    return receipt.price_lane, receipt.cost_usd, receipt.attempts


async def test_an_answer_of_the_flex_lane_costs_half() -> None:
    provider = FakeProvider()
    response = await answered(provider, ask("a", model="flexible", lane="flex"))
    assert lanes_of(provider) == ["flex"]
    assert told(response) == ("flex", pytest.approx(10e-6), 1)  # half of 10 · $1 + 5 · $2 a million
    assert told(await answered(FakeProvider(), ask("a", model="flexible"))) == ("standard", pytest.approx(20e-6), 1)


@pytest.mark.parametrize(
    ("priority", "configured", "asked", "lane"),
    [
        (LOW, "auto", None, "flex"),
        (None, "auto", None, "standard"),
        (LOW, "auto", "standard", None),
        (LOW, None, "auto", "flex"),
        (None, "flex", None, "flex"),
        (LOW, None, None, None),
    ],
)
async def test_a_request_goes_before_its_model_and_auto_is_for_low(
    priority: RequestPriority | None, configured: LaneChoice | None, asked: LaneChoice | None, lane: str | None
) -> None:
    provider = FakeProvider()
    await answered(provider, ask("a", priority, model="flexible", lane=asked), configured)
    sent = lanes_of(provider)[0]
    assert sent == lane or (lane is None and sent == asked)


async def test_no_room_in_the_flex_lane_costs_no_attempt_and_no_wait() -> None:
    recorder = Recorder()
    provider = FakeProvider(script=[no_room()], latency=lambda _: 1.0)
    async with over(provider, observers=(recorder,)) as gateway:
        response = await gateway.request(ask("a", model="flexible", lane="flex"))
        assert gateway.get_stats()["pace"]["flexible"]["gate"] == 0.0
    assert lanes_of(provider) == ["flex", "standard"]
    assert [entry.began for entry in provider.ledger] == [0.0, 1.0]
    assert told(response) == ("standard", pytest.approx(20e-6), 2)
    kinds = [type(event) for event in recorder.events]
    assert kinds.count(AttemptFailed) == kinds.count(RetryScheduled) == kinds.count(RequestDone) == 1


async def test_after_the_flex_lane_all_attempts_are_left() -> None:
    provider = FakeProvider(script=[no_room(), *[unavailable()] * 4])
    response = await answered(provider, ask("a", model="flexible", lane="flex"))
    assert lanes_of(provider) == ["flex", *["standard"] * 5]
    assert told(response)[2] == 6


async def test_an_answer_that_does_not_come_in_time_is_asked_for_in_the_standard_lane() -> None:
    late = ProviderTimeoutError("late", provider="openai", model="gpt-5-mini")
    provider = FakeProvider(script=[late])
    response = await answered(provider, ask("a", model="flexible", lane="flex"))
    assert lanes_of(provider) == ["flex", "standard"]
    assert told(response)[0] == "standard"


async def test_a_failure_of_another_kind_stays_in_the_flex_lane() -> None:
    provider = FakeProvider(script=[unavailable()])
    response = await answered(provider, ask("a", model="flexible", lane="flex"))
    assert lanes_of(provider) == ["flex", "flex"]
    assert told(response)[0] == "flex"


async def test_near_its_deadline_a_request_goes_in_the_standard_lane() -> None:
    provider = FakeProvider()
    async with over(provider) as gateway:
        await gateway.request(ask("late", model="flexible", lane="flex", deadline=599.0))
        await gateway.request(ask("early", model="flexible", lane="flex", deadline=600.0))
    assert lanes_of(provider) == ["standard", "flex"]


async def test_a_provider_that_serves_another_tier_is_paid_for_that() -> None:
    class Elsewhere(FakeProvider):
        async def generate(self, request: LLMRequest, /, deployment: str = "") -> Completion:
            return replace(await super().generate(request, deployment), price_lane="standard")

    assert told(await answered(Elsewhere(), ask("a", model="flexible", lane="flex")))[:2] == (
        "standard",
        pytest.approx(20e-6),
    )


async def test_a_caller_that_left_the_flex_lane_is_not_asked_for_again() -> None:
    provider = FakeProvider(script=[no_room()], latency=lambda _: 1.0)
    async with over(provider) as gateway:
        asking = asyncio.create_task(gateway.request(ask("a", model="flexible", lane="flex", deadline=1000.0)))
        await asyncio.sleep(0.5)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert len(provider.ledger) == 1


async def test_a_lane_that_the_model_has_not_is_refused_before_anything_is_sent() -> None:
    provider = FakeProvider()
    async with over(provider) as gateway:
        with pytest.raises(
            InvalidRequestError, match=r"LLMRequest\.lane: 'flex' is a lane of OpenAI's reasoning models"
        ):
            await gateway.request(ask("a", model="rigid", lane="flex"))
        with pytest.raises(InvalidRequestError, match="the client of model 'rigid' has no batches"):
            await gateway.request(ask("a", model="rigid", lane="batch"))
        await gateway.request(ask("a", LOW, model="rigid", lane="auto"))
    assert lanes_of(provider) == ["standard"]
    with pytest.raises(ConfigurationError, match=r"models\.rigid\.lane: 'flex' is a lane of OpenAI's reasoning models"):
        LLMGateway({"models": {"rigid": MODELS["rigid"] | {"lane": "flex"}}})
    with pytest.raises(ConfigurationError, match=r"models\.rigid\.lane"):
        LLMGateway({"models": {"rigid": MODELS["rigid"] | {"lane": "cheap"}}})
