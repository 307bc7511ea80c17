"""What logs and spans may hold of a message: its words, and of a picture or a file only how much there is of it."""

from __future__ import annotations

from typing import Any

from llm_gateway.models import LLMMessage

LONGEST = 200  # characters of a name, a media type or an address; what is longer is the thing itself
INLINE = "data:"  # how an address begins that holds what it points to
BARE = frozenset({"data", "base64", "file_data", "bytes"})  # members that hold it however short it is


def told(message: LLMMessage) -> dict[str, Any]:
    """Return a message as plain data, without the bytes of what is no text."""
    plain = message.model_dump(exclude_none=True)
    if not isinstance(message.content, str):
        plain["content"] = [_block(each) for each in message.content]
    return plain


def _block(block: dict[str, Any]) -> dict[str, Any]:
    if block.get("type") == "text":
        return block
    inner = block.get("content")
    if isinstance(inner, list):  # the result of a tool, in blocks
        return block | {"content": [_block(each) if isinstance(each, dict) else _short(each) for each in inner]}
    return {name: _short(value, bare=name in BARE) for name, value in block.items()}


def _short(value: Any, *, bare: bool = False) -> Any:
    match value:
        case bytes() | bytearray():
            return f"[{len(value)} bytes]"
        case str() if bare or len(value) > LONGEST or value.startswith(INLINE):
            return f"[{len(value)} characters]"
        case dict():
            return {name: _short(each, bare=name in BARE) for name, each in value.items()}
        case list():
            return [_short(each) for each in value]
        case _:
            return value
