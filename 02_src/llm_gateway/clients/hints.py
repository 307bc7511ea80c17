"""What a provider's headers say about when to come back. Garbage says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from llm_gateway.clock import utc_now


def retry_after(headers: Mapping[str, str], now: Callable[[], datetime] = utc_now) -> float | None:
    """Return the pause that was asked for, in seconds; None where there is none that makes sense.

    `retry-after-ms` is more exact than `retry-after`, which is a number of seconds or an HTTP date (RFC 9110, 10.2.3).
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    text = headers.get("retry-after")
    seconds = _number(text)
    return _until(text, now) if seconds is None else seconds


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Return the provider's own word on whether to try again (`x-should-retry`), None if it has not said."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(text: str | None, now: Callable[[], datetime]) -> float | None:
    """Return the seconds until an HTTP date; None for one that has passed, which tells of clocks, not of limits."""
    if not text:
        return None
    try:
        instant = parsedate_to_datetime(text)
    except ValueError:
        return None
    if instant.tzinfo is None:  # "-0000" parses as naive, and means UTC
        instant = instant.replace(tzinfo=UTC)
    left = (instant - now()).total_seconds()
    return left if left > 0 else None


def limits_told(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that tell of rate limits, for whoever keeps the pace."""
    named = ((name.lower(), value) for name, value in headers.items())
    return {name: value for name, value in named if "ratelimit" in name}
