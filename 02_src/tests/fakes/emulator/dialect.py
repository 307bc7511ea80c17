"""What the three APIs have in common: the seam between the server and the shape of an answer."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from fakes.emulator.limits import Standing
from fakes.emulator.script import Api, Call, Reply, ToolCall, Usage

Json = dict[str, Any]
MODELS = ("gpt-4o-mini", "claude-haiku-4-5", "claude-sonnet-4-5", "llama3.2")
CHARACTERS_PER_TOKEN = 4


class Piece(bytes):
    """A frame of a stream that carries text, reasoning or arguments; other frames are what the API needs around it."""

    __slots__ = ()


class Dialect(Protocol):
    """The words of one API. Stateless: the same call and reply give the same bytes."""

    api: Api
    stream_type: str  # content type of a stream
    required: tuple[str, ...]  # fields without which the real API answers 400

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return the whole answer as one body."""

    def frames(self, call: Call, reply: Reply) -> list[bytes]:
        """Return the answer as the pieces of a stream, the terminal ones included."""

    def error_frame(self, call: Call, reply: Reply) -> bytes:
        """Return the event that ends a stream in an error."""

    def odd_frame(self) -> bytes:
        """Return an event that is JSON, and is none of this API."""

    def error(self, call: Call, status: int, message: str | None = None) -> Json:
        """Return the body that the provider sends with that status, with its own message if none is given."""

    def limited(self, call: Call, resource: str, standing: Standing, *, too_large: bool) -> Json:
        """Return the body of a 429 for `resource`, "requests" or one of the tokens."""

    def headers(self, call: Call) -> dict[str, str]:
        """Return the headers of every answer."""

    def limit_headers(self, standings: Mapping[str, Standing]) -> dict[str, str]:
        """Return the headers that tell where each limited resource stands."""

    def models(self) -> Json:
        """Return the list of models."""


def pieces(text: str) -> list[str]:
    """Split a text as a stream would: word by word, nothing lost."""
    return re.findall(r"\s*\S+|\s+$", text)


def usage_of(call: Call, reply: Reply) -> Usage:
    """Return the usage that the reply names, filled up with an estimate from the lengths of the texts."""
    written = len(reply.text) + sum(len(tool["name"]) + len(arguments(tool)) for tool in reply.tool_calls)
    estimate = Usage(
        input=estimated_input(call.body),
        output=max(1, written // CHARACTERS_PER_TOKEN),
        cache_read=0,
        cache_write=0,
        cache_write_1h=0,
        reasoning=0,
    )
    return estimate | (reply.usage or {})


def estimated_input(body: Any) -> int:
    """Estimate the tokens of a prompt from its characters, tools included."""
    if not isinstance(body, dict):
        return 1
    prompt = [body.get(name) for name in ("system", "messages", "tools", "input") if name in body]
    return max(1, len(orjson.dumps(prompt)) // CHARACTERS_PER_TOKEN)


def vector_of(text: str) -> array[float]:
    """Return a short vector that tells its text from others."""
    return array("f", [len(text), text.count("a"), ord(text[0]), 0.5])


def arguments(tool: ToolCall) -> str:
    """Return the arguments of a tool call as JSON text, a string as it stands."""
    args = tool["args"]
    return args if isinstance(args, str) else orjson.dumps(args).decode()


def arguments_object(tool: ToolCall) -> Any:
    """Return the arguments of a tool call as the object that Anthropic and Ollama send."""
    args = tool["args"]
    return args if isinstance(args, str) else dict(args)
