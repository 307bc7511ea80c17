"""Python's collector of garbage: how often it stops the program to look for cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (10_000, 20, 50)
"""Its thresholds: new objects before it looks through the young ones, and how often, before it looks further.

Hundreds of requests under way are thousands of objects, none of them garbage. By default it looks through the young
ones every ten requests or so, and every few thousand through all that the program and its libraries ever made.
"""


def freeze() -> None:
    """Collect once, leave what is there now out of all later collections, and collect rarely from now on."""
    gc.collect()
    gc.freeze()
    _collect_rarely()


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let it look rarely while the body runs."""
    before = gc.get_threshold()
    _collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _collect_rarely() -> None:
    """Raise the thresholds; one that is higher already stays, and so does a collector that somebody has turned off."""
    now = gc.get_threshold()
    if now[0]:
        gc.set_threshold(*[max(each, least) for each, least in zip(now, RARELY, strict=True)])
