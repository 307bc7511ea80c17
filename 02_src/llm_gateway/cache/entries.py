"""An answer as it is kept: a checksum, and JSON that is validated on its way out."""

from __future__ import annotations

from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_gateway.errors import InvalidRequestError
from llm_gateway.models import LLMResponse, LLMToolCall, TokenUsage

CHECKSUM = 16  # bytes
WHOLE = frozenset({"stop", "tool_calls"})  # finish reasons of answers that came to their own end


class KeptAnswer(BaseModel):
    """What is kept of a response: nothing of its request but the model's answer, and what that cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True, ser_json_inf_nan="constants")

    content: str
    tool_calls: list[LLMToolCall] | None
    finish_reason: str
    deployment: str
    usage: TokenUsage | None
    cost_usd: float | None


def kept_of(response: LLMResponse, model: str) -> KeptAnswer | None:
    """Return what is kept of a response to a request for `model`.

    None for what another request must not get: an answer that was cut off, filtered or is empty, or that a fallback
    gave in the place of the model that was asked.
    """
    receipt = response.receipt
    is_empty = not (response.content or response.tool_calls)
    if response.finish_reason not in WHOLE or response.model != model or is_empty or receipt is None:
        return None
    return KeptAnswer.model_construct(
        content=response.content,
        tool_calls=response.tool_calls,
        finish_reason=response.finish_reason,
        deployment=receipt.deployment,
        usage=receipt.usage,
        cost_usd=receipt.cost_usd,
    )


def encoded(key: bytes, answer: KeptAnswer) -> bytes | None:
    """Return the bytes that are kept under `key`; None for what cannot be written as JSON."""
    try:
        text = answer.model_dump_json(warnings="error").encode()
    except ValueError:  # half a surrogate pair, as a text that was cut in an emoji may hold
        return None
    return _checksum(key, text) + text


def decoded(key: bytes, body: bytes) -> KeptAnswer | None:
    """Return what `encoded` was given; None for what is damaged, or was kept under another key."""
    text = body[CHECKSUM:]
    if _checksum(key, text) != body[:CHECKSUM]:
        return None
    try:
        return KeptAnswer.model_validate_json(text)
    except (ValidationError, InvalidRequestError):
        return None


def _checksum(key: bytes, text: bytes) -> bytes:
    return blake2b(text, digest_size=CHECKSUM, key=key).digest()
