"""What a provider's headers say of its limits. Garbage says nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from llm_gateway.limits.base import Resource

LARGEST = 1e12  # permits or seconds; what is larger is no limit that anyone enforces
LONGEST_TEXT = 64  # characters of a value that can make sense
HOUR, DAY = 3600.0, 86_400.0
EPOCH = 1e8  # a "reset" of more seconds than this is an instant

_NAMES: dict[str, Resource] = {
    "": "requests",
    "requests": "requests",
    "tokens": "tokens",
    "input-tokens": "input_tokens",
    "output-tokens": "output_tokens",
    "tokens-prompt": "input_tokens",
    "tokens-generated": "output_tokens",
}
_HEADER = re.compile(
    r"(?:x-)?ratelimit-(?P<figure>limit|remaining|reset)(?:-(?P<name>[a-z-]+?))??(?:-(?P<period>minute|day))?"
    r"|anthropic-ratelimit-(?P<name_first>[a-z-]+)-(?P<figure_last>limit|remaining|reset)"
)
_PART = r"\d{1,12}(?:\.\d{0,12})?"
_DURATION = re.compile(rf"(?:{_PART}(?:ms|us|µs|ns|[smhd]))+")
_PARTS = re.compile(rf"({_PART})(ms|us|µs|ns|[smhd])")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": HOUR, "d": DAY}


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit as the provider told it; None where it did not, or not in a way that makes sense."""

    limit: float | None = None  # permits a minute, or a day
    remaining: float | None = None
    reset: float | None = None  # seconds until all permits are back


@dataclass(slots=True)
class _Told:
    """The figures of one resource on the way to a Standing."""

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None
    dated: bool = False  # the reset was an instant: rounded, and by another clock
    period: str | None = None

    def is_daily(self) -> bool:
        """Whether requests flow back so slowly that the limit must be a day's; no header of the large APIs says so."""
        if self.period is not None or self.limit is None or self.remaining is None or self.reset is None or self.dated:
            return self.period == "day"
        used = self.limit - self.remaining
        return used > 0 and self.reset * self.limit > HOUR * used


def read_standings(headers: Mapping[str, str], *, wall: datetime | None = None) -> dict[Resource, Standing]:
    """Return what the headers of one answer say, by resource; empty if nothing.

    Known are the formats of OpenAI and those who copy it, of Anthropic, and `ratelimit-*`. Names may be in any case.
    Resets that are instants are measured from the answer's own `date`, else from `wall`.
    """
    told: dict[tuple[Resource, bool], _Told] = {}
    for header, value in headers.items():
        meaning = _meaning(header)
        if meaning is None or not isinstance(value, str):
            continue
        resource, figure, period = meaning
        row = told.setdefault((resource, period == "day"), _Told(period=period))
        _note(row, figure, value.strip(), headers, wall)
    standings: dict[Resource, Standing] = {}
    for (resource, _), row in told.items():
        daily = row.is_daily() if resource == "requests" else row.period == "day"
        if daily and resource != "requests":
            continue  # no such limit is kept here
        standing = Standing(row.limit, row.remaining, row.reset)
        if standing != Standing():
            standings["requests_per_day" if daily else resource] = standing
    return standings


@lru_cache(maxsize=1024)
def _meaning(header: str) -> tuple[Resource, str, str | None] | None:
    """Return which figure of which resource a header tells, and the period that its name gives; None: of none."""
    found = _HEADER.fullmatch(header.lower())
    resource = _NAMES.get(found["name"] or found["name_first"] or "") if found else None
    if found is None or resource is None:
        return None
    return resource, found["figure"] or found["figure_last"], found["period"]


def _note(row: _Told, figure: str, value: str, headers: Mapping[str, str], wall: datetime | None) -> None:
    if len(value) > LONGEST_TEXT:
        return
    if figure == "limit":
        limit = _number(value.partition(",")[0].partition(";")[0])  # older drafts: "100, 100;w=60"
        row.limit = limit if limit is not None and limit >= 1 else None
    elif figure == "remaining":
        row.remaining = _number(value)
    else:
        row.reset, row.dated = _reset(value, headers, wall)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= LARGEST else None


def _reset(text: str, headers: Mapping[str, str], wall: datetime | None) -> tuple[float | None, bool]:
    """Return the seconds until a reset, and whether it was told as an instant."""
    if _DURATION.fullmatch(text):
        seconds = math.fsum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text))
        return (seconds if seconds <= LARGEST else None), False
    number = _number(text)
    if number is not None and number < EPOCH:
        return number, False
    try:
        instant = datetime.fromisoformat(text) if number is None else datetime.fromtimestamp(number, UTC)
        instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        here = _date(headers) or wall
        return (None if here is None else max(0.0, (instant - here).total_seconds())), True
    except (ValueError, OverflowError, OSError):
        return None, True


def _date(headers: Mapping[str, str]) -> datetime | None:
    text = next((value for name, value in headers.items() if name.lower() == "date"), None)
    try:
        instant = parsedate_to_datetime(text) if isinstance(text, str) else None
    except (ValueError, IndexError, OverflowError):
        return None
    return instant if instant is None or instant.tzinfo else instant.replace(tzinfo=UTC)
