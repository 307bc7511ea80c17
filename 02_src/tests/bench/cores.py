"""Which core a process of the benchmarks runs on, where the system can say so."""

from __future__ import annotations

import os
import sys


def cores() -> list[int]:
    """Return the cores that this process may use; none where there is nothing to choose."""
    known = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    return known if len(known) > 1 else []


def stay_on(core: int | None) -> None:
    """Keep this process and all its threads to one core."""
    if core is not None and sys.platform == "linux":
        os.sched_setaffinity(0, {core})
