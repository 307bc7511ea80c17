"""Calls that may block for ever, out of the event loop's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_background(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run `function` in a thread of its own; the future tells how it ended.

    Unlike those of `asyncio.to_thread`, the thread does not keep the process alive: a read from a terminal, or a
    write to a pipe that nobody empties, must not outlive Ctrl-C. Use system calls in it, not buffered files, whose
    locks Python wants to take when the process ends.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():  # cancelled: nobody waits for it any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only if T is None

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001 - it is raised where the future is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=work, daemon=True).start()
    return future
