"""Validation errors as one sentence each: the field, the value, and what would be right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticCustomError

from llm_gateway.errors import InvalidRequestError

LONGEST_VALUE = 60  # characters of a wrong value that a sentence shows
LONGEST_PATH = 80  # characters of the path of a field
KEY_LABEL = "[key]"  # what pydantic puts behind a dict's key where the key itself is wrong
# `max_tokens` is no secret, an `auth_token` is. Below `providers` may stand a key that slipped into a wrong place.
SECRET = re.compile(r"key|secret|passw|credential|authorization|bearer|token(?!s)|^providers\b", re.IGNORECASE)
KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|xai|lsv2)[-_][\w*.…-]{4,}|://\S*@")
OF_OURS = "Input should be "  # how pydantic's messages begin, nearly all of them

SENTENCES = {
    "missing": "missing; it has no default",
    "value_error": "{error}",
    "json_invalid": "not JSON: {error}",
    "too_short": "empty; give at least {min_length}",
    "string_too_short": "empty; give a text of at least 1 character",
    "invalid_key": "the name is not a text; put it in quotes",
}
NESTED = "a value that does not contain itself and is not nested too deeply"
# Where pydantic's own words do not go on after "it should be", or are not for users.
WISHES = {
    "path_type": "a path",
    "pattern_type": "a regular expression",
    "invalid-json-value": "a JSON value: a text, a number, true, false, null, a list or a dictionary",
    "recursion_loop": NESTED,
    "recursion_depth_exceeded": NESTED,
    "int_parsing_size": "a valid integer of fewer digits",
}


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known word that `word` most likely meant, None if none is as near as `likeness` (0 to 1)."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def dollars(amount: float | None) -> str:
    """Write US dollars with the digits that matter: "$0.00123", "$12.35"; "unknown" for None."""
    if amount is None:
        return "unknown"
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.{2 - math.floor(math.log10(amount))}f}"


def no_boolean(value: object) -> object:
    """Refuse true and false where a number is asked for: Python counts them as 1 and 0. For a BeforeValidator."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def shown(value: object) -> str:
    """Return a wrong value for a sentence: one line, shortened, and nothing that looks like a secret."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a value of the user's own class, or one nested too deeply
        return f"the {type(value).__name__}"
    hides = not isinstance(value, (str, int, float)) and SECRET.search(text)
    if hides or KEY_LIKE.search(text):
        return "the value"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def sentence_of(error: ValidationError, cls: type[BaseModel]) -> tuple[str, str]:
    """Return (field, what is wrong with it) of the first and deepest problem; the field as in `messages[0].role`.

    The text shows the wrong value, shortened, unless the field's path tells that it may be a secret.
    """
    problems: list[Any] = list(error.errors(include_url=False, include_context=True))
    places = [path_of(problem["loc"], cls) for problem in problems]
    # A union reports each of its arms; the arm that got furthest into the data is the one that was meant.
    deepest = max(range(len(problems)), key=lambda each: len(_walk(problems[each]["loc"], cls)[0]))
    field, problem = places[deepest], problems[deepest]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequestError):  # a record inside this one, or a check that names its own field
        return _shortened(".".join(filter(None, (field, cause.field)))), cause.reason
    rivals = [each for each, place in zip(problems, places, strict=True) if place == field]
    return _shortened(field), _explain(problem, rivals, field, cls)


def path_of(loc: Sequence[int | str], cls: type[BaseModel]) -> str:
    """Write a location in `cls` as a user would: `models.fast.provider`, `messages[0].role`."""
    path = ""
    for part in _walk(loc, cls)[0]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if part and part.isprintable() else repr(part)
            path += f".{name}" if path else name
    return path


def _explain(problem: Any, rivals: list[Any], field: str, cls: type[BaseModel]) -> str:
    """Say what is wrong with `field`; `rivals` are what all arms of a union say about it."""
    kind, loc, context = problem["type"], problem["loc"], problem.get("ctx", {})
    if loc[-1:] == (KEY_LABEL,) and kind == "string_type":
        kind = "invalid_key"
    if kind in SENTENCES:
        return _full_stop(SENTENCES[kind].format_map(context))
    if kind == "extra_forbidden":
        return f"unknown; {_known(str(loc[-1]), _fields_at(cls, loc[:-1]))}"
    given = "the value" if SECRET.search(field) else shown(problem["input"])
    if kind in {"literal_error", "enum"} and len(rivals) == 1:
        return f"{given} is not one of {context['expected']}."
    wishes = dict.fromkeys(_wish(each, cls) for each in rivals)
    return _full_stop(f"{given} is wrong: it should be {' or '.join(wishes)}")


def _wish(problem: Any, cls: type[BaseModel]) -> str:
    """Continue a sentence that ends in "it should be"."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in {"model_type", "model_attributes_type"}:
        return f"a dictionary with the keys {', '.join(_fields_at(cls, problem['loc']))}"
    if kind in {"literal_error", "enum"}:
        return str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    # "… a valid integer, unable to parse string as an integer": the value stands beside it
    return WISHES.get(kind) or problem["msg"].removeprefix(OF_OURS).partition(",")[0]


