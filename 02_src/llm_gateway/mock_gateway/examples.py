"""A value that fits a JSON schema, for requests that demand one: the plainest, always the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "mock@example.org",
    "uri": "https://example.org/mock",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
PLAIN = {"boolean": False, "null": None}


def example_of(schema: Mapping[str, Any]) -> Any:
    """Return a value that fits `schema`, as pydantic writes one or people write a tool's.

    Objects have their required properties alone, and lists one item unless they ask for more. What `pattern`,
    `multipleOf`, `uniqueItems`, `allOf`, `not` and `if` ask for is not looked at: such an answer wants a rule.
    """
    return _Examples(schema).of(schema)


class _Examples:
    """Makes examples of the parts of one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._within: list[str] = []  # the references that led here, so that a tree ends

    def of(self, schema: Any) -> Any:
        """Make an example of a part."""
        if not isinstance(schema, Mapping):
            return None  # true: anything fits
        if "$ref" in schema:
            return self._referred(schema["$ref"])
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        if schema.get("enum"):
            return schema["enum"][0]
        arms = schema.get("anyOf") or schema.get("oneOf")
        if arms:
            return self.of(next((arm for arm in arms if not self._turns_back(arm)), arms[0]))
        return self._of_type(schema)

    def _referred(self, reference: str) -> Any:
        part: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            part = part.get(name, {}) if name else part
        if reference in self._within:
            return None  # it asks for itself within itself: nothing fits
        self._within.append(reference)
        try:
            return self.of(part)
        finally:
            self._within.pop()

    def _turns_back(self, schema: Any) -> bool:
        return isinstance(schema, Mapping) and schema.get("$ref") in self._within

    def _of_type(self, schema: Mapping[str, Any]) -> Any:
        kinds = schema.get("type", "object" if "properties" in schema else "null")
        kind = kinds if isinstance(kinds, str) else kinds[0]
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.of(properties.get(name, {})) for name in schema.get("required", ())}
        if kind == "array":
            return self._list(schema)
        if kind == "string":
            text = FORMATS.get(schema.get("format", ""), "mock")
            return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
        return _number(schema, kind) if kind in {"integer", "number"} else PLAIN.get(kind)

    def _list(self, schema: Mapping[str, Any]) -> list[Any]:
        first = [self.of(each) for each in schema.get("prefixItems", ())]
        item = schema.get("items")
        least = 0 if first or not item or self._turns_back(item) else 1
        longest = schema.get("maxItems", max(least, schema.get("minItems", 0), len(first)))
        count = min(max(least, schema.get("minItems", 0)), longest)
        return first + [self.of(item) for _ in range(count - len(first))]


def _number(schema: Mapping[str, Any], kind: str) -> Any:
    """Return the number nearest to 0, a whole one where one fits."""
    step = 1 if kind == "integer" else _room(schema)
    low = max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -step) + step)
    return min(low, schema.get("maximum", low), schema.get("exclusiveMaximum", low + step) - step)


def _room(schema: Mapping[str, Any]) -> Any:
    """Return a step that stays between two exclusive bounds."""
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return 1 if low is None or high is None or high - low > 1 else (high - low) / 2
