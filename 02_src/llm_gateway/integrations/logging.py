"""What a gateway does, as lines in the application's own log: the standard library's, or structlog's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Protocol

from llm_gateway.events import AttemptFailed, Event, RequestDone, RetryScheduled, ShutdownBegan, ShutdownEnded
from llm_gateway.models import Record

TEXTS = frozenset({"prompt", "answer", "message"})  # `message` may hold a provider's own words, with the prompt in them
DURATIONS = frozenset({"wait", "queue_wait", "provider_time", "time_to_first_token"})
LEVELS: Mapping[type[Event], int] = {
    AttemptFailed: logging.WARNING,
    RetryScheduled: logging.INFO,
    RequestDone: logging.INFO,
    ShutdownBegan: logging.INFO,
    ShutdownEnded: logging.INFO,
}


class StructuredLogger(Protocol):
    """What structlog's loggers have in common."""

    def log(self, level: int, event: str, /, **fields: Any) -> Any:
        """Write one line: the name of an event, and its fields."""


class GatewayLog:
    """An observer that writes each event as one log line: its name, then its fields.

    To a structlog logger the fields go as they are. A line of the standard library reads `item_done model=… …`, and
    the record has all fields in its attribute `llm_gateway`, for formatters that write JSON. Failed attempts and failed
    requests are warnings; answers, retries and the shutdown are infos; the rest is for debugging.

    Neither prompts nor answers, nor what a provider says of an error, are written. `with_text` asks for them; the
    gateway hands prompts and answers out only if its configuration has `logs.text` too.
    """

    def __init__(self, logger: logging.Logger | StructuredLogger | None = None, *, with_text: bool = False) -> None:
        """Write to `logger`; default: the standard library's logger "llm_gateway.events"."""
        if logger is None:
            logger = logging.getLogger("llm_gateway.events")
        self._write = _to_standard_library(logger) if isinstance(logger, logging.Logger) else _to_structlog(logger)
        self._hidden = frozenset[str]() if with_text else TEXTS
        self._names: dict[type[Event], tuple[str, ...]] = {}

    def observe(self, event: Event, /) -> None:
        """Write one line, if the logger takes lines of its level."""
        self._write(_level(event), event, self._fields)

    def _fields(self, event: Event) -> dict[str, Any]:
        names = self._names.get(type(event))
        if names is None:
            names = tuple(field.name for field in fields(event) if field.name not in self._hidden)
            self._names[type(event)] = names
        found: dict[str, Any] = {}
        for name in names:
            value = getattr(event, name)
            if isinstance(value, Record):
                found.update(value.__dict__)  # `usage`, field by field
            elif value is not None:
                found[name] = round(value, 6) if name in DURATIONS else _plain(value)
        return found


Fields = Callable[[Event], dict[str, Any]]
Write = Callable[[int, Event, Fields], None]


def _to_standard_library(logger: logging.Logger) -> Write:
    def write(level: int, event: Event, fields_of: Fields) -> None:
        if logger.isEnabledFor(level):
            found = fields_of(event)
            words = " ".join([event.name, *(f"{name}={_word(value)}" for name, value in found.items())])
            logger.log(level, "%s", words, extra={"llm_gateway": {"event": event.name, **found}})

    return write


def _to_structlog(logger: StructuredLogger) -> Write:
    def write(level: int, event: Event, fields_of: Fields) -> None:
        logger.log(level, event.name, **fields_of(event))

    return write


def _level(event: Event) -> int:
    if isinstance(event, RequestDone) and event.outcome not in {"ok", "cancelled"}:
        return logging.WARNING
    return LEVELS.get(type(event), logging.DEBUG)


def _word(value: Any) -> str:
    """Return a value for a line of `name=value` pairs, in quotes if it has blanks or would break the line."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _plain(value: Any) -> Any:
    """Return an enumeration's member by its name, also as the key of a dict; anything else as it is."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {_plain(key): each for key, each in value.items()}
    return value
