"""Reading the lines of a trace, or those of a journal as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from llm_gateway.errors import ConfigurationError, InvalidRequestError
from llm_gateway.events import RequestDone
from llm_gateway.models import RequestPriority
from llm_gateway.simulation.trace import TracedRequest

OtherLine = Callable[[int, bytes], TracedRequest]
"""Makes a request of a line that is neither a trace's nor a journal's, by its number and text."""


@dataclass(frozen=True, slots=True)
class MalformedLine:
    """A line that could not be used, and why."""

    source: str  # the file
    line: int  # from 1
    reason: str


class TraceReader:
    """Collects requests from lines of JSON: a trace's (`at` and the other fields of TracedRequest) or a journal's.

    Each line that is no such line is `malformed`, and none of the others suffers. Of a journal the ends of requests
    count, its first request comes at second 0. `model`, where given, holds for every line, `default_model` for those
    that name none; `check` raises InvalidRequestError for a model that cannot be asked.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        default_model: str | None = None,
        check: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.malformed: list[MalformedLine] = []
        self._model = model
        self._default_model = default_model
        self._check = check
        self._traced: list[TracedRequest] = []
        self._journalled: list[TracedRequest] = []  # `at` is seconds since the epoch

    def feed(self, source: str, line: int, text: bytes | None, *, other: OtherLine | None = None) -> None:
        """Take one line; None stands for one that is too long. `other` reads what is no trace's and no journal's."""
        if text is not None and not text.strip():
            return
        try:
            self._take(line, text, other)
        except InvalidRequestError as error:
            told = type(error)(error.reason, field=error.field)
            self.malformed.append(MalformedLine(source, line, str(told)))

    def trace(self) -> list[TracedRequest]:
        """Return all requests in the order in which they come."""
        first = min((each.at for each in self._journalled), default=0.0)
        rebased = [each.model_copy(update={"at": each.at - first}) for each in self._journalled]
        return sorted([*self._traced, *rebased], key=lambda each: each.at)

    def _take(self, line: int, text: bytes | None, other: OtherLine | None) -> None:
        if text is None:
            raise InvalidRequestError("the line is too long.")
        fields = _parsed(text)
        if "event" in fields:
            self._take_journalled(fields)
        elif "at" in fields or other is None:
            self._traced.append(self._checked(TracedRequest(**self._with_model(fields))))
        else:
            self._traced.append(self._checked(other(line, text)))

    def _with_model(self, fields: dict[str, Any]) -> dict[str, Any]:
        model = self._model or fields.get("model") or self._default_model
        if model is None:
            raise InvalidRequestError("the line names no model; add one to it, or give --model.")
        return {**fields, "model": model}

    def _checked(self, traced: TracedRequest) -> TracedRequest:
        self._check(traced.model_name)
        return traced

    def _take_journalled(self, record: Mapping[str, Any]) -> None:
        if record["event"] != RequestDone.name:
            return
        if record.get("cached") or record.get("price_lane") == "batch":  # what no limit of calls holds up
            return
        try:
            took = float(record["provider_time"])
            at = datetime.fromisoformat(record["ts"]).timestamp() - float(record["queue_wait"]) - took
            attempts = int(record["attempt"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"not a line of a journal ({type(error).__name__}: {error}).") from None
        answered = record.get("outcome") == "ok"
        fields = {
            "at": max(0.0, at),
            "model": record.get("model"),
            "priority": record.get("priority", RequestPriority.NORMAL),
            "agent": record.get("agent"),
            "input_tokens": record.get("input_tokens") or None,
            "output_tokens": record.get("output_tokens") if answered else None,
            "latency": took if answered and attempts == 1 else None,  # of several attempts nobody knows each
        }
        self._journalled.append(self._checked(TracedRequest(**self._with_model(fields))))


def read_trace(path: Path | str, *, model: str | None = None) -> list[TracedRequest]:
    """Read a file of a trace, or of a journal; `model`, where given, holds for every line.

    Raises InvalidRequestError, in one sentence, for the first malformed line; ConfigurationError for a file that
    cannot be read, or holds no request.
    """
    reader = TraceReader(model=model)
    try:
        with Path(path).open("rb") as file:
            for number, text in enumerate(file, start=1):
                reader.feed(str(path), number, text)
    except OSError as error:
        raise ConfigurationError(f"The trace {path} cannot be read: {error.strerror}.") from None
    if reader.malformed:
        first = reader.malformed[0]
        raise InvalidRequestError(f"{first.source}, line {first.line}: {first.reason}")
    trace = reader.trace()
    if not trace:
        raise ConfigurationError(f"There is no request in {path}; give a trace or a journal as JSON lines.")
    return trace


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error.msg} at character {error.colno}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError('expected a JSON object, as {"at": 0.5, "model": "gpt-4o-mini"}.')
    return fields
