"""An event as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from functools import partial
from itertools import compress
from operator import attrgetter, is_not
from typing import Any, NamedTuple

import orjson

from llm_gateway.events import (
    AttemptFailed,
    BatchClosed,
    BatchOpened,
    Event,
    ProviderBatchChanged,
    RequestDone,
    RetryScheduled,
    ShutdownBegan,
    ShutdownEnded,
)
from llm_gateway.models import RequestPriority

JOURNALLED: frozenset[type[Event]] = frozenset(
    {
        BatchOpened,
        BatchClosed,
        ProviderBatchChanged,
        RequestDone,
        RetryScheduled,
        AttemptFailed,
        ShutdownBegan,
        ShutdownEnded,
    }
)
"""What the journal writes down. The rest is for counters: a request that was queued will end as `item_done`."""

LINES_LOST = "lines_lost"
"""The event that stands where lines are missing, with their number as `lines`."""

MICROSECONDS = 6
IS_GIVEN: Callable[[Any], bool] = partial(is_not, None)
PRIORITIES = {priority: priority.name.lower() for priority in RequestPriority}


def line_of(at: datetime, event: Event) -> bytes:
    """Return the line of `event`, its end included: time, name, then every field that is not None.

    Durations are seconds with six decimals, a priority is "high", "normal" or "low", `usage` becomes `input_tokens`,
    `output_tokens` and so on. Raises TypeError, ValueError or RuntimeError for what cannot be written as JSON.
    """
    names, forms, values_of = SHAPES[type(event)]
    values = values_of(event)
    record: dict[str, Any] = {"ts": at, "event": event.name}
    record.update(compress(zip(names, values, strict=True), map(IS_GIVEN, values)))
    for name, form in forms:
        if name in record:
            record[name] = form(record[name])
    usage = record.pop("usage", None)
    if usage is not None:
        record.update(usage.__dict__)  # its fields alone; model_dump() would take five times as long
    return encoded(record)


def _seconds(duration: float) -> float:
    return round(duration, MICROSECONDS)


def _by_priority(counts: Mapping[RequestPriority, int]) -> dict[str, int]:
    return {PRIORITIES[priority]: count for priority, count in counts.items()}


FORMS: Mapping[str, Callable[[Any], Any]] = {
    "wait": _seconds,
    "queue_wait": _seconds,
    "provider_time": _seconds,
    "time_to_first_token": _seconds,
    "priority": PRIORITIES.__getitem__,
    "classes": _by_priority,
}


class Shape(NamedTuple):
    """How events of one class become lines."""

    names: tuple[str, ...]  # of the fields
    forms: tuple[tuple[str, Callable[[Any], Any]], ...]  # of those that are not written as they are
    values_of: Callable[[Event], tuple[Any, ...]]


def _shape(cls: type[Event]) -> Shape:
    names = tuple([field.name for field in fields(cls)])
    return Shape(names, tuple([(name, FORMS[name]) for name in names if name in FORMS]), attrgetter(*names))


SHAPES = {cls: _shape(cls) for cls in JOURNALLED}


def lost_line(at: datetime, lines: int) -> bytes:
    """Return the line that stands for `lines` missing ones."""
    return encoded({"ts": at, "event": LINES_LOST, "lines": lines})


def stamp(at: datetime) -> str:
    """Write an instant in UTC as RFC 3339, always with microseconds, so that lines sort as text."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def encoded(record: dict[str, Any]) -> bytes:
    """Return `record`, whose first value is an instant in UTC, as one line of UTF-8."""
    at = record["ts"]
    if not at.microsecond:  # which orjson would leave out
        record["ts"] = stamp(at)
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
    except TypeError:
        # Half a surrogate pair in somebody's text, or an integer beyond 64 bits: rare, so the slow way will do.
        text = json.dumps(record | {"ts": stamp(at)}, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "replace") + b"\n"
