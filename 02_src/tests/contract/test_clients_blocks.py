"""Pictures and files on their way to each provider, in both transports; and what is kept of them: nothing."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, base_url, connected, request, said
from fakes.emulator import Emulator
from llm_gateway import LLMGateway, LLMMessage, LLMRequest
from llm_gateway.clients.telling import told
from llm_gateway.errors import InvalidRequestError
from llm_gateway.events import Event, RequestDone

DATA = base64.b64encode(bytes(range(256)) * 40).decode()
PICTURE = {"type": "image", "base64": DATA, "mime_type": "image/png"}
FILE = {"type": "file", "base64": DATA, "mime_type": "application/pdf", "filename": "a.pdf"}
WORDS = {"type": "text", "text": "What is this?"}


def sent(body: dict[str, Any], kind: str) -> list[Any]:
    """What stands in the place of pictures and files in a provider's payload."""
    message = body["messages"][-1]
    if kind == "ollama":
        return list(message["images"])
    return [part for part in message["content"] if part["type"] != "text"]


PICTURES: dict[str, Any] = {
    "openai": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    "ollama": DATA,
}
FILES: dict[str, Any] = {
    "openai": {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}},
    "anthropic": {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": DATA},
    },
}


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["standard", "openai"])
async def test_a_picture_reaches_the_provider_in_its_own_form(emulator: Emulator, kind: str, form: str) -> None:
    block = PICTURE if form == "standard" else PICTURES["openai"]
    async with connected(emulator, kind) as client:
        asked = request(said("user", [WORDS, block]))
        client.check(asked)
        await client.generate(asked)
    assert sent(emulator.ledger[0].body, kind) == [PICTURES[kind]]


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("kind", FILES)
async def test_a_file_reaches_the_provider_in_its_own_form(emulator: Emulator, kind: str) -> None:
    async with connected(emulator, kind) as client:
        asked = request(said("user", [WORDS, FILE]))
        client.check(asked)
        await client.generate(asked)
    [block] = sent(emulator.ledger[0].body, kind)
    assert {name: block[name] for name in FILES[kind]} == FILES[kind]


@pytest.mark.parametrize("kind", ["file", "audio", "video"])
async def test_ollama_says_what_it_has_no_place_for(emulator: Emulator, kind: str) -> None:
    async with connected(emulator, "ollama") as client:
        with pytest.raises(
            InvalidRequestError, match=rf"content\[1\]: 'm' takes no block of type '{kind}'; leave it out"
        ):
            client.check(request(said("user", [WORDS, {**FILE, "type": kind}])))


class Prompts:
    """Keeps what is told of prompts."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def observe(self, event: Event, /) -> None:
        if isinstance(event, RequestDone):
            self.seen.append(event.prompt)


async def test_a_picture_stands_in_no_journal_and_no_event_also_where_texts_are_asked_for(emulator: Emulator) -> None:
    prompts = Prompts()
    endpoint = {"base_url": base_url(emulator.url, "openai"), "api_key": CANARY}
    config = {"providers": {"openai": endpoint}, "logs": {"text": True}}
    async with LLMGateway(config, observers=[prompts]) as gateway:
        message = LLMMessage(role="user", content=[WORDS, PICTURE, FILE, PICTURES["openai"]])
        await gateway.request(LLMRequest(model="gpt-4o-mini", messages=[message]))
    journal = "".join(path.read_text() for path in Path("04_logs/gateway").iterdir())
    assert "What is this?" in journal
    for text in (journal, json.dumps(prompts.seen)):
        assert DATA[:40] not in text
        assert f"[{len(DATA)} characters]" in text


def test_what_is_told_of_a_message_is_its_words_and_how_much_else_there_is() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": "w" * 500},
        {"type": "media", "data": b"123", "mime_type": "audio/wav"},
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "tool_result", "content": [{"type": "image", "base64": "AAAA"}, "short"]},
        {"type": "x", "many": ["y" * 300, 5]},
    ]
    assert told(LLMMessage(role="user", content=blocks))["content"] == [
        {"type": "text", "text": "w" * 500},
        {"type": "media", "data": "[3 bytes]", "mime_type": "audio/wav"},
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image_url", "image_url": {"url": "[26 characters]"}},
        {"type": "tool_result", "content": [{"type": "image", "base64": "[4 characters]"}, "short"]},
        {"type": "x", "many": ["[300 characters]", 5]},
    ]
    assert told(LLMMessage(role="user", content="plain")) == {"role": "user", "content": "plain"}
