"""JSON schemas as providers want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What strict modes do not know and need not: the gateway itself holds the answer against the whole schema.
UNKNOWN = frozenset({
    "default", "examples", "minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties", "discriminator",
    "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly",
})  # fmt: skip
# What they do not know, and what nothing can stand for.
BEYOND = frozenset({
    "allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties", "propertyNames",
    "unevaluatedProperties", "prefixItems", "contains", "$dynamicRef",
})  # fmt: skip
SAYS_WHAT = frozenset({"type", "anyOf", "enum", "const", "$ref"})
NAMED = ("properties", "$defs", "definitions")  # whose keys are names, not keywords


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


class _NotStrictError(Exception):
    """A schema says what strict modes cannot."""


def strict(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a schema in the form that OpenAI's strict mode takes, None if it has none.

    Bounds that the mode does not know are left out. Whatever fits the schema, and has nothing that it does not name,
    fits the returned one.
    """
    if schema.get("type") != "object":
        return None
    try:
        return _strict(schema)
    except (_NotStrictError, RecursionError):
        return None


def _strict(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or not BEYOND.isdisjoint(schema):
        raise _NotStrictError
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in NAMED:
            made[key] = {name: _strict(each) for name, each in value.items()}
        elif key == "items":
            made[key] = _strict(value)
        elif key in {"anyOf", "oneOf"}:  # of which at least, or exactly, one fits: the gateway looks at the difference
            made["anyOf"] = [_strict(each) for each in value]
        elif key not in UNKNOWN:
            made[key] = value
    if made.get("type") == "object":
        _close(made, schema)
    elif not SAYS_WHAT & made.keys() or (made.get("type") == "array" and "items" not in made):
        raise _NotStrictError  # anything fits
    reference = made.pop("$ref", None)
    if reference is None:
        return made
    # It takes no neighbours.
    return made | {"anyOf": [{"$ref": reference}]} if made.keys() - set(NAMED) else made | {"$ref": reference}


def _close(made: dict[str, Any], given: Mapping[str, Any]) -> None:
    required = given.get("required", ())
    properties = made.get("properties", {})
    if not properties or made.get("additionalProperties", False) is not False:
        raise _NotStrictError  # it may have properties that nobody names
    if not all(name in required or _can_do_without(each) for name, each in given["properties"].items()):
        raise _NotStrictError
    made |= {"required": list(properties), "additionalProperties": False}


def _can_do_without(schema: Mapping[str, Any]) -> bool:
    """Whether an optional property may as well be required: it can say that it is none, or what it is by default."""
    types = [schema.get("type"), *(each.get("type") for each in schema.get("anyOf", ()))]
    return "default" in schema or any("null" in each if isinstance(each, list) else each == "null" for each in types)


def is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether a definition refers to itself, at whatever depth."""
    definitions = schema.get("$defs", {})
    refers = {f"#/$defs/{name}": set(_references(each)) for name, each in definitions.items()}
    for place, first in refers.items():
        reached: set[str] = set()
        to_see = list(first)
        while to_see:
            other = to_see.pop()
            if other == place:
                return True
            if other not in reached:
                reached.add(other)
                to_see += refers.get(other, ())
    return any(reference == "#" for reference in _references(schema))


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for each in schema for found in _references(each)]
    if not isinstance(schema, Mapping):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [found for each in schema.values() for found in _references(each)]
