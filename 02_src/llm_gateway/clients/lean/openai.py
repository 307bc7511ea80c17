"""What ChatOpenAI calls: `create` of OpenAI's chat completions, over connections of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_gateway.clients.lean.call import Record, Records, answered, streamed
from llm_gateway.clients.lean.coding import decode_object
from llm_gateway.clients.lean.faults import error_event
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.records import Events
from llm_gateway.clients.lean.seams import Seam
from llm_gateway.clients.transport import exchange

LAST = b"[DONE]"
# What LangChain looks for, here and at servers that speak this API, where no code or an odd one tells of a prompt that
# is too long.
TOO_LONG = (
    "context_length_exceeded",
    "prompt is too long",
    "Input tokens exceed the configured limit",
    "ContextWindowExceededError",
    "exceeds the context window",
)
# What ChatOpenAI must have for this to stand under it.
FIELDS = ("async_client", "root_async_client", "include_response_headers")
SEAM: Seam = {
    "_get_request_payload": ("input_", "stop"),
    "_create_chat_result": ("response", "generation_info"),
    "_use_responses_api": ("payload",),
    "_agenerate": ("messages", "stop", "run_manager"),
}


class Completions:
    """Stands where ChatOpenAI holds the SDK's `chat.completions`."""

    def __init__(self, http: Http, target: Target) -> None:
        self._http = http
        self._target = target

    @property
    def with_raw_response(self) -> RawCompletions:
        """The same, with the headers of the answer."""
        return RawCompletions(self)

    async def create(self, **payload: Any) -> Record | Records:
        """Return a completion, or its chunks if the payload asks for a stream: JSON objects both."""
        timeout = payload.pop("timeout", None)  # seconds without a byte; None: as the endpoint says
        if payload.get("stream"):
            return await streamed(self._http, self._target, payload, Events(), _chunk, timeout=timeout)
        return await answered(self._http, self._target, payload, timeout=timeout)


class RawCompletions:
    """Stands for the SDK's `with_raw_response`."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def create(self, **payload: Any) -> RawAnswer:
        """Return what `create` does, and the headers that came with it."""
        return RawAnswer(await self._completions.create(**payload))


class RawAnswer:
    """Stands for the SDK's raw response."""

    def __init__(self, answer: Record | Records) -> None:
        self._answer = answer
        self.headers: Mapping[str, str] = exchange.get().headers

    def parse(self) -> Record | Records:
        """Return the answer."""
        return self._answer


def _chunk(data: bytes) -> tuple[Record | None, bool]:
    if data.strip() == LAST:
        return None, True
    chunk = decode_object(data)
    if chunk.get("error"):
        raise error_event(chunk, TOO_LONG)
    return chunk, False
