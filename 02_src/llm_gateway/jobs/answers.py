"""Whether an answer is what a JSON schema asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from llm_gateway.errors import ConfigurationError, InvalidAnswerError, MissingDependencyError

LONGEST_COMPLAINT = 200  # characters of what the validator says


class _Validator(Protocol):
    def iter_errors(self, instance: Any) -> Any: ...


class AnswerSchema:
    """Checks the text of answers against one schema."""

    def __init__(self, schema: Any, *, name: str = "the schema") -> None:
        """Take a JSON schema. Raises ConfigurationError if it is none, MissingDependencyError."""
        try:
            import jsonschema
        except ImportError:
            raise MissingDependencyError("pip install 'llm-gateway[schema]'") from None
        if not isinstance(schema, dict):
            raise ConfigurationError(f"{name} is not a JSON schema: expected an object.")
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigurationError(f"{name} is not a JSON schema: {error.message}.") from None
        self.schema: dict[str, Any] = schema
        self._validator: _Validator = kind(schema)

    @classmethod
    def read(cls, path: Path) -> AnswerSchema:
        """Read the schema in a file. Raises ConfigurationError, MissingDependencyError."""
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"The schema {path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise ConfigurationError(f"The schema {path} is not JSON: {error}.") from None
        return cls(schema, name=f"The schema {path}")

    def check(self, text: str) -> None:
        """Raise InvalidAnswerError unless `text` is JSON that fits."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidAnswerError(f"The answer is not JSON: {error}.") from None
        problem = min(self._validator.iter_errors(value), key=lambda each: len(each.absolute_path), default=None)
        if problem is not None:
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path)
            told = problem.message if len(problem.message) <= LONGEST_COMPLAINT else problem.message[:LONGEST_COMPLAINT]
            raise InvalidAnswerError(f"The answer does not fit the schema{' at ' + where if where else ''}: {told}.")
