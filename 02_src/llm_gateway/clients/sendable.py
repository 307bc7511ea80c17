"""Whether a request can be written as JSON at all, told at admission, by the field that cannot."""

from __future__ import annotations

import json
from typing import Any

from llm_gateway.clients.text import lone_surrogate
from llm_gateway.errors import InvalidRequestError
from llm_gateway.formats import schema_of
from llm_gateway.models import LLMMessage, LLMRequest

REMEDY = "such a text cannot be encoded; replace it, as text.encode('utf-8', 'replace').decode() does."


def check(request: LLMRequest, *, json_only: bool = True) -> None:
    """Raise InvalidRequestError for what cannot be sent.

    A plain text costs next to nothing, anything nested one pass of the JSON encoder. `json_only` False lets values
    pass that JSON does not have: some packages take the bytes of an image.
    """
    for number, message in enumerate(request.messages):
        content = message.content
        if isinstance(content, str):
            if not content.isascii():
                _check_text(content, f"messages[{number}].content")
        else:
            for place, block in enumerate(content):
                _check_value(block, f"messages[{number}].content[{place}]", json_only=json_only)
        if message.tool_calls or message.tool_call_id:
            _check_calls(message, f"messages[{number}]")
    for number, tool in enumerate(request.tools or ()):
        _check_text(tool.description, f"tools[{number}].description")
        _check_value(tool.input_schema, f"tools[{number}].input_schema")
    for number, word in enumerate(request.stop or ()):
        _check_text(word, f"stop[{number}]")
    if request.response_format is not None:
        _check_value(schema_of(request.response_format), "response_format")


def _check_calls(message: LLMMessage, field: str) -> None:
    _check_text(message.tool_call_id or "", f"{field}.tool_call_id")
    for number, call in enumerate(message.tool_calls or ()):
        _check_text(call.id, f"{field}.tool_calls[{number}].id")
        _check_text(call.name, f"{field}.tool_calls[{number}].name")
        _check_value(call.arguments, f"{field}.tool_calls[{number}].arguments")


def _check_text(text: str, field: str) -> None:
    if text.isascii():
        return
    place = lone_surrogate(text)
    if place is not None:
        _refuse(f"holds a lone surrogate at character {place}; {REMEDY}", field)


def _check_value(value: Any, field: str, *, json_only: bool = True) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=not json_only, default=None if json_only else repr)
    except RecursionError:
        _refuse("nests too deep to be sent; flatten it.", field)
    except (TypeError, ValueError) as error:
        _refuse(f"cannot be written as JSON: {str(error).rstrip('.')}.", field)
    else:
        if not text.isascii() and lone_surrogate(text) is not None:
            _refuse(f"holds a lone surrogate; {REMEDY}", field)


def _refuse(reason: str, field: str) -> None:
    raise InvalidRequestError(reason, field=field, record="LLMRequest") from None
