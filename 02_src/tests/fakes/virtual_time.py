"""An event loop whose clock jumps: a wait of an hour takes no time, and always ends in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it moves the loop's clock there."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready and timeout is None:
            if self.loop.outside_work():
                return super().select(None)  # a thread will wake us, in real time
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        if not ready and timeout is not None and timeout > 0:
            self.loop.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that starts at second 0 and skips all waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self._in_threads = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def outside_work(self) -> bool:
        return self._in_threads > 0

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        self._in_threads += 1
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._left_thread())
        return future

    def _left_thread(self) -> None:
        self._in_threads -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 - as of Python 3.12
        self._in_threads += 1  # the loop waits for a thread of its own here
        try:
            await super().shutdown_default_executor()
        finally:
            self._left_thread()


def run_virtual(main: Coroutine[Any, Any, T], *, bugs: Collection[str] = ()) -> T:
    """Run `main` in a fresh loop of virtual time; fail if the loop heard of an exception but the planted `bugs`."""
    problems: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        return await main

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(watched())
    unexpected = [each for each in problems if str(each.get("exception")) not in bugs]
    assert not unexpected, unexpected
    return result
