"""What the emulator sends in a stream, frame by frame, and where its faults come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fakes.emulator import Emulator, Reply, ToolCall
from fakes.emulator.script import STREAM_FAULTS, Fault

QUESTION = [{"role": "user", "content": "Hello?"}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": QUESTION}),
    "anthropic": ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": QUESTION}),
    "ollama": ("/api/chat", {"model": "llama3.2", "messages": QUESTION}),
}
every_api = pytest.mark.parametrize("api", BODIES)
TEXT = "one two three four"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def ask(session: aiohttp.ClientSession, emulator: Emulator, api: str) -> Any:
    path, body = BODIES[api]
    return session.post(emulator.url + path, json=body | {"stream": True})


def data_of(line: bytes) -> dict[str, Any]:
    try:
        found: Any = json.loads(line.removeprefix(b"data: "))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def text_of(raw: bytes) -> str:
    """The text of all events, of whichever API."""
    text = ""
    for data in map(data_of, raw.splitlines()):
        text += str(data.get("delta", {}).get("text") or "")
        message = data.get("message")
        text += str(message.get("content") or "") if "done" in data and isinstance(message, dict) else ""
        for choice in data.get("choices", []):
            text += str(choice.get("delta", {}).get("content") or "")
    return text


@every_api
@pytest.mark.parametrize(
    ("fault", "after"),
    [
        (fault, after)
        for fault in sorted(STREAM_FAULTS - {"stall", "reset"})
        for after in range(4 if fault == "bad_json" else 5)  # it breaks the next piece
    ],
)
async def test_a_fault_comes_after_as_many_pieces_as_was_asked(
    emulator: Emulator, session: aiohttp.ClientSession, api: str, fault: Fault, after: int
) -> None:
    emulator.script(Reply(text=TEXT, fault=fault, after=after))
    raw = b""
    try:
        async with ask(session, emulator, api) as response:
            async for piece in response.content.iter_any():
                raw += piece
        assert fault != "cut_body"
    except aiohttp.ClientPayloadError:
        assert fault == "cut_body"
    words = TEXT.replace(" ", "| ").split("|")
    expected = "".join(words[:after])
    if fault == "odd_event":
        expected = TEXT
    elif fault == "bad_json":
        expected = "".join(words[:after] + words[after + 1 :])
    assert text_of(raw) == expected
    [call] = emulator.ledger
    await emulator.settled()
    assert call.finished == (fault != "cut_body")
    if fault in {"cut_body", "error_event", "no_finish"}:
        assert call.pieces == after


@every_api
async def test_a_stall_keeps_the_rest_back_until_the_client_leaves(
    emulator: Emulator, session: aiohttp.ClientSession, api: str
) -> None:
    emulator.script(Reply(text=TEXT, fault="stall", after=2))
    raw = b""
    async with ask(session, emulator, api) as response:
        while text_of(raw) != "one two":
            raw += await response.content.readany()
        [call] = emulator.ledger
        assert (call.pieces, call.ended) == (2, False)
    await emulator.settled()
    assert call.disconnected


@every_api
async def test_a_reset_may_come_in_the_middle(emulator: Emulator, session: aiohttp.ClientSession, api: str) -> None:
    emulator.script(Reply(text=TEXT, fault="reset", after=2))
    with pytest.raises(aiohttp.ClientError):
        async with ask(session, emulator, api) as response:
            await response.read()
    await emulator.settled()
    [call] = emulator.ledger
    assert (call.status, call.pieces, call.finished) == (200, 2, False)


@every_api
async def test_the_ledger_counts_pieces_of_text_reasoning_and_arguments(
    emulator: Emulator, session: aiohttp.ClientSession, api: str
) -> None:
    calls = (ToolCall(name="look", args='{"a": "b c"}'),) if api != "ollama" else (ToolCall(name="look", args={}),)
    emulator.script(Reply(text="one two", reasoning="Well then .", tool_calls=calls))
    async with ask(session, emulator, api) as response:
        raw = await response.read()
    assert b"Well" in raw
    assert text_of(raw) == "one two"
    [call] = emulator.ledger
    assert call.pieces == 3 + 2 + (1 if api == "ollama" else 3)


@every_api
async def test_with_a_pace_frames_come_one_by_one(emulator: Emulator, session: aiohttp.ClientSession, api: str) -> None:
    emulator.script(Reply(text=TEXT, pace=30.0))
    async with ask(session, emulator, api) as response:
        assert await response.content.readany()
        await asyncio.sleep(0)
        [call] = emulator.ledger
        assert not call.ended
    await emulator.settled()
    assert call.disconnected


@pytest.mark.parametrize(("api", "closing"), [("openai", b"[DONE]"), ("anthropic", b"message_stop")])
async def test_the_event_that_closes_a_stream_can_be_left_out(
    emulator: Emulator, session: aiohttp.ClientSession, api: str, closing: bytes
) -> None:
    emulator.script(Reply(fault="no_last_event"), Reply())
    raws = []
    for _ in range(2):
        async with ask(session, emulator, api) as response:
            raws.append(await response.read())
    assert closing not in raws[0]
    assert closing in raws[1]
    assert raws[0].count(b"stop") >= 1


def test_a_place_in_the_stream_needs_a_fault_that_can_be_there() -> None:
    with pytest.raises(ValueError, match="after=1 needs a fault that comes in the middle, not 'html'"):
        Reply(fault="html", after=1)


async def test_more_pieces_than_the_answer_has_is_a_mistake_of_the_test(
    emulator: Emulator, session: aiohttp.ClientSession
) -> None:
    emulator.script(Reply(text="one", fault="error_event", after=2))
    async with ask(session, emulator, "openai") as response:
        assert response.status == 500
