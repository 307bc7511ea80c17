"""Rows in: from an input into the store, as far ahead of the asking as is needed and no farther."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from llm_gateway.clock import Clock
from llm_gateway.errors import InvalidRequestError, JobChangedError
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.patience import Patience
from llm_gateway.jobs.records import NewRow
from llm_gateway.jobs.store import Added, JobStore

CHUNK = 128  # rows that are taken in together at most; the loop is not held up longer
STALL = 0.1  # seconds without a need of rows, after which it is looked whether later ones are of another model


class Taker(Protocol):
    """Who needs the rows."""

    def claim(self, rows: Sequence[NewRow], *, stalled: bool) -> int | None:
        """Return how many of the first rows to take in, each marked whether to lease it with that; None: never more.

        `stalled`: none was needed for some time.
        """

    async def until_needed(self) -> None:
        """Return when `claim` may answer otherwise."""

    def taken_in(self, rows: Sequence[NewRow]) -> None:
        """Hear of claimed rows that are new, and in the store now."""

    def not_taken_in(self, rows: Sequence[NewRow]) -> None:
        """Hear of claimed rows that were there already, or could not be written."""


@dataclass(slots=True)
class Gathered:
    """Rows that were read and are not in the store."""

    rows: list[NewRow] = field(default_factory=list)
    are_all: bool = False  # no more will come
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_changed(self) -> None:
        """Return when there are more, or fewer, or there will be no more."""
        self.changed.clear()
        await self.changed.wait()


class Intake:
    """Takes rows into a store."""

    def __init__(self, store: JobStore, patience: Patience, taker: Taker, clock: Clock) -> None:
        self._store = store
        self._patience = patience
        self._taker = taker
        self._clock = clock

    async def read(self, rows: AsyncIterable[NewRow]) -> None:
        """Take rows in. While some are being written, or none is needed, the next ones gather.

        Raises JobChangedError.
        """
        gathered = Gathered()
        writing = asyncio.create_task(self._write(gathered))
        writing.add_done_callback(lambda _: gathered.changed.set())
        try:
            async for row in rows:
                if not gathered.rows:
                    gathered.changed.set()
                gathered.rows.append(row)
                while len(gathered.rows) >= CHUNK and not writing.done():
                    await gathered.until_changed()
                if writing.done():
                    break
        finally:
            gathered.are_all = True
            gathered.changed.set()
            await asyncio.wait((writing,))
            failure = writing.exception()
        if failure is not None:
            raise failure

    async def _write(self, gathered: Gathered) -> None:
        stalled = False
        while True:
            number = self._taker.claim(gathered.rows, stalled=stalled)
            if number is None:
                return
            if number:
                chunk = gathered.rows[:number]
                del gathered.rows[:number]
                gathered.changed.set()
                stalled = False
                await self._take_in(chunk)
            elif gathered.rows and stalled:  # and as many are pending as may be
                await self._taker.until_needed()
            elif gathered.rows:
                stalled = await self._stalled()
            elif gathered.are_all:
                return
            else:
                await gathered.until_changed()

    async def _stalled(self) -> bool:
        """Wait for a need of rows; True if there is none for some time."""
        with suppress(TimeoutError):
            async with self._clock.timeout(STALL):
                await self._taker.until_needed()
                return False
        return True

    async def _take_in(self, rows: Sequence[NewRow]) -> None:
        try:
            outcomes = await self._patience.persisted(lambda: self._store.add(rows))
        except BaseException:
            self._taker.not_taken_in(rows)
            raise
        if outcomes.count(Added.NEW) == len(rows):
            self._taker.taken_in(rows)
        else:
            await self._sort(rows, outcomes)

    async def _sort(self, rows: Sequence[NewRow], outcomes: Sequence[Added]) -> None:
        """Tell what became of rows that are not all new. Raises JobChangedError."""

        def those(outcome: Added) -> list[NewRow]:
            return [row for row, found in zip(rows, outcomes, strict=True) if found is outcome]

        self._taker.taken_in(those(Added.NEW))
        for outcome in (Added.KNOWN, Added.TWICE, Added.CHANGED):
            self._taker.not_taken_in(those(outcome))
        if twice := those(Added.TWICE):
            await self._take_in([_refused_for_its_key(row) for row in twice])
        for row in those(Added.CHANGED):
            told = f"Row {row.number} ('{row.key}') is not what it was when the job began; begin another job."
            raise JobChangedError(told)


def _refused_for_its_key(row: NewRow) -> NewRow:
    """Return a row that cannot be asked, since an earlier one has its id."""
    error = InvalidRequestError(f"the id '{row.key}' stands on an earlier line too; give each line its own.")
    return replace(row, key=None, model="", request=b"", failure=failure_of(error), leased=False)
