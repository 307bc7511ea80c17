"""An event loop whose clock jumps: a wait of an hour takes no time, and always ends in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that starts at second 0 and skips all waiting; a deadlock is a RuntimeError.

    Work in threads takes no virtual time; where all tasks wait and no timer is set, the loop waits for it. With a
    `seed`, tasks that are ready at the same time take their turns in an order that the seed decides: another seed is
    another interleaving, the same seed the same one. Callbacks that are no tasks keep their places.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self.now = 0.0
        self._order = None if seed is None else Random(seed)  # noqa: S311 - an interleaving is no secret
        self._in_threads = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds since the loop was made, none of which anybody waited."""
        return self.now

    @property
    def waits_for_threads(self) -> bool:
        """Whether work is under way in a thread, which will wake the loop in real time."""
        return self._in_threads > 0

    def shuffle_ready(self) -> None:
        """Put the tasks that are ready into an order of chance, where the loop has a seed."""
        if self._order is None:
            return
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]  # no public way to reorder it
        if len(ready) <= 1:
            return
        # Another thread may append meanwhile, so what is here is taken off and put back on the left.
        handles = [ready.popleft() for _ in range(len(ready))]
        places = [place for place, handle in enumerate(handles) if _is_task(handle)]
        steps = [handles[place] for place in places]
        self._order.shuffle(steps)
        for place, step in zip(places, steps, strict=True):
            handles[place] = step
        ready.extendleft(reversed(handles))

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run in a thread, as every loop does."""
        self._in_threads += 1
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._left_thread())
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 - as of Python 3.12
        """Wait for the threads, however long they take."""
        self._in_threads += 1  # the loop waits for a thread of its own here
        try:
            await super().shutdown_default_executor()
        finally:
            self._left_thread()

    def _left_thread(self) -> None:
        self._in_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for the next timer it moves the loop's clock there."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; without anything, jump."""
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready and timeout is None:
            if self._loop.waits_for_threads:
                return super().select(None)
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        if not ready and timeout is not None and timeout > 0:
            if self._loop.waits_for_threads:
                return super().select(None)  # what a thread does takes no virtual time
            self._loop.now += timeout
        self._loop.shuffle_ready()
        return ready


def _is_task(handle: asyncio.Handle) -> bool:
    """Whether a handle is the next step of a task."""
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]  # noqa: SLF001


def run_virtual(main: Coroutine[Any, Any, T], *, seed: int | None = None, bugs: Collection[str] = ()) -> T:
    """Run `main` in a fresh loop of virtual time, with the interleaving of `seed` if one is given.

    Raises RuntimeError if the loop heard of an exception that nobody awaited, but for those whose text is in `bugs`.
    """
    problems: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        return await main

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed=seed)) as runner:
        result = runner.run(watched())
    unexpected = [each for each in problems if str(each.get("exception")) not in bugs]
    if unexpected:
        raise RuntimeError(f"the loop heard of {unexpected}") from unexpected[0].get("exception")
    return result
