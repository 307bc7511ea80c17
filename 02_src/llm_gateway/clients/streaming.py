"""A streamed answer: told piece by piece, put together at the end, and let go of when its reader leaves."""

from __future__ import annotations

import asyncio
import json
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.messages.ai import UsageMetadata

from llm_gateway.clients.failures import chain
from llm_gateway.clients.text import PairedText, readable
from llm_gateway.models import ReasoningDelta, StreamDelta, TextDelta, ToolCallDelta

# Content blocks that hold no reasoning, so that nobody need translate them to find some.
PLAIN_BLOCKS = {"text", "tool_use", "input_json_delta", "function_call", "tool_call_chunk"}


async def unwind(chunks: AsyncIterator[object]) -> None:
    """End a stream of LangChain's that may have more to come; its connection is closed when this returns.

    Its generators are nested, and closing the outermost leaves the inner ones, and with them the connection, to the
    garbage collector. But a cancel that finds them waiting for the wire unwinds them all, from the innermost. So what
    is there already is read on, by a task that is cancelled where it would have to wait.
    """
    if getattr(chunks, "ag_frame", None) is None:
        return  # it has ended

    async def read_on() -> None:
        async for _ in chunks:
            pass

    reading = asyncio.create_task(read_on())
    asyncio.get_running_loop().call_soon(reading.cancel)  # after its first step, which takes what is there
    reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved: nobody asks for it
    await asyncio.wait([reading])


def let_go(error: BaseException) -> None:
    """Clear the local variables of all that ended with `error`: among them is the connection it was reading from."""
    for each in chain(error):
        traceback.clear_frames(each.__traceback__)


@dataclass(slots=True)
class _Call:
    """A tool call that is coming in."""

    index: int
    id: str
    name: str | None = None  # None: nobody has heard of it yet
    arguments: list[str] = field(default_factory=list)

    def named(self, name: str) -> ToolCallDelta:
        """Return the first piece, with all that came before the name."""
        self.name = name
        text = readable("".join(self.arguments))
        return ToolCallDelta(index=self.index, id=readable(self.id), name=readable(name), arguments=text)


class Assembly:
    """Takes the chunks of one answer: says what each brings, and at the end what they make together."""

    def __init__(self) -> None:
        self._text = PairedText()
        self._reasoning = PairedText()
        self._whole: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_Call] = []
        self._open: dict[int | None, _Call] = {}  # by the provider's own index
        self._metadata: dict[str, Any] = {}
        self._usages: list[UsageMetadata] = []

    def take(self, message: AIMessage) -> Iterator[StreamDelta]:
        """Return the pieces that a chunk brings, or that a whole message does, from a model that cannot stream."""
        chunk = message if isinstance(message, AIMessageChunk) else _as_chunk(message)
        self._metadata.update({key: value for key, value in chunk.response_metadata.items() if value is not None})
        if chunk.usage_metadata is not None:
            self._usages.append(chunk.usage_metadata)
        if reasoning := self._reasoning.add(_reasoning_of(chunk)):
            yield ReasoningDelta(reasoning)
        if text := self._text.add(str(chunk.text)):
            self._whole.append(text)
            yield TextDelta(text)
        if refusal := chunk.additional_kwargs.get("refusal"):
            self._refusal.append(str(refusal))
            if not self._whole:  # `messages.completion_of` takes it for the content then
                yield TextDelta(readable(str(refusal)))
        for piece in chunk.tool_call_chunks:
            yield from self._tool_call(piece["index"], piece["id"], piece["name"], piece["args"] or "")

    def _tool_call(
        self, place: int | None, call_id: str | None, name: str | None, arguments: str
    ) -> Iterator[ToolCallDelta]:
        call = self._open.get(place)
        # Some servers give all calls one index, or none, and some repeat the id in every piece.
        begins = call is None or (call_id and call_id != call.id) or (place is None and name)
        if call is None or begins:
            call = _Call(len(self._calls), call_id or f"call_{uuid.uuid4().hex}")
            self._calls.append(call)
            self._open[place] = call
        call.arguments.append(arguments)
        if call.name is not None:
            yield ToolCallDelta(index=call.index, arguments=readable(arguments))
        elif name:
            yield call.named(name)

    @property
    def usages(self) -> Sequence[UsageMetadata]:
        """What the chunks told of tokens, in their order."""
        return self._usages

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the chunks told besides; of each thing, what was told last."""
        return self._metadata

    def rest(self) -> Iterator[StreamDelta]:
        """Return what waited for a continuation that did not come."""
        if reasoning := self._reasoning.rest():
            yield ReasoningDelta(reasoning)
        if text := self._text.rest():
            self._whole.append(text)
            yield TextDelta(text)
        for call in self._calls:
            if call.name is None:
                yield call.named("")

    def message(self, usage: UsageMetadata | None) -> AIMessage:
        """Return the answer as a call that does not stream would have got it."""
        calls: list[ToolCall] = []
        broken: list[InvalidToolCall] = []
        for call in self._calls:
            text = "".join(call.arguments)
            arguments = _parsed(text)
            if isinstance(arguments, dict):
                calls.append(ToolCall(name=call.name or "", args=arguments, id=call.id))
            else:
                broken.append(
                    InvalidToolCall(type="invalid_tool_call", name=call.name, args=text, id=call.id, error=None)
                )
        return AIMessage(
            content="".join(self._whole),
            tool_calls=calls,
            invalid_tool_calls=broken,
            response_metadata=self._metadata,
            usage_metadata=usage,
            additional_kwargs={"refusal": "".join(self._refusal)} if self._refusal else {},
        )


def _as_chunk(message: AIMessage) -> AIMessageChunk:
    return AIMessageChunk(**message.model_dump(exclude={"type"}))


def _reasoning_of(chunk: AIMessageChunk) -> str:
    told = chunk.additional_kwargs.get("reasoning_content")
    if isinstance(told, str):
        return told
    content = chunk.content
    if isinstance(content, str) or all(isinstance(each, str) or each.get("type") in PLAIN_BLOCKS for each in content):
        return ""
    return "".join(str(each.get("reasoning") or "") for each in chunk.content_blocks if each["type"] == "reasoning")


def _parsed(arguments: str) -> Any:
    """Return the arguments of a tool call, as LangChain reads them from a whole answer; None if they are no JSON."""
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments, strict=False) or {}
    except (ValueError, RecursionError):
        return None
