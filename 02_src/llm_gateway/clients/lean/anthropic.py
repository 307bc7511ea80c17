"""What ChatAnthropic calls: Anthropic's messages, over connections of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from anthropic import types

from llm_gateway.clients.lean.call import Record, Records, answered, streamed
from llm_gateway.clients.lean.coding import decode_object
from llm_gateway.clients.lean.faults import error_event
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.records import Events
from llm_gateway.clients.lean.seams import Seam

# The SDK's own records: LangChain reads events by their attributes, and what is missing in one by its default.
EVENTS: Mapping[str, Any] = {
    "message_start": types.RawMessageStartEvent,
    "message_delta": types.RawMessageDeltaEvent,
    "content_block_start": types.RawContentBlockStartEvent,
    "content_block_delta": types.RawContentBlockDeltaEvent,
    "content_block_stop": types.RawContentBlockStopEvent,
}
# What ChatAnthropic must have for this to stand under it.
SEAM: Seam = {"_acreate": ("payload",), "_format_output": ("data",), "_agenerate": ("messages", "stop", "run_manager")}
LAST = "message_stop"
TOO_LONG = ("prompt is too long",)  # LangChain looks for it; the API has no code that says so
# Arguments of the SDK that are no part of the body; and betas, which have records of their own.
NOT_OURS = frozenset({"betas", "user_profile_id", "workspace_id", "timeout"})


class Fields(dict[str, Any]):
    """A JSON object whose members are attributes as well, as in the SDK's records."""

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Fields(value) if type(value) is dict else value

    def model_dump(self) -> Record:
        """Return the object; LangChain takes it apart, and nobody else holds it."""
        return self

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return a copy with some members changed."""
        return type(self)({**self, **update})


class Messages:
    """Takes the payloads of ChatAnthropic."""

    def __init__(self, http: Http, target: Target) -> None:
        self._http = http
        self._target = target

    @staticmethod
    def takes(payload: Record) -> bool:
        """Tell whether a payload is one that needs nothing else of the SDK."""
        return NOT_OURS.isdisjoint(payload)

    async def create(self, payload: Record) -> RawAnswer:
        """Return a message, or its events if the payload asks for a stream."""
        if payload.get("stream"):
            return RawAnswer(await streamed(self._http, self._target, payload, Events(), _event))
        return RawAnswer(Fields(await answered(self._http, self._target, payload)))


class RawAnswer:
    """Stands for the SDK's raw response."""

    def __init__(self, answer: Fields | Records) -> None:
        self._answer = answer

    def parse(self) -> Fields | Records:
        """Return the answer."""
        return self._answer


def _event(data: bytes) -> tuple[Any, bool]:
    event = decode_object(data)
    kind = event.get("type")
    if kind == "error":
        raise error_event(event)
    record = EVENTS.get(str(kind))
    return record.construct(**event) if record else None, kind == LAST
