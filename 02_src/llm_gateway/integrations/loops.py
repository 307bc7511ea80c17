"""A gateway asked from any thread and any event loop; it works in its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from threading import Lock, Thread
from typing import Generic, TypeVar

from llm_gateway.errors import GatewayClosedError, GatewayError
from llm_gateway.gateway import LLMGateway

T = TypeVar("T")
END = object()  # of a stream

WAITS_FOR_ITSELF = (
    "A call that waits was made in the event loop that the gateway works in, and would wait for itself; "
    "await `ainvoke` or `astream` there, or make the call in a thread, with asyncio.to_thread()."
)
STANDS_STILL = (
    "This gateway belongs to an event loop that does not run now, so that nothing would answer; "
    "run that loop, or build an LLMGateway of its own for calls that wait."
)
FORKED = "This gateway was used before the process forked; build an LLMGateway in each process."
LOOP_ENDED = "The event loop that the gateway works in ended before the answer came."


class Doorway:
    """Asks a gateway from wherever it is used; the caller's context goes along, and with it class and agent.

    A gateway that works in an open loop is asked there. One that was not used yet takes the loop of an asynchronous
    call. A call that waits takes the loop in which the doorway was made, if that runs in another thread, and else the
    one that a thread runs in the background, the same for all gateways of the process.
    """

    def __init__(self, gateway: LLMGateway) -> None:
        self._gateway = gateway
        self._made_in = asyncio._get_running_loop()  # noqa: SLF001 - None where no loop runs
        self._pid = os.getpid()

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()` where the gateway works. Raises GatewayClosedError if that loop ends before."""
        home = self._other_home()
        return await work() if home is None else await _awaited(home, work)

    async def stream(self, pieces: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """Yield what `pieces()` yields where the gateway works; closed, it has closed that too."""
        home = self._other_home()
        if home is None:
            async with aclosing(pieces()) as here:
                async for piece in here:
                    yield piece
            return
        there = _Steps(pieces())
        try:
            while not there.ended:
                for piece in await _awaited(home, there.step):
                    yield piece
        finally:
            with suppress(GatewayClosedError):
                await _awaited(home, there.close)

    def ask_and_wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work()` returns where the gateway works. Blocks; raises GatewayError where that cannot end."""
        return _waited(self._home_to_wait_for(), work)

    def stream_and_wait(self, pieces: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """Yield what `pieces()` yields where the gateway works. Blocks between two pieces."""
        home = self._home_to_wait_for()
        there = _Steps(pieces())
        try:
            while not there.ended:
                yield from _waited(home, there.step)
        finally:
            if asyncio._get_running_loop() is home:  # noqa: SLF001 - see above
                # The garbage collector found a dropped stream, in the one thread that must not wait for its end.
                home.create_task(there.close())
            else:
                with suppress(GatewayClosedError):
                    _waited(home, there.close)

    def _other_home(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop that an asynchronous call must go to; None: it may stay in its own."""
        home = self._gateway.loop
        if home is None or home is asyncio.get_running_loop():
            return None
        self._check(home)
        return home

    def _home_to_wait_for(self) -> asyncio.AbstractEventLoop:
        here = asyncio._get_running_loop()  # noqa: SLF001 - see above
        home = self._gateway.loop
        if home is None:
            made_in = self._made_in
            usable = made_in is not None and made_in is not here and self._pid == os.getpid()
            return made_in if usable and made_in is not None and made_in.is_running() else background_loop()
        if home is here:
            raise GatewayError(WAITS_FOR_ITSELF)
        self._check(home)
        return home

    def _check(self, home: asyncio.AbstractEventLoop) -> None:
        """Raise GatewayError for a loop that would never answer."""
        if self._pid != os.getpid():
            raise GatewayError(FORKED)
        if not home.is_running():
            raise GatewayError(STANDS_STILL)


class _Steps(Generic[T]):
    """A generator that is driven step by step from outside its loop, and closed also in the middle of a step."""

    def __init__(self, pieces: AsyncGenerator[T, None]) -> None:
        self.ended = False
        self._pieces = pieces
        self._task: asyncio.Task[object] | None = None

    async def step(self) -> list[T]:
        """Return the next piece, or nothing at the end."""
        self._task = asyncio.current_task()
        piece = await anext(self._pieces, END)
        if piece is END:
            self.ended = True
            return []
        return [piece]  # type: ignore[list-item]  # it is a T: the end was told apart

    async def close(self) -> None:
        """End the step that nobody waits for any more, if there is one, and close."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._pieces.aclose()


def _sent(home: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> concurrent.futures.Future[T]:
    """Begin `work()` in the loop `home`, in a copy of this context."""

    async def there() -> T:
        return await work()

    coroutine = there()
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, home)
    except RuntimeError:  # it was closed just now
        coroutine.close()
        raise GatewayClosedError(LOOP_ENDED) from None


async def _awaited(home: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> T:
    future = asyncio.wrap_future(_sent(home, work))
    try:
        return await future
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise GatewayClosedError(LOOP_ENDED) from None  # nobody cancelled us: its loop cancels all when it ends


def _waited(home: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> T:
    future = _sent(home, work)
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise GatewayClosedError(LOOP_ENDED) from None
    except BaseException:  # also KeyboardInterrupt, while the work goes on
        future.cancel()
        raise


class _Background:
    """An event loop that runs in a thread of its own until the process ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        Thread(target=self.loop.run_forever, name="llm-gateway", daemon=True).start()


_background: _Background | None = None
_starting = Lock()


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of the process's background thread, begun at the first call."""
    global _background  # noqa: PLW0603 - one for the process
    with _starting:
        if _background is None or _background.pid != os.getpid():  # a forked child has the object, but no thread
            _background = _Background()
        return _background.loop
