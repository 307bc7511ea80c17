"""What ChatOllama calls: `chat` of Ollama's SDK, over connections of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

import ollama
from yarl import URL

from llm_gateway.clients.lean.call import Record, Records, streamed
from llm_gateway.clients.lean.coding import decode_object
from llm_gateway.clients.lean.faults import error_event
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.records import JsonLines
from llm_gateway.clients.lean.seams import Seam

DEFAULT_PORT = 11434
# What ChatOllama must have for this to stand under it.
FIELDS = ("_async_client",)
SEAM: Seam = {"_agenerate": ("messages", "stop", "run_manager"), "_chat_params": ("messages", "stop")}
MESSAGE_FIELDS = frozenset(ollama.Message.model_fields)


class Chat:
    """Stands where ChatOllama holds the SDK's client."""

    def __init__(self, http: Http, target: Target) -> None:
        self._http = http
        self._target = target

    async def chat(
        self, *, messages: Iterable[Mapping[str, Any]], tools: Iterable[Any] = (), whole: bool = False, **fields: Any
    ) -> AsyncIterator[Record]:
        """Return what iterates over the parts of the answer; over one part, the whole answer, if `whole`.

        The answer is streamed all the same, so that a model which works on it for long is not taken for a dead one.
        """
        body = {name: value for name, value in fields.items() if value is not None}
        body["messages"] = [_message(each) for each in messages]
        body["tools"] = list(tools or ())
        parts = await streamed(self._http, self._target, body, JsonLines(), _part)
        return _in_one(parts) if whole else parts


def address(host: str) -> str:
    """Return the URL of a host as Ollama writes them: without a scheme it is http, and its port 11434."""
    if "://" in host:
        return host.rstrip("/")
    url = URL(f"http://{'127.0.0.1' if host.startswith(':') else ''}{host}")
    return str(url if url.explicit_port else url.with_port(DEFAULT_PORT)).rstrip("/")


def _message(message: Mapping[str, Any]) -> Record:
    """Return a message as the SDK sends it: without what is empty, and calls of tools without ids."""
    sent = {name: value for name, value in message.items() if value and name in MESSAGE_FIELDS}
    if "tool_calls" in sent:
        sent["tool_calls"] = [{"function": call["function"]} for call in sent["tool_calls"]]
    return sent


def _part(data: bytes) -> tuple[Record, bool]:
    part = decode_object(data)
    if part.get("error"):
        raise error_event(part)
    return part, part.get("done") is True


async def _in_one(parts: Records) -> AsyncGenerator[Record, None]:
    """Yield one part that says what all of them say: for LangChain, each part costs as much as a whole answer."""
    text: list[str] = []
    thinking: list[str] = []
    calls: list[Any] = []
    logprobs: list[Any] = []
    last: Record = {}
    async with parts:
        async for last in parts:
            message = last.get("message") or {}
            text.append(message.get("content") or "")
            thinking.append(message.get("thinking") or "")
            calls += message.get("tool_calls") or ()
            logprobs += last.get("logprobs") or ()
    said = {"role": "assistant", "content": "".join(text), "thinking": "".join(thinking), "tool_calls": calls}
    yield last | {"message": said} | ({"logprobs": logprobs} if logprobs else {})
