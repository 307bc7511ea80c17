"""Rows in: from an input into the store, as far ahead of the asking as is needed and no farther."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import replace

from llm_gateway.errors import InvalidRequestError, JobChangedError
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.patience import Patience
from llm_gateway.jobs.records import NewRow
from llm_gateway.jobs.store import Added, JobStore
from llm_gateway.models import LLMRequest

CHUNK = 128  # rows that are taken in together at most; the loop is not held up longer
AHEAD = 2048  # rows that may be pending before the reading waits: the store stays small, and nobody waits for rows
KEPT = 2 * AHEAD  # requests that are kept at hand until their rows are leased
KEPT_BYTES = 4096  # a longer one, with an image say, waits in the store alone


class Intake:
    """Takes rows into a store, and keeps the requests at hand that will be asked soon."""

    def __init__(
        self,
        store: JobStore,
        patience: Patience,
        *,
        keeps: bool,
        taken_in: Callable[[NewRow], None],
        until_there_is_room: Callable[[], Awaitable[None]],
    ) -> None:
        """Take who hears of each row that is new; without `keeps` no request is kept."""
        self._store = store
        self._patience = patience
        self._keeps = keeps
        self._taken_in = taken_in
        self._until_there_is_room = until_there_is_room
        self._kept: dict[int, LLMRequest] = {}  # by the number of the row

    def known(self, number: int) -> LLMRequest | None:
        """Return the request of a row that was leased, once, if it is at hand."""
        return self._kept.pop(number, None)

    async def read(self, rows: AsyncIterable[NewRow]) -> None:
        """Take rows in. While some are being written, the next ones gather. Raises JobChangedError."""
        gathered: list[NewRow] = []
        writing: asyncio.Task[None] | None = None
        try:
            async for row in rows:
                gathered.append(row)
                if writing is None or writing.done():
                    if writing is not None:
                        writing.result()
                    writing = asyncio.create_task(self._take_in_all(gathered))
                if len(gathered) >= CHUNK:
                    await writing
                    await self._until_there_is_room()
        finally:
            if writing is not None:
                await asyncio.wait((writing,))
        if writing is not None:
            writing.result()

    async def _take_in_all(self, gathered: list[NewRow]) -> None:
        while gathered:
            chunk = gathered.copy()
            gathered.clear()
            await self._take_in(chunk)

    async def _take_in(self, rows: list[NewRow]) -> None:
        outcomes = await self._patience.persisted(lambda: self._store.add(rows))
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome is Added.CHANGED:
                told = f"Row {row.number} ('{row.key}') is not what it was when the job began; begin another job."
                raise JobChangedError(told)
            if outcome is Added.TWICE:
                await self._take_in([_refused_for_its_key(row)])
            elif outcome is Added.NEW:
                self._keep(row)
                self._taken_in(row)

    def _keep(self, row: NewRow) -> None:
        if self._keeps and row.asked is not None and len(row.request) <= KEPT_BYTES:
            if len(self._kept) >= KEPT:  # they went to other workers, or wait for the next run
                self._kept.clear()
            self._kept[row.number] = row.asked


def _refused_for_its_key(row: NewRow) -> NewRow:
    """Return a row that cannot be asked, since an earlier one has its id."""
    error = InvalidRequestError(f"the id '{row.key}' stands on an earlier line too; give each line its own.")
    return replace(row, key=None, model="", request=b"", failure=failure_of(error))
