"""The event loop of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from llm_gateway.collector import collecting_rarely

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end, on uvloop where that is installed (`llm-gateway[uvloop]`), else on asyncio's own loop.

    The process is the command's own, so garbage is collected rarely meanwhile.
    """
    make: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        from uvloop import new_event_loop as make
    with collecting_rarely(), asyncio.Runner(loop_factory=make) as runner:
        return runner.run(main)
