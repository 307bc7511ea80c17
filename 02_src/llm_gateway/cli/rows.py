"""One line of an input becomes a request, or the sentence that says what is wrong with it.

A line is a request as JSON (the fields of `LLMRequest`), the same with `prompt` and perhaps `system` in the place of
`messages`, or a line of OpenAI's batch format. A line that names no id has the id `line-N`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from llm_gateway.cli.chat_line import ChatLine
from llm_gateway.cli.conversation import conversation
from llm_gateway.cli.lines import LONGEST_LINE
from llm_gateway.cli.settings import Loaded
from llm_gateway.errors import InvalidRequestError
from llm_gateway.models import LLMMessage, LLMRequest, RequestPriority

Form = Literal["gateway", "openai"]
"""Whose format a line has; its result is written in the same."""

OWN_ID = re.compile(r"line-[0-9]+")
PRIORITIES = {priority.name.lower(): priority for priority in RequestPriority}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line that can be asked."""

    line: int  # from 1
    form: Form
    request: LLMRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A line that cannot be asked, and why."""

    line: int
    form: Form
    request_id: str | None  # None: the line tells none that could be used
    error: InvalidRequestError


class RowReader:
    """Reads lines into rows, one after the other: it remembers the ids that were used.

    `model` and `priority`, where given, hold for every line, whatever the line says. A line without a priority is LOW:
    a bulk job makes way for requests that somebody waits for.
    """

    def __init__(self, loaded: Loaded, *, model: str | None = None, priority: RequestPriority | None = None) -> None:
        self._config = loaded.config
        self._default_model = loaded.only_model
        self._model = model
        self._priority = priority
        self._ids: set[str] = set()

    def read(self, line: int, text: bytes | None) -> Row | Malformed | None:
        """Read line number `line`; None if there is nothing on it."""
        if text is not None and not text.strip():
            return None
        form: Form = "gateway"
        request_id: str | None = None
        try:
            fields = _parsed(text)
            if not fields.keys().isdisjoint({"custom_id", "body"}):
                form = "openai"
            request_id = self._claim(fields.get("custom_id" if form == "openai" else "request_id"), line)
            request = self._openai(fields) if form == "openai" else self._ours(fields, request_id)
            self._config.model(str(getattr(request.model, "value", request.model)))
        except InvalidRequestError as error:
            # Which of our records found it is nothing to who wrote the line; the field is.
            told = type(error)(error.reason, field=error.field)
            return Malformed(line=line, form=form, request_id=request_id, error=told)
        return Row(line=line, form=form, request=request)

    def _claim(self, given: Any, line: int) -> str | None:
        """Return the id of a line, which no other line may have; None if the line must be refused for its id."""
        if given is None:
            return f"line-{line}"
        if not isinstance(given, str) or not given:
            return None  # the record's own check finds the words for it
        if OWN_ID.fullmatch(given):
            # Were they free, an id could be taken that an earlier line without one has.
            if given == f"line-{line}":
                return given
            raise InvalidRequestError(f"'{given}' is the id of another line that names none; choose another id.")
        if given in self._ids:
            raise InvalidRequestError(f"the id '{given}' stands on an earlier line too; give each line its own.")
        self._ids.add(given)
        return given

    def _ours(self, fields: dict[str, Any], request_id: str | None) -> LLMRequest:
        if fields.get("request_id") is None:
            fields["request_id"] = request_id
        fields["model"] = self._model or fields.get("model") or self._fallback()
        priority = fields.get("priority", RequestPriority.LOW) if self._priority is None else self._priority
        fields["priority"] = PRIORITIES.get(priority.lower(), priority) if isinstance(priority, str) else priority
        if "prompt" in fields:
            fields["messages"] = _prompted(fields)
        return LLMRequest(**fields)

    def _openai(self, fields: dict[str, Any]) -> LLMRequest:
        line = ChatLine(**fields)
        model = self._model or line.body.model or self._fallback()
        return line.to_request(model=model, priority=self._priority or RequestPriority.LOW)

    def _fallback(self) -> str:
        if self._default_model is None:
            raise InvalidRequestError("the line names no model; add one to it, or give --model.")
        return self._default_model


def _parsed(text: bytes | None) -> dict[str, Any]:
    if text is None:
        raise InvalidRequestError(f"the line is longer than {LONGEST_LINE // 1024**2} MiB.")
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error.msg} at character {error.colno}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"expected a JSON object, found {_kind(fields)}.")
    return fields


def _prompted(fields: dict[str, Any]) -> list[LLMMessage]:
    """Take `prompt` and `system` out of a line and make its messages of them."""
    prompt, system = fields.pop("prompt"), fields.pop("system", None)
    if "messages" in fields:
        raise InvalidRequestError("the line has both; put the prompt into the messages.", field="prompt, messages")
    for name, text in (("prompt", prompt), ("system", system)):
        if not isinstance(text, str) and (text is not None or name == "prompt"):
            raise InvalidRequestError(f"expected a text, found {_kind(text)}.", field=name)
    return conversation(prompt, system)


def _kind(value: Any) -> str:
    """Name what a JSON value is."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
