"""Validation errors as one sentence each: the field, the value, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_gateway.errors import InvalidRequestError

LONGEST_VALUE = 60  # characters of a wrong value that a sentence shows


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known word that `word` most likely meant, None if none is as near as `likeness` (0 to 1)."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def sentence_of(error: ValidationError, cls: type[BaseModel]) -> tuple[str, str]:
    """Return (field, what is wrong with it) of the first and deepest problem; the field as in `messages[0].role`.

    The text shows the wrong value, shortened, except for fields whose name tells that it is a secret.
    """
    problems = error.errors(include_url=False, include_context=True)
    # A union reports each of its arms; the arm that got furthest into the data is the one that was meant.
    problem = max(problems, key=lambda each: len(each["loc"]))
    field = path_of(problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if (
        isinstance(cause, InvalidRequestError) and cause.field
    ):  # a record inside this one, or a check that names its own field
        return f"{field}.{cause.field}".lstrip("."), cause.reason
    return field, _explain(problem, field, cls)


def path_of(loc: tuple[int | str, ...]) -> str:
    """Write a location as a user would: `models.fast.provider`, `messages[0].role`."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _is_name(part):
            path += f".{part}" if path else part
    return path


def _is_name(part: str) -> bool:
    """Tell a field's name from the labels that pydantic puts between a union and its arms."""
    return "[" not in part and part not in {"str", "int", "float", "bool", "ModelProvider", "LLMMessage"}


def _explain(problem: Any, field: str, cls: type[BaseModel]) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        return "missing; it has no default."
    if kind == "extra_forbidden":
        known = sorted(_fields_at(cls, problem["loc"][:-1]))
        name = str(problem["loc"][-1])
        guess = nearest(name, known)
        remedy = f"did you mean '{guess}'?" if guess else f"known are {', '.join(known)}."
        return f"unknown; {remedy}"
    if kind == "value_error":
        return f"{_full_stop(str(context.get('error', problem['msg'])))}"
    if kind in {"literal_error", "enum"}:
        return f"{_show(given, field)} is not one of {context.get('expected')}."
    if kind in {"too_short", "string_too_short"}:
        return f"empty; give at least {context.get('min_length', 1)}."
    message = problem["msg"].removeprefix("Input ")
    return f"{_show(given, field)} is wrong: it {_full_stop(message)}"


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> Iterable[str]:
    """Return the names of the fields that the model at `loc` below `cls` has."""
    current: Any = cls
    for part in loc:
        if isinstance(part, int) or current is None:
            continue
        fields = getattr(current, "model_fields", {})
        if part in fields:
            current = _model_in(fields[part].annotation)
    return getattr(current, "model_fields", {})


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the pydantic model inside `list[M]`, `dict[str, M]`, `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _show(value: object, field: str) -> str:
    if any(word in field.lower() for word in ("key", "secret", "password", "token_file")):
        return "the value"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _full_stop(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
