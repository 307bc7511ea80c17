"""What `LLMRequest.response_format` may be: a pydantic model class, or a JSON schema as a dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from llm_gateway.sentences import shown

ResponseFormat = dict[str, Any] | type[BaseModel]

# One of these says at the top of a schema what the answer is.
SAYS_WHAT = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
OF_OPENAI = ("json_schema", "json_object", "text")  # what `type` can be in the parameter of that name in OpenAI's API
UNNAMED = "answer"
LONGEST_NAME = 64  # characters
NOT_OF_A_NAME = re.compile(r"[^a-zA-Z0-9_-]+")


def checked(given: object) -> ResponseFormat:
    """Return a format as it was given. Raises ValueError, a sentence, for what is none."""
    if isinstance(given, type):
        if not issubclass(given, BaseModel) or given is BaseModel:
            raise ValueError(f"the class {given.__name__} is no pydantic model; derive it from pydantic.BaseModel")
        _schema_of_class(given)
        return given
    if not isinstance(given, dict):  # pydantic takes a ValueError alone
        raise ValueError(  # noqa: TRY004
            f"{shown(given)} is neither a pydantic model class nor a JSON schema as a dictionary"
        )
    if not all(isinstance(key, str) for key in given):
        raise ValueError(f"{shown(given)} has a key that is no text, which no JSON schema has")
    if given.get("type") in OF_OPENAI:
        raise ValueError(
            f"'{given['type']}' is no type of a JSON schema; give the schema itself, without OpenAI's frame around it"
        )
    if not any(key in given for key in SAYS_WHAT):
        raise ValueError(f"{shown(given)} does not say what the answer is; a JSON schema has a 'type', mostly 'object'")
    return dict(given)


def schema_of(given: ResponseFormat) -> dict[str, Any]:
    """Return the JSON schema that answers are held against; do not change it."""
    return _schema_of_class(given) if isinstance(given, type) else given


def asked_schema(given: ResponseFormat) -> dict[str, Any]:
    """Return the JSON schema that a model is shown; do not change it. Of a class it requires every property."""
    return _complete_schema_of(given) if isinstance(given, type) else given


def name_of(given: ResponseFormat) -> str:
    """Return what a provider can call a format: letters, digits, underscores and hyphens, at most 64."""
    title = given.__name__ if isinstance(given, type) else str(given.get("title") or "")
    return NOT_OF_A_NAME.sub("_", title).strip("_")[:LONGEST_NAME] or UNNAMED


@lru_cache(maxsize=256)
def _schema_of_class(given: type[BaseModel]) -> dict[str, Any]:
    try:
        return rooted(given.model_json_schema())
    except (PydanticUserError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ValueError(f"the class {given.__name__} has no JSON schema: {reason}") from None


@lru_cache(maxsize=256)
def _complete_schema_of(given: type[BaseModel]) -> dict[str, Any]:
    schema: dict[str, Any] = all_required(_schema_of_class(given))
    return schema


def rooted(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that says at its top what it is, where it only refers to one of its definitions there."""
    place = str(schema.get("$ref", ""))
    found = schema.get("$defs", {}).get(place.removeprefix("#/$defs/"))
    if not place.startswith("#/$defs/") or not isinstance(found, Mapping):
        return dict(schema)
    return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}


def all_required(schema: Any) -> Any:
    """Return a schema whose objects require all their properties, as OpenAI's strict mode demands.

    So all providers answer alike. A property that may be null can still be null.
    """
    if isinstance(schema, list):
        return [all_required(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: all_required(value) for key, value in schema.items()}
    properties = copy.get("properties")
    if isinstance(properties, dict) and copy.get("type") == "object":
        copy["required"] = list(properties)
        for each in properties.values():
            if isinstance(each, dict) and each.get("default", 0) is None:
                del each["default"]  # strict mode takes none, and a required property needs none
    return copy
