"""The door of one lane: a flood of callers comes in by and by, so that nobody else on the loop waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from llm_gateway.errors import GatewayClosedError

AT_ONCE = 64  # requests that come in within one turn of the loop without a wait; a few milliseconds
CALLED_IN = 16  # of those who wait, in a turn; an answer takes several turns on its way, and each is to be short


class Door:
    """Counts who comes in within one turn of the event loop, and lets the others wait for a later turn, in their order.

    Thousands of tasks that ask in the same turn would hold up the loop for as long as all of them take: timers, answers
    and users who come meanwhile. `on_wait` is called when somebody begins to wait; `open` is to follow in a later turn.
    """

    def __init__(self, *, on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait
        self._came = 0  # in this turn, and those who have been called in
        self._outside: deque[asyncio.Future[None]] = deque()
        self._called = 0  # in, who have not come yet
        self._closed: str | None = None  # the reason, for whoever finds it closed

    @property
    def is_crowded(self) -> bool:
        """Whether whoever asks now has to wait for `turn`."""
        return self._came >= AT_ONCE or self._called > 0

    @property
    def is_clear(self) -> bool:
        """Whether nobody is on the way in."""
        return not self._outside and not self._called

    def came(self) -> None:
        """Note that somebody has come in."""
        self._came += 1

    async def turn(self) -> None:
        """Return when it is the caller's turn; after a cancel somebody else has it.

        Raises GatewayClosedError if the door is closed, before or meanwhile.
        """
        if self._closed is not None:
            raise GatewayClosedError(self._closed)
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outside.append(called)
        self._on_wait()
        try:
            await called
        finally:
            if called.done() and not called.cancelled():
                self._called -= 1
            if not self.is_clear:
                self._on_wait()
        if self._closed is not None:
            raise GatewayClosedError(self._closed)

    def open(self) -> None:
        """Begin another turn: call the next in."""
        self._came = 0
        while self._outside and self._called < CALLED_IN:
            self._call(self._outside.popleft())

    def close(self, reason: str) -> None:
        """Let nobody in any more; those outside get GatewayClosedError with `reason`."""
        self._closed = reason
        while self._outside:
            self._call(self._outside.popleft())

    def _call(self, called: asyncio.Future[None]) -> None:
        if not called.done():  # or its caller has left
            self._called += 1
            called.set_result(None)
