"""Time is handed in: the only source of elapsed time, and the real one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol

GRAIN = 1e-3  # seconds; of uvloop's timers


class Timer(Protocol):
    """A callback that has not rung yet."""

    def cancel(self) -> None:
        """Never ring. Safe to call twice, and after it rang."""


class Clock(Protocol):
    """Monotonic time within one event loop. Durations and instants are float seconds."""

    def now(self) -> float:
        """Seconds on the loop's monotonic clock; only differences mean something."""

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Ring `callback` once at instant `when`, on the loop."""

    async def sleep(self, seconds: float, /) -> None:
        """Return after `seconds`."""

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """Cancel the body after `seconds` and raise TimeoutError; None means never."""


class LoopClock:
    """The running event loop's own clock. A loop whose clock jumps makes all waiting virtual.

    uvloop's clock and timers count whole milliseconds. There the system's clock is read, the same but finer, and no
    timer rings before its instant: whoever is called too early has to look at the clock again and again.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._time: Callable[[], float] = time.monotonic
        self._is_coarse = False

    def now(self) -> float:
        """Seconds on the running loop's clock."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._look_at(loop)
        return self._time()

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Ring on the running loop at `when`."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._look_at(loop)
        if self._is_coarse:
            # One grain more, since its timers count from the last whole one.
            return loop.call_later((math.ceil((when - self._time()) / GRAIN) + 1) * GRAIN, callback)
        return loop.call_at(when, callback)

    def _look_at(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find out which clock a loop has."""
        self._loop = loop
        self._is_coarse = any(each.__module__ == "uvloop" for each in type(loop).__mro__)
        is_own = getattr(loop.time, "__func__", None) is not asyncio.BaseEventLoop.time
        self._time = loop.time if is_own and not self._is_coarse else time.monotonic

    async def sleep(self, seconds: float, /) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """Time out on the running loop."""
        return asyncio.timeout(seconds)


def utc_now() -> datetime:
    """Wall time for what is stored: aware, in UTC."""
    return datetime.now(UTC)
