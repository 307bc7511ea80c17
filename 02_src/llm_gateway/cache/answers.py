"""Kept answers for those who ask, and no harm done where their store fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import asdict, dataclass

from llm_gateway.cache.entries import KeptAnswer, decoded, encoded
from llm_gateway.cache.store import AnswerStore, CacheStoreError

log = logging.getLogger("llm_gateway")

PATIENCE = 1.0  # seconds without a word from the store, on the loop's own clock: a disk does not know another one
LATE_TURNS = 10  # of the loop
PAUSE = 10.0  # seconds without a store that failed
MOST_UNDER_WAY = 1000  # answers on their way into the store; more than that are not kept


@dataclass(slots=True)
class CacheFigures:
    """What came of looking and keeping, over all event loops of a gateway."""

    hits: int = 0
    misses: int = 0
    unavailable: int = 0  # times that the store failed or rested when an answer was looked for
    kept: int = 0
    not_kept: int = 0  # answers that the store could not take
    damaged: int = 0  # that were found, and were not what had been kept

    def snapshot(self) -> dict[str, int]:
        """Return the figures as plain data."""
        return asdict(self)


class Answers:
    """Finds and keeps answers in a store, and goes on without it where it fails. Neither method raises.

    A store that failed is left alone for `PAUSE` seconds, reading and writing each for itself; the first failure is a
    warning in the log. Answers are kept in the background, and found from the moment on at which that begins.
    """

    def __init__(
        self,
        store: AnswerStore,
        name: str,
        *,
        ttl: float | None,
        max_bytes: int,
        figures: CacheFigures,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._name = name
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._figures = figures
        self._now = now
        self._rests = {"read": 0.0, "written": 0.0}  # until when, on the loop's clock; 0.0 while all is well
        self._waits: set[asyncio.Timeout] = set()  # for the store
        self._answered = 0  # how often it answered
        self._timer: asyncio.Handle | None = None  # that looks whether it does
        self._under_way: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def find(self, key: bytes) -> KeptAnswer | None:
        """Return the answer that is kept under `key`; None if there is none, or the store cannot be used."""
        body = self._under_way.get(key)
        if body is None:
            body = await self._body(key) or self._under_way.get(key)
        answer = None if body is None else decoded(key, body)
        if answer is not None:
            self._figures.hits += 1
        elif body is not None:
            self._figures.damaged += 1
            if self._figures.damaged == 1:
                log.warning(
                    "the answer cache %s: a damaged answer is passed over; further ones are counted", self._name
                )
        return answer

    def keep(self, key: bytes, answer: KeptAnswer) -> None:
        """Keep an answer, in the background."""
        body = encoded(key, answer)
        if body is None or len(body) > self._max_bytes or len(self._tasks) >= MOST_UNDER_WAY or self._rest("written"):
            self._figures.not_kept += 1
            return
        self._under_way[key] = body
        self._watch()
        task = asyncio.get_running_loop().create_task(self._put(key, body), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Wait for what is on its way into the store, and close it. Safe to call twice."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        else:
            await self._store.aclose()

    def abandon(self) -> None:
        """Let go of the store without the event loop, which may be closed."""
        self._store.abandon()

    # --- the store --------------------------------------------------------------------------------------------

    async def _body(self, key: bytes) -> bytes | None:
        if self._rest("read"):
            self._figures.unavailable += 1
            return None
        self._watch()
        try:
            async with self._patience():
                found = await self._store.get(key)
        except (CacheStoreError, TimeoutError) as error:
            self._figures.unavailable += 1
            self._failed("read", error)
            return None
        self._rests["read"] = 0.0
        if found is None or (self._ttl is not None and self._now() - found[1] > self._ttl):
            self._figures.misses += 1
            return None
        return found[0]

    async def _put(self, key: bytes, body: bytes) -> None:
        try:
            async with self._patience():
                await self._store.put(key, body)
        except (CacheStoreError, TimeoutError) as error:
            self._figures.not_kept += 1
            self._failed("written", error)
        else:
            self._figures.kept += 1
            self._rests["written"] = 0.0
        finally:
            if self._under_way.get(key) is body:
                del self._under_way[key]

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Raise TimeoutError when the store has not answered anybody for a while.

        What waits because many ask, or because the event loop is late, is no reason to do without the store.
        """
        if self._timer is None:
            self._look_later()
        async with asyncio.timeout(None) as wait:
            self._waits.add(wait)
            try:
                yield
                self._answered += 1
            finally:
                self._waits.discard(wait)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._look, self._answered, LATE_TURNS)

    def _look(self, answered: int, turns: int) -> None:
        """See whether the store has answered; what has come by now is heard of within some turns of the loop."""
        self._timer = None
        if not self._waits:
            return
        loop = asyncio.get_running_loop()
        if self._answered != answered:
            self._look_later()
        elif turns:
            self._timer = loop.call_soon(self._look, answered, turns - 1)
        else:
            for wait in self._waits:
                wait.reschedule(loop.time())

    def _rest(self, what: str) -> bool:
        """Whether the store is left alone after a failure."""
        until = self._rests[what]
        return until > 0.0 and asyncio.get_running_loop().time() < until

    def _failed(self, what: str, error: Exception) -> None:
        is_news = not any(self._rests.values())
        self._rests[what] = asyncio.get_running_loop().time() + PAUSE
        if is_news:
            reason = str(error) or "no answer in time"
            log.warning("the answer cache %s cannot be %s (%s); requests go on without it", self._name, what, reason)

    def _watch(self) -> None:
        """See to it that the store is closed with the loop, be it without `aclose`."""
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._close_at_the_end(), context=Context())

    async def _close_at_the_end(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self._store.aclose()