def _known(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    guess = nearest(name, known)
    return f"did you mean '{guess}'?" if guess else f"known are {', '.join(known)}."


def _shortened(path: str) -> str:
    """Return the path of a field, with the middle left out where the nesting is the message."""
    return path if len(path) <= LONGEST_PATH else f"{path[: LONGEST_PATH // 2]}…{path[-LONGEST_PATH // 2 :]}"


def _full_stop(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


# --- where a problem lies -----------------------------------------------------------------------------------------


def _fields_at(cls: type[BaseModel], loc: Sequence[int | str]) -> Iterable[str]:
    """Return the keys that the model at `loc` below `cls` has."""
    arms = _arms(_walk(loc, cls)[1])
    return next((_fields(arm) for arm in arms if _is_model(arm)), {})


def _walk(loc: Sequence[int | str], cls: type[BaseModel]) -> tuple[list[int | str], Any]:
    """Return the parts of `loc` that stand in the data, and the type that is asked for there.

    Where a union is asked for, pydantic puts the label of the arm that it tried into the location. It may well be a
    name that a user gives to something of their own, so only the place tells the two apart.
    """
    path: list[int | str] = []
    wanted: Any = cls
    for part in loc[:-1] if loc[-1:] == (KEY_LABEL,) else loc:
        arms = _arms(wanted)
        if len(arms) > 1:
            wanted = next((arm for arm in arms if _is_label(str(part), arm)), Any)
        else:
            path.append(part)
            wanted = _below(arms[0], part)
    return path, wanted


def _arms(wanted: Any) -> list[Any]:
    """Return the types of a union, but None, which gets no label; anything else is its own only arm."""
    while True:
        if wanted == "JsonValue":  # as it refers to itself
            wanted = JsonValue
        elif get_origin(wanted) is Annotated or hasattr(wanted, "__value__"):
            wanted = getattr(wanted, "__value__", None) or wanted.__origin__
        elif get_origin(wanted) in {Union, UnionType}:
            arms = [arm for arm in get_args(wanted) if arm is not NoneType]
            if len(arms) > 1:
                return arms
            wanted = arms[0]
        else:
            return [wanted]


def _is_label(label: str, arm: Any) -> bool:
    """Whether pydantic calls `arm` so: `str`, `list[…]`, `function-before[_check(), Model]`."""
    bare = _arms(arm)[0]
    name = getattr(get_origin(bare) or bare, "__name__", "")
    return label == name or label.startswith(f"{name}[") or label.endswith(f", {name}]")


def _below(wanted: Any, part: int | str) -> Any:
    """Return the type that `wanted` asks for at its key, index or field `part`."""
    if _is_model(wanted):
        return _fields(wanted).get(str(part), Any)
    arguments = get_args(wanted)
    return arguments[-1] if arguments else Any


def _is_model(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, BaseModel)


def _fields(model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the fields of a model by the names that its data have."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
