"""Time is handed in: the only source of elapsed time, and the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol


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
    """The running event loop's own clock. A loop whose clock jumps makes all waiting virtual."""

    def now(self) -> float:
        """Seconds on the running loop's clock."""
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Ring on the running loop at `when`."""
        return asyncio.get_running_loop().call_at(when, callback)

    async def sleep(self, seconds: float, /) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """Time out on the running loop."""
        return asyncio.timeout(seconds)


def utc_now() -> datetime:
    """Wall time for what is stored: aware, in UTC."""
    return datetime.now(UTC)
