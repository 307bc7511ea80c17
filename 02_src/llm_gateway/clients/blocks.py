"""Content blocks: which of them a model's profile denies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llm_gateway.errors import InvalidRequestError
from llm_gateway.models import LLMMessage

# What the profile calls the input of each type of block.
INPUTS = {
    "image": "image_inputs",
    "image_url": "image_inputs",
    "audio": "audio_inputs",
    "input_audio": "audio_inputs",
    "video": "video_inputs",
    "file": "pdf_inputs",
    "document": "pdf_inputs",
}


def check(messages: Iterable[LLMMessage], profile: Mapping[str, Any], model: str) -> None:
    """Raise InvalidRequestError for a block without a type, and for one that the profile explicitly denies."""
    for number, message in enumerate(messages):
        if isinstance(message.content, str):
            continue
        for place, block in enumerate(message.content):
            field = f"messages[{number}].content[{place}]"
            kind = block.get("type")
            if not isinstance(kind, str):
                reason = "a block without 'type'; text is {'type': 'text', 'text': …}."
                raise InvalidRequestError(reason, field=field, record="LLMRequest")
            if profile.get(INPUTS.get(kind, "")) is False:
                reason = f"'{model}' takes no block of type '{kind}'; leave it out, or ask a model that does."
                raise InvalidRequestError(reason, field=field, record="LLMRequest")
