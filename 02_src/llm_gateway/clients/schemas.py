"""JSON schemas as providers want them."""

from __future__ import annotations

from typing import Any


def closed(schema: Any) -> Any:
    """Return a schema whose objects allow no properties but those they name, where they do not say.

    OpenAI's strict mode asks for that. Whatever fits the closed schema fits the given one.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    if isinstance(copy.get("properties"), dict):
        copy.setdefault("additionalProperties", False)
    return copy
