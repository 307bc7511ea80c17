"""What has changed between a recorded request and the one that is sent now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

LISTED = 8  # differences
SHOWN = 60  # characters of a value
BEFORE = 15  # characters of a long text that are shown before the place where it begins to differ
COMPARED = 2000  # characters of a request that are compared, since likeness takes quadratic time
NOTHING = object()  # in the place of a field that one of the two has not


def likeness(recorded: Mapping[str, Any], sent: Mapping[str, Any]) -> float:
    """Return how alike two requests are, 0 to 1."""
    old, new = (json.dumps(each, sort_keys=True, ensure_ascii=False)[-COMPARED:] for each in (recorded, sent))
    return SequenceMatcher(None, old, new, autojunk=False).ratio()


def differences(recorded: Mapping[str, Any], sent: Mapping[str, Any]) -> list[str]:
    """Return one line for each field that differs: its path, what was recorded, what is sent."""
    lines = list(_differing("", recorded, sent))
    more = len(lines) - LISTED
    return [*lines[:LISTED], f"… and {more} more"] if more > 0 else lines


def _differing(path: str, recorded: Any, sent: Any) -> Iterator[str]:
    if isinstance(recorded, Mapping) and isinstance(sent, Mapping):
        for name in dict.fromkeys([*recorded, *sent]):
            below = f"{path}.{name}" if path else str(name)
            yield from _differing(below, recorded.get(name, NOTHING), sent.get(name, NOTHING))
    elif isinstance(recorded, list) and isinstance(sent, list):
        for place in range(max(len(recorded), len(sent))):
            old, new = (each[place] if place < len(each) else NOTHING for each in (recorded, sent))
            yield from _differing(f"{path}[{place}]", old, new)
    elif recorded is NOTHING:
        yield f"{path}: new, {_shown(sent)}"
    elif sent is NOTHING:
        yield f"{path}: gone, was {_shown(recorded)}"
    elif recorded != sent:
        start = 0
        if isinstance(recorded, str) and isinstance(sent, str):
            alike = next((place for place, pair in enumerate(zip(recorded, sent, strict=False)) if len({*pair}) > 1), 0)
            start = max(0, alike - BEFORE)
        yield f"{path}: recorded {_shown(recorded, start)}, sent {_shown(sent, start)}"


def _shown(value: Any, start: int = 0) -> str:
    """Write a value on one line, shortened; a long text from `start`, a little before where it differs."""
    if isinstance(value, str) and len(value) > SHOWN and start:
        return f"…{_shown(value[start:])}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
