"""LangChain's messages as the gateway's, and the gateway's answers as LangChain's."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk

from llm_gateway.errors import InvalidRequestError
from llm_gateway.models import (
    LLMMessage,
    LLMResponse,
    LLMToolCall,
    ReasoningDelta,
    StreamDelta,
    TextDelta,
    new_request_id,
)

Blocks = list[dict[str, Any]]
ROLES: dict[str, Literal["user", "assistant", "system"]] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}
# What an assistant's turn holds besides what it said: calls stand in `tool_calls`, and no provider takes the
# reasoning of another back.
UNSAID = {
    "tool_use",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "input_json_delta",
    "function_call",
    "reasoning",
    "reasoning_content",
    "thinking",
    "redacted_thinking",
}


def gateway_messages(messages: Sequence[BaseMessage]) -> list[LLMMessage]:
    """Return a conversation as the gateway takes it. Raises InvalidRequestError for a message that no model takes."""
    answered = {each.tool_call_id for each in messages if isinstance(each, ToolMessage)}
    return [_message(each, place, answered) for place, each in enumerate(messages)]


def _message(message: BaseMessage, place: int, answered: AbstractSet[str]) -> LLMMessage:
    if isinstance(message, HumanMessage):
        return LLMMessage(role="user", content=_shown(message.content))
    if isinstance(message, SystemMessage):
        return LLMMessage(role="system", content=_shown(message.content))
    if isinstance(message, ToolMessage):
        return LLMMessage(role="tool", content=_shown(message.content), tool_call_id=message.tool_call_id)
    if isinstance(message, AIMessage):
        calls = _calls(message, answered)
        return LLMMessage(role="assistant", content=_said(message.content), tool_calls=calls or None)
    role = ROLES.get(message.role) if isinstance(message, ChatMessage) else None
    if role is not None:
        return LLMMessage(role=role, content=_shown(message.content))
    what = f"role '{message.role}'" if isinstance(message, ChatMessage) else f"class {type(message).__name__}"
    reason = f"no model takes a message of {what}; leave it out, or make it one of those of LangChain's other classes."
    raise InvalidRequestError(reason, field=f"messages[{place}]", record="LLMRequest")


def _calls(message: AIMessage, answered: AbstractSet[str]) -> list[LLMToolCall]:
    calls = [
        LLMToolCall(id=call["id"] or new_request_id(), name=call["name"], arguments=call["args"])
        for call in message.tool_calls
    ]
    for broken in message.invalid_tool_calls:
        # A result must follow its call, and a call without a result makes a conversation invalid.
        if broken["id"] in answered:
            arguments = {"invalid_json": broken["args"] or ""}
            calls.append(LLMToolCall(id=broken["id"], name=broken["name"] or "unknown", arguments=arguments))
    return calls


def _shown(content: str | list[str | dict[str, Any]]) -> str | Blocks:
    """Return content that goes to a model: texts and whatever else there is, as LangChain's packages take it."""
    if isinstance(content, str):
        return content
    return [_block(each) for each in content] or ""


def _block(block: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if block.get("type") == "image" and isinstance(block.get("source"), dict):
        # Anthropic's own form, which Ollama's package does not read; LangChain's standard form is read by all.
        kept = {key: value for key, value in block.items() if key not in {"type", "source"}}
        [standard] = HumanMessage([{"type": "image", "source": block["source"]}]).content_blocks
        return {**standard, **kept}
    return block


def _said(content: str | list[str | dict[str, Any]]) -> str | Blocks:
    """Return what an assistant said, as text if it is nothing but text."""
    if isinstance(content, str):
        return content
    blocks = [_block(each) for each in content if isinstance(each, str) or each.get("type") not in UNSAID]
    if any(block.get("type") != "text" or "cache_control" in block for block in blocks):
        return blocks
    return "".join(str(block.get("text", "")) for block in blocks)


# --- answers --------------------------------------------------------------------------------------------------


def ai_message(response: LLMResponse) -> AIMessage:
    """Return an answer as LangChain has it; the receipt stands in `response_metadata`."""
    return AIMessage(
        content=response.content,
        tool_calls=[tool_call(id=each.id, name=each.name, args=each.arguments) for each in response.tool_calls or ()],
        usage_metadata=usage_metadata(response),
        response_metadata=response_metadata(response),
    )


def chunk_of(piece: StreamDelta | LLMResponse) -> AIMessageChunk:
    """Return a piece of a streamed answer; the whole answer at its end becomes the chunk that tells of it."""
    if isinstance(piece, TextDelta):
        return AIMessageChunk(content=piece.text)
    if isinstance(piece, ReasoningDelta):
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": piece.text})
    if isinstance(piece, LLMResponse):
        return AIMessageChunk(
            content="",
            usage_metadata=usage_metadata(piece),
            response_metadata=response_metadata(piece),
            chunk_position="last",
        )
    part = tool_call_chunk(id=piece.id, name=piece.name, args=piece.arguments, index=piece.index)
    return AIMessageChunk(content="", tool_call_chunks=[part])


def response_metadata(response: LLMResponse) -> dict[str, Any]:
    """Return why the answer ended, which model of the configuration gave it, and the receipt, as plain data."""
    return {
        "finish_reason": response.finish_reason,
        "model_name": response.model,
        "request_id": response.request_id,
        "receipt": None if response.receipt is None else response.receipt.model_dump(mode="json"),
    }


def usage_metadata(response: LLMResponse) -> UsageMetadata | None:
    """Return the tokens of an answer as LangChain counts them; None where the provider did not say."""
    usage = response.receipt.usage if response.receipt is not None else None
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(
            cache_read=usage.cache_read_tokens, cache_creation=usage.cache_write_tokens
        ),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning_tokens),
    )
