"""The headers in which providers tell of their limits, as they send them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from llm_gateway.simulation.enforcement import LimitKey, Standing

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)  # the wall's second 0 of a simulation: any instant does
THOUSAND = 1000

Standings = Mapping[LimitKey, Standing]


def openai(standings: Standings, _now: float) -> dict[str, str]:
    """Return `x-ratelimit-*`: requests and tokens, resets as "6m0s" or "20ms"."""
    told = {"requests": standings.get("rpm") or standings.get("rpd"), "tokens": standings.get("tpm")}
    headers: dict[str, str] = {}
    for name, standing in told.items():
        if standing is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(standing.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(standing.remaining)
            headers[f"x-ratelimit-reset-{name}"] = go_duration(standing.reset)
    return headers


def anthropic(standings: Standings, now: float) -> dict[str, str]:
    """Return `anthropic-ratelimit-*`: resets are instants, remaining tokens are rounded to thousands."""
    names: dict[str, LimitKey] = {
        "requests": "rpm",
        "tokens": "tpm",
        "input-tokens": "itpm",
        "output-tokens": "otpm",
    }
    headers: dict[str, str] = {}
    for name, key in names.items():
        standing = standings.get(key)
        if standing is None:
            continue
        remaining = standing.remaining
        if key != "rpm":
            remaining = round(remaining / THOUSAND) * THOUSAND
        at = EPOCH + timedelta(seconds=math.ceil(now + standing.reset))
        headers[f"anthropic-ratelimit-{name}-limit"] = str(standing.limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(remaining)
        headers[f"anthropic-ratelimit-{name}-reset"] = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    return headers


def silent(_standings: Standings, _now: float) -> dict[str, str]:
    """Return nothing, as most servers do."""
    return {}


DIALECTS: Mapping[str, Callable[[Standings, float], dict[str, str]]] = {
    "openai": openai,
    "azure_openai": openai,
    "anthropic": anthropic,
}
"""By kind of provider; any other is silent."""


def hint(kind: str, seconds: float) -> dict[str, str]:
    """Return the headers of a 429 that say when to come back."""
    if DIALECTS.get(kind) is anthropic:
        return {"retry-after": str(math.ceil(seconds))}
    milliseconds = math.ceil(seconds * THOUSAND)
    return {"retry-after-ms": str(milliseconds), "retry-after": str(math.ceil(seconds))}


def go_duration(seconds: float) -> str:
    """Write a duration as OpenAI's resets are: "0s", "20ms", "1.5s", "6m0s", "1h2m3s"."""
    milliseconds = math.ceil(seconds * THOUSAND)
    if milliseconds < THOUSAND:
        return f"{milliseconds}ms" if milliseconds else "0s"
    whole, part = divmod(milliseconds, THOUSAND)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    ending = f"{rest}.{part:03}".rstrip("0").rstrip(".") + "s" if part else f"{rest}s"
    if hours:
        return f"{hours}h{minutes}m{ending}"
    return f"{minutes}m{ending}" if minutes else ending
