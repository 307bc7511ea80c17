"""A clock that jumps over waiting, for tests on an ordinary event loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

SETTLED = 100  # turns of the loop without a new alarm, after which everybody waits; a batch takes about 10 to leave


@dataclass(slots=True, order=True)
class Alarm:
    """A callback and the instant it rings at; of equal instants the first made rings first."""

    when: float
    number: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Never ring."""
        self.cancelled = True


class SkippingClock:
    """Time that stands still while tasks work and jumps to the next alarm when they all wait.

    Everything happens in the order of its instants, and `now` says what a real clock would have said, but nothing
    takes real time. Bound to the event loop that it is first used in. Work outside the loop, such as a read from a
    file or a socket, takes no time here: the clock does not wait for it.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._alarms: list[Alarm] = []
        self._numbers = count()
        self._quiet = 0  # turns of the loop since the last new alarm
        self._watching = False

    def now(self) -> float:
        """Seconds since the clock was made, none of which anybody waited."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], None], /) -> Alarm:
        """Ring once everybody waits and no other alarm comes first."""
        alarm = Alarm(max(when, self._now), next(self._numbers), callback)
        heapq.heappush(self._alarms, alarm)
        self._quiet = 0
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_soon(self._watch)
        return alarm

    async def sleep(self, seconds: float, /) -> None:
        """Return once `seconds` have been skipped."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alarm = self.call_at(self._now + seconds, lambda: None if done.done() else done.set_result(None))
        try:
            await done
        finally:
            alarm.cancel()

    @asynccontextmanager
    async def timeout(self, seconds: float | None, /) -> AsyncIterator[asyncio.Timeout]:
        """Cancel the body once `seconds` have been skipped, and raise TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            if seconds is None:
                yield scope
                return
            alarm = self.call_at(self._now + seconds, lambda: scope.reschedule(loop.time()))
            try:
                yield scope
            finally:
                alarm.cancel()

    def _watch(self) -> None:
        """Look once every turn of the loop whether all has settled; then ring."""
        while self._alarms and self._alarms[0].cancelled:
            heapq.heappop(self._alarms)
        self._watching = bool(self._alarms)
        if not self._watching:
            return
        asyncio.get_running_loop().call_soon(self._watch)
        self._quiet += 1
        if self._quiet > SETTLED:
            alarm = heapq.heappop(self._alarms)
            self._quiet = 0
            self._now = alarm.when
            alarm.callback()
