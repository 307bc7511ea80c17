"""One line of an input becomes a request, or the sentence that says what is wrong with it.

A line is a request as JSON (the fields of `LLMRequest`), the same with `prompt` and perhaps `system` in the place of
`messages`, or a line of OpenAI's batch format. With a template a line, or a row of a table, is a set of columns, from
which the template makes the prompt. A line that names no id has the id `line-N`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from llm_gateway.cli.chat_line import ChatLine
from llm_gateway.cli.conversation import conversation
from llm_gateway.cli.lines import LONGEST_LINE
from llm_gateway.cli.settings import Loaded
from llm_gateway.errors import InvalidRequestError
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.records import NewRow
from llm_gateway.jobs.rows import asked_row, name_of
from llm_gateway.jobs.tables import PromptTemplate
from llm_gateway.models import LLMMessage, LLMRequest, RequestPriority

Form = Literal["gateway", "openai"]
"""Whose format a line has; its result is written in the same."""

OWN_ID = re.compile(r"line-[0-9]+")
OF_OPENAI = frozenset({"custom_id", "body"})  # the keys by which its lines are known
PRIORITIES = {priority.name.lower(): priority for priority in RequestPriority}


class Row(NamedTuple):
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


def stored(row: Row | Malformed) -> NewRow:
    """Return a row as a job's store takes it."""
    if isinstance(row, Row):
        return asked_row(row.line, row.request, form=row.form)
    return NewRow(number=row.line, key=row.request_id, form=row.form, failure=failure_of(row.error))


class RowReader:
    """Reads lines into rows. That no two of them have one id is not its business.

    `model` and `priority`, where given, hold for every line, whatever the line says. A line without a priority is LOW:
    a bulk job makes way for requests that somebody waits for. `system` is put before the prompts of a template. With a
    `schema` every line asks for answers of that form, unless it names one itself or has tools.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        model: str | None = None,
        priority: RequestPriority | None = None,
        template: PromptTemplate | None = None,
        system: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = loaded.config
        self._default_model = loaded.only_model
        self._model = model
        self._priority = priority
        self._template = template
        self._system = system
        self._schema = schema

    def read(self, line: int, text: Mapping[str, Any] | bytes | None) -> Row | Malformed | None:
        """Read line number `line`, a table's row as a mapping; None if there is nothing on it."""
        if isinstance(text, bytes) and not text.strip():
            return None
        form: Form = "gateway"
        request_id: str | None = None
        try:
            fields = _parsed(text) if text is None or isinstance(text, bytes) else dict(text)
            if self._template is not None:
                fields = self._from_columns(fields, self._template)
            if not fields.keys().isdisjoint(OF_OPENAI):
                form = "openai"
            request_id = self._claim(fields.get("custom_id" if form == "openai" else "request_id"), line)
            request = self._openai(fields) if form == "openai" else self._ours(fields, request_id)
            if self._schema is not None and request.response_format is None and not request.tools:
                request = request.model_copy(update={"response_format": dict(self._schema)})
            self._config.model(name_of(request.model))
        except InvalidRequestError as error:
            # Which of our records found it is nothing to who wrote the line; the field is.
            told = type(error)(error.reason, field=error.field)
            return Malformed(line=line, form=form, request_id=request_id, error=told)
        return Row(line=line, form=form, request=request)

    def _claim(self, given: Any, line: int) -> str | None:
        """Return the id of a line; None if the line must be refused for its id."""
        if given is None:
            return f"line-{line}"
        if not isinstance(given, str) or not given:
            return None  # the record's own check finds the words for it
        if OWN_ID.fullmatch(given):
            # Were they free, an id could be taken that an earlier line without one has.
            if given == f"line-{line}":
                return given
            raise InvalidRequestError(f"'{given}' is the id of another line that names none; choose another id.")
        return given

    def _from_columns(self, columns: dict[str, Any], template: PromptTemplate) -> dict[str, Any]:
        """Return the line that a set of columns stands for; a column `request_id` is its id."""
        if (extra := columns.get(None)) is not None:  # type: ignore[call-overload]  # so a reader of CSV tells it
            raise InvalidRequestError(
                f"the row has more cells than the header ({len(extra)} too many); put quotes around a text that has "
                "the delimiter in it."
            )
        fields: dict[str, Any] = {"prompt": template.render(columns), "system": self._system}
        given = columns.get("request_id")
        if given not in {None, ""}:
            fields["request_id"] = str(given)
        return fields

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
