"""The journal of a real gateway: what stands in it, and what must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.provider import FakeProvider, ask
from llm_gateway import LLMGateway

CANARY, REPLY = "canary-prompt-4711", "canary-answer-4711"


class Gateway(LLMGateway):
    """The real gateway over a provider in this process."""

    _careful = False

    def _connect(self) -> FakeProvider:
        return FakeProvider(latency=lambda _: 0.0, script=[REPLY])


async def lines_about_a_canary(**logs: Any) -> list[dict[str, Any]]:
    gateway = Gateway({"logs": logs})
    response = await gateway.request(ask("r", text=CANARY))
    assert response.content == REPLY
    await gateway.shutdown()
    return lines_of(gateway.log_path)


def lines_of(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_gateway_that_does_nothing_leaves_the_folder_alone(tmp_path: Path) -> None:
    assert LLMGateway({}).log_path is None
    assert list(tmp_path.iterdir()) == []


async def test_no_text_of_a_prompt_or_an_answer_is_written_by_default() -> None:
    lines = await lines_about_a_canary()
    assert "canary" not in json.dumps(lines)
    events = [line["event"] for line in lines]
    assert events == ["batch_opened", "batch_closed", "item_done", "shutdown_began", "shutdown"]


async def test_text_that_was_asked_for_stands_in_its_two_fields_alone() -> None:
    lines = await lines_about_a_canary(text=True)
    places = {(line["event"], name) for line in lines for name, value in line.items() if "canary" in json.dumps(value)}
    assert places == {("item_done", "prompt"), ("item_done", "answer")}


async def test_a_gateway_whose_journal_cannot_be_written_answers_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "logs"
    place.write_text("")
    gateway = Gateway({"logs": {"dir": str(place)}})
    assert (await gateway.request(ask("r"))).content == REPLY
    await gateway.shutdown()
    assert gateway.log_path is None
    assert "cannot be written" in caplog.text
