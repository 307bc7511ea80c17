"""Our records as LangChain's messages, and LangChain's answer as a Completion."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel

from llm_gateway.clients.base import Completion
from llm_gateway.clients.text import readable, readable_tree
from llm_gateway.models import LLMMessage, LLMTool, LLMToolCall, TokenUsage

# The providers' words for why an answer ended, in lower case. Any other word is passed on as it is.
FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}
# Where the partner packages put that word, and the Responses API its `status`.
FINISH_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason")
CACHE_WRITES = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
MOST_TOKENS = 10**9  # a count beyond it is none


class UnreadableAnswerError(Exception):
    """The provider's answer came whole, but is none: translated into IncompleteResponseError."""


def langchain_messages(messages: Iterable[LLMMessage]) -> list[BaseMessage]:
    """Return the conversation in LangChain's classes; contents are shared, not copied."""
    return [_message(each) for each in messages]


def _message(message: LLMMessage) -> BaseMessage:
    content: Any = message.content
    if type(content) is str and message.role in PLAIN and not message.tool_calls:
        return _plain(message.role, content)
    match message.role:
        case "user":
            return HumanMessage(content)
        case "system":
            return SystemMessage(content)
        case "tool":
            return ToolMessage(content, tool_call_id=message.tool_call_id)
        case "assistant":
            calls = [
                {"type": "tool_call", "id": call.id, "name": call.name, "args": call.arguments}
                for call in message.tool_calls or ()
            ]
            return AIMessage(content, tool_calls=calls)


PLAIN: Mapping[str, BaseMessage] = {
    "user": HumanMessage(""),
    "system": SystemMessage(""),
    "assistant": AIMessage(""),
}
# Of the fields of each, those that two messages must not share.
OWN: Mapping[str, Sequence[tuple[str, type]]] = {
    role: [(name, type(value)) for name, value in message.__dict__.items() if type(value) in (dict, list)]
    for role, message in PLAIN.items()
}


def _plain(role: str, text: str) -> BaseMessage:
    """Return LangChain's message of a role that is a text alone: like its constructor's, in a tenth of the time.

    A record of ours was validated when it was made, and a long conversation has many messages.
    """
    model = PLAIN[role]
    fields = model.__dict__.copy()
    for name, empty in OWN[role]:
        fields[name] = empty()
    fields["content"] = text
    message = object.__new__(type(model))
    object.__setattr__(message, "__dict__", fields)
    object.__setattr__(message, "__pydantic_fields_set__", model.__pydantic_fields_set__.copy())
    object.__setattr__(message, "__pydantic_extra__", model.__pydantic_extra__)
    object.__setattr__(message, "__pydantic_private__", model.__pydantic_private__)
    return message


def langchain_tools(tools: Iterable[LLMTool]) -> list[dict[str, Any]]:
    """Return tools in the one form that every partner package's `bind_tools` reads whole."""
    return [{"name": tool.name, "description": tool.description, "parameters": tool.input_schema} for tool in tools]


def completion_of(message: AIMessage, *, needs_reason: bool) -> Completion:
    """Read an answer. Raises UnreadableAnswerError for one that ends without a reason or with broken tool calls."""
    reason = _finish_reason(message.response_metadata)
    if reason is None and needs_reason:
        raise UnreadableAnswerError("it ends without a finish reason")
    calls = tuple(_tool_calls(message, cut=reason == "length"))
    content = message.content if isinstance(message.content, str) else str(message.text)
    if calls and reason in {"stop", None}:
        reason = "tool_calls"
    refusal = message.additional_kwargs.get("refusal")
    if refusal:
        content, reason = content or str(refusal), "refusal"
    return Completion(content=readable(content), tool_calls=calls, finish_reason=reason, usage=_usage(message))


def _finish_reason(metadata: Mapping[str, Any]) -> str | None:
    word = next((metadata[key] for key in FINISH_KEYS if metadata.get(key)), None)
    if word is None:
        word = metadata.get("status")
        if word == "incomplete":
            word = (metadata.get("incomplete_details") or {}).get("reason")
    if not word:
        return None
    return FINISH_REASONS.get(str(word).lower(), readable(str(word)))


def _tool_calls(message: AIMessage, *, cut: bool) -> Iterable[LLMToolCall]:
    for call in message.tool_calls:
        yield _tool_call(call["id"], call["name"], call["args"])
    for broken in message.invalid_tool_calls:
        name = broken["name"] or "unnamed"
        if not (broken["args"] or "").strip():  # how some servers write "no arguments"
            yield _tool_call(broken["id"], name, {})
        elif not cut:  # what `max_tokens` cut off is broken as it must be
            raise UnreadableAnswerError(f"the arguments of its call of tool '{name}' are no JSON object")


def _tool_call(call_id: str | None, name: str, arguments: dict[str, Any]) -> LLMToolCall:
    try:
        clean = readable_tree(arguments)
    except RecursionError:
        raise UnreadableAnswerError(f"the arguments of its call of tool '{name}' nest too deep") from None
    # Some servers give no id; the result of the call needs one to refer to.
    return LLMToolCall(id=readable(call_id or _new_call_id()), name=readable(name), arguments=clean)


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _usage(message: AIMessage) -> TokenUsage | None:
    counted: Mapping[str, Any] | None = message.usage_metadata
    if counted is None:
        return None
    parts: dict[str, list[object]] = {
        "input_tokens": [counted["input_tokens"]],
        "output_tokens": [counted["output_tokens"]],
    }
    into: Mapping[str, Any] = counted.get("input_token_details") or {}
    if any(into.values()):  # mostly there are none
        parts["cache_read_tokens"] = [_part(into, "cache_read")]
        # Anthropic tells either the sum or its parts by lifetime; LangChain then leaves the sum at 0.
        parts["cache_write_tokens"] = [_part(into, name) for name in CACHE_WRITES]
        parts["cache_write_1h_tokens"] = [_part(into, "ephemeral_1h_input_tokens")]
    out: Mapping[str, Any] = counted.get("output_token_details") or {}
    if any(out.values()):
        parts["reasoning_tokens"] = [_part(out, "reasoning")]
    return usage_of(**parts)


def usage_of(**parts: Iterable[object]) -> TokenUsage | None:
    """Return the usage whose counts are the sums of their parts; None, unknown, if one cannot be a count of tokens."""
    counts: dict[str, int] = {}
    for name, values in parts.items():
        count = 0
        for value in values:
            if not is_count(value):
                return None
            count += value
        counts[name] = count
    return TokenUsage(**counts)


def is_count(value: object) -> TypeGuard[int]:
    """Tell whether a provider's number can be a count of tokens."""
    return type(value) is int and 0 <= value <= MOST_TOKENS


def plausible(usage: Any) -> bool:
    """Tell whether all that an SDK's usage record counts in tokens are counts. LangChain stumbles over what is none."""
    for name, value in dict(usage).items():
        if value is None or is_count(value):
            continue
        if isinstance(value, BaseModel | dict):
            if not plausible(value):
                return False
        elif name.endswith("_tokens"):
            return False
    return True


def _part(details: Mapping[str, Any], name: str) -> object:
    """Return a count that OpenAI's service tiers put a prefix to."""
    return details.get(name) or details.get(f"flex_{name}") or details.get(f"priority_{name}") or 0
