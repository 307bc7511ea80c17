"""Records as JSON and back, and the fingerprint of what a request asks."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import orjson

from llm_gateway.models import LLMRequest, LLMResponse

NO_PART_OF_THE_QUESTION = frozenset({"request_id", "priority", "deadline", "agent", "metadata", "cache", "lane"})
NO_DEFAULT = {"request_id"}


def to_json(value: Any) -> bytes:
    """Return `value` as JSON in UTF-8, on one line."""
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, as a text that was cut in an emoji may hold; JSON can escape it
        return json.dumps(value).encode()


def from_json(text: bytes) -> Any:
    """Return what `to_json` was given."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def request_json(request: LLMRequest) -> tuple[bytes, bytes]:
    """Return a request as JSON without what it leaves at its default, and its fingerprint.

    The fingerprint, 16 bytes, differs if anything differs that changes the answer: model, messages, tools, sampling.
    """
    # Its id left out, as it has a default that differs each time, which costs a random number to compare with.
    told = request.model_dump(exclude_defaults=True, exclude=NO_DEFAULT)
    rest = {"request_id": request.request_id}
    for name in told.keys() & NO_PART_OF_THE_QUESTION:
        rest[name] = told.pop(name)
    try:
        text = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        text = json.dumps(told, sort_keys=True).encode()
    # The question is written once: what is no part of it stands behind it.
    return b"%b,%b" % (text[:-1], to_json(rest)[1:]), blake2b(text, digest_size=16).digest()


def request_of(text: bytes) -> LLMRequest:
    """Return the request that `request_json` was given."""
    return LLMRequest(**from_json(text))


def response_json(response: LLMResponse) -> bytes:
    """Return a response as JSON, all its fields."""
    return to_json(response.model_dump())
