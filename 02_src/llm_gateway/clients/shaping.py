"""How a model is made to answer in a format: by its provider, by a tool that it must call, or by being told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from langchain_core.messages import AIMessage

from llm_gateway.clients.base import Completion
from llm_gateway.errors import InvalidRequestError
from llm_gateway.formats import ResponseFormat, asked_schema, name_of, rooted
from llm_gateway.models import LLMMessage, LLMRequest, LLMTool, StreamDelta, TextDelta, ToolCallDelta

Way = Literal["native", "tool", "prompt"]
"""The provider enforces the schema; the model must call a tool that takes it; the prompt has it."""

DESCRIPTION = "Give the answer by calling this tool, once you have all that you need for it."
TOLD = "Give your final answer as JSON that fits this JSON schema, and write nothing else:\n{schema}"
SECOND_NAME = "_as_asked"  # behind the name of the answer's tool where another tool has that name


@dataclass(slots=True)
class AnswerTool:
    """The tool whose call is the answer of one call of a model: takes it out of what comes, and puts text there."""

    name: str
    _index: int | None = None  # of its call in the stream

    def mended(self, message: AIMessage) -> AIMessage:
        """Return a message in which the answer is text also where its JSON is broken, so that it can be judged."""
        broken = [call for call in message.invalid_tool_calls if call["name"] == self.name]
        if not broken or message.tool_calls:
            return message
        others = [call for call in message.invalid_tool_calls if call["name"] != self.name]
        text = broken[0]["args"] or ""
        return message.model_copy(update={"content": text, "invalid_tool_calls": others})

    def answer(self, completion: Completion) -> Completion:
        """Return an answer by call as one by text; where it calls other tools too, those go first."""
        own = [call for call in completion.tool_calls if call.name == self.name]
        others = tuple(call for call in completion.tool_calls if call.name != self.name)
        if others or not own:
            return replace(completion, tool_calls=others)
        text = json.dumps(own[0].arguments, ensure_ascii=False)
        reason = "stop" if completion.finish_reason == "tool_calls" else completion.finish_reason
        return replace(completion, content=text, tool_calls=(), finish_reason=reason)

    def deltas(self, pieces: Iterable[StreamDelta]) -> Iterator[StreamDelta]:
        """Return the pieces of a stream, those of the answer's call as text."""
        for piece in pieces:
            if isinstance(piece, ToolCallDelta):
                if piece.name == self.name and self._index is None:
                    self._index = piece.index
                if piece.index == self._index:
                    if piece.arguments:
                        yield TextDelta(piece.arguments)
                    continue
            yield piece


def as_tool(request: LLMRequest, given: ResponseFormat) -> tuple[LLMRequest, AnswerTool]:
    """Return a request that is answered by the call of a tool, beside its own tools if it has some.

    Raises InvalidRequestError for a schema that is not an object's.
    """
    schema = rooted(asked_schema(given))
    if schema.get("type") != "object":
        reason = (
            "this model answers in a format by a tool's arguments, so its schema must be that of an object; put what "
            "you ask for into a property of one."
        )
        raise InvalidRequestError(reason, field="response_format", record="LLMRequest")
    tools = list(request.tools or ())
    name = name_of(given)
    if any(tool.name == name for tool in tools):
        name = f"{name[: -len(SECOND_NAME)] if len(name) > 64 - len(SECOND_NAME) else name}{SECOND_NAME}"
    # One of the request's own that must be called is called; else none but the answer's is left when it has no say.
    chosen = request.tool_choice
    free = bool(tools) and chosen in {None, "auto", "any"}
    choice = "any" if free else name if chosen in {None, "auto", "any", "none"} else chosen
    tool = LLMTool(name=name, description=str(schema.get("description") or DESCRIPTION), input_schema=schema)
    sent = {"tools": [*tools, tool], "tool_choice": choice, "response_format": None}
    return request.model_copy(update=sent), AnswerTool(name)


def as_prompt(request: LLMRequest, given: ResponseFormat) -> LLMRequest:
    """Return a request that tells the model what its answer must look like."""
    told = TOLD.format(schema=json.dumps(asked_schema(given), ensure_ascii=False))
    first, *rest = request.messages
    if first.role == "system" and isinstance(first.content, str):
        messages = [LLMMessage(role="system", content=f"{first.content}\n\n{told}"), *rest]
    else:
        messages = [LLMMessage(role="system", content=told), *request.messages]
    return request.model_copy(update={"messages": messages, "response_format": None})


def shaped(request: LLMRequest, way: Way) -> tuple[LLMRequest, AnswerTool | None]:
    """Return a request as the model is to be asked, and the tool by which it answers. Raises InvalidRequestError."""
    given = request.response_format
    if given is None or way == "native":
        return request, None
    return as_tool(request, given) if way == "tool" else (as_prompt(request, given), None)
