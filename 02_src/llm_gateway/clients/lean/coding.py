"""JSON on its way out and in: fast where that is possible, and exact everywhere."""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic_core import from_json

from llm_gateway.clients.messages import UnreadableAnswerError


def encode(value: Any) -> bytes:
    """Return `value` as JSON. Raises ValueError, TypeError or RecursionError for what JSON does not have."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a number beyond 64 bits, a key that is no text; the standard library knows what to do
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def decode(text: bytes) -> Any:
    """Return what a JSON text says. Raises UnreadableAnswerError, without a word of the text."""
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:  # half a surrogate pair, deep nesting, a BOM; or no JSON at all
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableAnswerError("it is no JSON") from None


def decode_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a text is. Raises UnreadableAnswerError for anything else."""
    value = decode(text)
    if not isinstance(value, dict):
        raise UnreadableAnswerError("it is no JSON object")
    return value
