"""The flex lane on the wire, over both transports."""

from __future__ import annotations

import pytest

from fakes.deployments import connected, request
from fakes.emulator import Emulator
from fakes.emulator.script import Reply
from llm_gateway.clients.base import Completion
from llm_gateway.errors import ProviderOverloadedError

NO_ROOM = {"error": {"message": "Resource unavailable.", "type": "server_error", "code": "resource_unavailable"}}


async def asked(emulator: Emulator, **options: float) -> Completion:
    async with connected(emulator, "openai", model="gpt-5-mini", **options) as client:
        return await client.generate(request(lane="flex"))


@pytest.mark.usefixtures("transport")
async def test_a_flex_call_names_its_tier_and_its_cached_tokens_are_counted(emulator: Emulator) -> None:
    emulator.script(Reply(usage={"input": 100, "output": 7, "cache_read": 60, "reasoning": 3}))
    answer = await asked(emulator)
    assert emulator.ledger[0].body["service_tier"] == "flex"
    assert "timeout" not in emulator.ledger[0].body
    assert answer.price_lane is None  # served as it was asked for
    assert answer.usage is not None
    assert (answer.usage.cache_read_tokens, answer.usage.reasoning_tokens) == (60, 3)


@pytest.mark.usefixtures("transport")
async def test_a_flex_call_waits_longer_than_others(emulator: Emulator) -> None:
    emulator.script(Reply(latency=0.4))
    assert (await asked(emulator, timeout=0.1)).content == "ok"


@pytest.mark.usefixtures("transport")
async def test_no_room_is_no_rate_limit(emulator: Emulator) -> None:
    emulator.script(Reply(status=429, error=NO_ROOM))
    with pytest.raises(ProviderOverloadedError) as caught:
        await asked(emulator)
    assert caught.value.status == 429


@pytest.mark.usefixtures("transport")
async def test_a_streamed_flex_call_is_one_too(emulator: Emulator) -> None:
    async with connected(emulator, "openai", model="gpt-5-mini") as client:
        pieces = [piece async for piece in client.stream(request(lane="flex"))]
    assert emulator.ledger[0].body["service_tier"] == "flex"
    assert isinstance(pieces[-1], Completion)
    assert pieces[-1].price_lane is None


async def test_an_answer_of_another_tier_says_so(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakes.emulator.openai import OpenAI

    envelope = OpenAI._envelope
    monkeypatch.setattr(OpenAI, "_envelope", lambda *told: envelope(*told) | {"service_tier": "default"})
    assert (await asked(emulator)).price_lane == "standard"
