"""Whether the text of an answer is what its format asks for, and what to say to the model if it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from llm_gateway.errors import ConfigurationError, InvalidAnswerError, InvalidRequestError, MissingDependencyError
from llm_gateway.formats import ResponseFormat

LONGEST_COMPLAINT = 200  # characters of what a validator says of one problem
MOST_COMPLAINTS = 10  # problems that the model is told of at once
DATA = frozenset({"enum", "const", "default", "examples"})  # in a schema; they are no schemas
FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)  # how models like to wrap JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a text was found to be: a value, or what is wrong with it."""

    value: Any = None
    problem: str | None = None  # a sentence; None: it fits
    advice: str = ""  # all that is wrong, for the model
    hopeless: bool = False  # asking again is in vain: not the answer is at fault


class AnswerForm(Protocol):
    """One format, ready to hold answers against."""

    def read(self, text: str, /) -> Reading:
        """Read the text of an answer. Raises nothing, whatever the text is."""


def form_of(given: ResponseFormat) -> AnswerForm:
    """Return the form of a request's format, which is kept for the next one.

    Raises InvalidRequestError for a dict that is no JSON schema, MissingDependencyError.
    """
    if isinstance(given, type):
        return ModelForm(given)
    try:
        text = orjson.dumps(given, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a number beyond 64 bits, or what JSON does not have
        try:
            text = json.dumps(given, sort_keys=True, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = "nests too deep" if isinstance(error, RecursionError) else str(error).rstrip(".")
            raise _refused(f"cannot be written as JSON: {reason}.") from None
    return _kept(text)


@lru_cache(maxsize=256)
def _kept(text: bytes) -> AnswerSchema:
    try:
        return AnswerSchema(json.loads(text), name="the schema")
    except MissingDependencyError:
        raise
    except ConfigurationError as error:
        raise _refused(str(error)) from None


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(reason, field="response_format", record="LLMRequest")


class ModelForm:
    """A pydantic model: answers become its instances."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def read(self, text: str) -> Reading:
        """Return an instance, or what pydantic and the class's own validators say."""
        try:
            return Reading(value=self._model.model_validate_json(_bare(text)))
        except ValidationError as error:
            problems: list[Any] = list(error.errors(include_url=False, include_input=False))
        except Exception as error:  # noqa: BLE001 - a validator of the class may raise anything
            return _hopeless(f"{self._model.__name__} cannot check the answer: {type(error).__name__}: {error}")
        if problems[0]["type"] == "json_invalid":
            return _not_json(str(problems[0]["msg"]).removeprefix("Invalid JSON: "))
        return _unfit(self._model.__name__, [(each["loc"], each["msg"]) for each in problems])


class AnswerSchema:
    """A JSON schema: answers become what their JSON says."""

    def __init__(self, schema: Any, *, name: str = "the schema") -> None:
        """Take a JSON schema. Raises ConfigurationError if it is none, MissingDependencyError."""
        try:
            import jsonschema
            import referencing
        except ImportError:
            raise MissingDependencyError("pip install 'llm-gateway[schema]'") from None
        if not isinstance(schema, dict):
            raise ConfigurationError(f"{name} is not a JSON schema: expected an object.")
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
            _check_references(schema, schema, name)
        except jsonschema.SchemaError as error:
            raise ConfigurationError(f"{name} is not a JSON schema: {error.message}.") from None
        except RecursionError:
            raise ConfigurationError(f"{name} is not a JSON schema that can be used: it nests too deep.") from None
        self.schema: dict[str, Any] = schema
        # A registry of its own, or what the schema refers to elsewhere would be fetched.
        self._validator = kind(schema, registry=referencing.Registry())

    @classmethod
    def read_file(cls, path: Path) -> AnswerSchema:
        """Read the schema in a file. Raises ConfigurationError, MissingDependencyError."""
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"The schema {path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise ConfigurationError(f"The schema {path} is not JSON: {error}.") from None
        return cls(schema, name=f"The schema {path}")

    def read(self, text: str) -> Reading:
        """Return the value, or what the validator says."""
        try:
            value = from_json(_bare(text), allow_inf_nan=False)
        except ValueError as error:
            return _not_json(str(error))
        try:
            found = sorted(self._validator.iter_errors(value), key=lambda each: len(each.absolute_path))
        except RecursionError:
            return _unfit("the schema", [((), "it nests too deep")])
        except Exception as error:  # noqa: BLE001 - such as a reference to an anchor that is not there
            return _hopeless(f"The schema cannot be held against the answer: {type(error).__name__}: {error}")
        if not found:
            return Reading(value=value)
        return _unfit("the schema", [(tuple(each.absolute_path), each.message) for each in found])

    def check(self, text: str) -> None:
        """Raise InvalidAnswerError unless `text` is JSON that fits."""
        problem = self.read(text).problem
        if problem is not None:
            raise InvalidAnswerError(problem)


def _check_references(part: Any, root: Mapping[str, Any], name: str) -> None:
    """Raise ConfigurationError for a reference that leads nowhere, over which the validator would stumble."""
    if isinstance(part, list):
        for each in part:
            _check_references(each, root, name)
    elif isinstance(part, dict):
        place = part.get("$ref")
        if isinstance(place, str) and not _is_there(place, root):
            raise ConfigurationError(
                f"{name} is not a JSON schema that can be used: '{place[:LONGEST_COMPLAINT]}' is not in it."
            )
        for key, each in part.items():
            if key not in DATA:
                _check_references(each, root, name)


def _is_there(place: str, root: Any) -> bool:
    """Whether a reference leads to a part of the schema; one to an anchor is not looked for."""
    if not place.startswith("#"):
        return False
    here = root
    for step in place[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        elif isinstance(here, dict) and key in here:
            here = here[key]
        else:
            return False
    return True


def _bare(text: str) -> str:
    fenced = FENCE.match(text)
    return fenced[1] if fenced else text


def _not_json(reason: str) -> Reading:
    return Reading(
        problem=f"The answer is not JSON: {reason.rstrip('.')}.", advice=f"It is not JSON: {reason.rstrip('.')}."
    )


def _hopeless(reason: str) -> Reading:
    return Reading(problem=f"{_cut(reason)}.", hopeless=True)


def _unfit(name: str, problems: Sequence[tuple[Iterable[Any], str]]) -> Reading:
    told = [(_place(parts), _cut(message)) for parts, message in problems[:MOST_COMPLAINTS]]
    (where, what), more = told[0], len(problems) - 1
    others = f", and {more} more problem{'s' if more > 1 else ''}" if more else ""
    return Reading(
        problem=f"The answer does not fit {name}{' at ' + where if where else ''}: {what}{others}.",
        advice="\n".join(f"- {place or 'the whole'}: {message}" for place, message in told),
    )


def _place(parts: Iterable[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _cut(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= LONGEST_COMPLAINT else line[:LONGEST_COMPLAINT]
