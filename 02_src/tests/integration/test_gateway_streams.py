"""Streams of the whole gateway that break, at each provider's API, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, MODELS, base_url
from fakes.emulator import Emulator, Reply
from llm_gateway import LLMGateway, LLMMessage, LLMRequest, LLMResponse, StreamInterruptedError

TEXT = "an answer of five words"
QUESTION = LLMRequest(model="m", messages=[LLMMessage(role="user", content="hi")], max_tokens=50)
PATIENCE = {"stall": 0.6}  # seconds of silence after which a call has failed


def gateway_at(emulator: Emulator, kind: str, folder: Path, fault: str) -> LLMGateway:
    timeout = PATIENCE.get(fault, 20.0)
    section = {"base_url": base_url(emulator.url, kind), "api_key": CANARY, "timeout": timeout}
    model = {"provider": kind, "model": MODELS[kind], "limits": {"tpm": 100_000, "charge": "actual"}}
    config = {
        "providers": {kind: section},
        "models": {"m": model},
        "retry": {"base_delay": 0.0},
        "logs": {"dir": str(folder)},
    }
    return LLMGateway(config)


def ended(gateway: LLMGateway) -> list[dict[str, Any]]:
    assert gateway.log_path is not None
    lines = [json.loads(line) for line in gateway.log_path.read_bytes().splitlines()]
    return [line for line in lines if line["event"] == "item_done"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cut_body", "error_event", "no_finish"])
async def test_a_stream_that_breaks_before_its_first_piece_is_asked_again(
    emulator: Emulator, tmp_path: Path, kind: str, fault: Any
) -> None:
    emulator.script(Reply(text=TEXT, fault=fault, after=0), Reply(text=TEXT))
    async with gateway_at(emulator, kind, tmp_path, fault) as gateway:
        whole = [piece async for piece in gateway.stream(QUESTION)][-1]
    assert isinstance(whole, LLMResponse)
    assert (whole.content, len(emulator.ledger)) == (TEXT, 2)
    (line,) = ended(gateway)
    assert (line["outcome"], line["attempt"]) == ("ok", 2)
    assert line["time_to_first_token"] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["cut_body", "stall", "error_event", "no_finish"])
async def test_a_stream_that_breaks_later_is_told_with_what_came_and_leaves_nothing_reserved(
    emulator: Emulator, tmp_path: Path, kind: str, fault: Any
) -> None:
    emulator.script(Reply(text=TEXT, fault=fault, after=2), Reply(text=TEXT))
    async with gateway_at(emulator, kind, tmp_path, fault) as gateway:
        with pytest.raises(StreamInterruptedError) as caught:
            assert not [piece async for piece in gateway.stream(QUESTION)]
        await emulator.settled()
        stats = gateway.get_stats()
    assert caught.value.partial == "an answer"
    assert len(emulator.ledger) == 1
    assert stats["in_flight"] == 0
    assert stats["pace"]["m"]["limits"]["tokens"]["reserved"] == 0
    (line,) = ended(gateway)
    assert line["outcome"] != "ok"
    assert "an answer" not in json.dumps(line)
