"""The budget of a job in PostgreSQL: a fact of the job, on a connection of its own, in transactions of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llm_gateway.errors import JobError, JobStoreBusyError
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.lending import PURSE, Purse
from llm_gateway.jobs.postgres import existing_job
from llm_gateway.jobs.postgres_commits import connect, told
from llm_gateway.jobs.postgres_statements import Statements
from llm_gateway.limits.shared.protocol import Lending, Lent, StoreError

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")


class Standing(NamedTuple):
    """How a job's budget stands. US dollars."""

    limit: float
    spent: float  # in all runs, with what processes that were killed may have spent


def any_standing(_standing: Standing) -> None:
    """Find nothing wrong."""


class PostgresPurse:
    """Lends a job's budget to the processes that work on it, by the clock of the server.

    A process that ends gives back what it did not spend. What one that was killed had borrowed counts as spent: its
    last calls may have been paid.
    """

    def __init__(self, address: JobAddress) -> None:
        """Take the address of a job that is there; nothing is connected yet."""
        self._address = address
        self._connection: Connection[Any] | None = None
        # One thread: a word that was told later must not be overtaken by one whose answer nobody waited for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm-gateway-purse")

    async def begin(self, limit: float | None, *, check: Callable[[Standing], None] = any_standing) -> Standing | None:
        """Give the job a budget in US dollars, or another one; None changes nothing. Return how it stands.

        Raises JobError where processes work on the job that know of no budget, and what `check` raises of a budget
        that there is; then nothing is changed.
        """
        return await self._run(lambda db: self._begin(db, limit, check))

    async def lend(self, _key: str, said: Lending, /) -> Lent:
        """Lend to a process what it asks for, as far as it is there.

        Raises StoreError where the same could succeed later, JobError if not.
        """
        try:
            return await self._run(lambda db: self._lend(db, said))
        except JobStoreBusyError as error:
            raise StoreError(str(error)) from None

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _run(self, step: Callable[[Connection[Any]], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._now(step))

    def _now(self, step: Callable[[Connection[Any]], T]) -> T:
        def action() -> T:
            if self._connection is None:
                self._connection = connect(self._address)
            with self._connection.transaction():
                return step(self._connection)

        try:
            return told(self._address, action)
        except JobStoreBusyError:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(Exception):
                    connection.close()
            raise

    def _begin(
        self, connection: Connection[Any], limit: float | None, check: Callable[[Standing], None]
    ) -> Standing | None:
        job = existing_job(connection, self._address)
        found, now = self._locked(connection, job)
        if limit is not None:
            found = self._given(connection, job, found, limit)
        if found is None:
            return None
        standing = Standing(found.limit, found.spent(now))
        check(standing)
        if limit is not None:
            _write(connection, job, found)
        return standing

    def _given(self, connection: Connection[Any], job: int, found: Purse | None, limit: float) -> Purse:
        if found is None:
            steps = Statements(job, worker=0)
            if steps.workers(connection):
                raise JobError(
                    f"Processes work on the job {self._address.shown} that count no budget; stop them, "
                    "give it one with --budget, and start them again."
                )
            found = Purse(limit=limit, gone=steps.ledger(connection).cost_usd)
        else:
            found.limit = limit
        return found

    def _lend(self, connection: Connection[Any], said: Lending) -> Lent:
        job = existing_job(connection, self._address)
        found, now = self._locked(connection, job)
        if found is None:
            raise JobError(f"The job {self._address.shown} was begun anew.")
        lent = found.lend(said, now)
        _write(connection, job, found)
        return lent

    def _locked(self, connection: Connection[Any], job: int) -> tuple[Purse | None, float]:
        """Return the budget, which nobody else changes before the end of the transaction, and the server's time.

        The lock is on the job, which is there also where the budget is not. It holds up no row of the job.
        """
        connection.execute("SELECT FROM llm_gateway.jobs WHERE id = %s FOR NO KEY UPDATE", (job,))
        found = connection.execute(
            "SELECT value, extract(epoch FROM clock_timestamp())::float8 FROM (SELECT) AS one"
            " LEFT JOIN llm_gateway.facts ON job = %s AND name = %s",
            (job, PURSE),
        ).fetchall()
        value, now = found[0]
        if value is None:
            return None, now
        try:
            return Purse.read(json.loads(value)), now
        except ValueError as error:  # pydantic's is one
            told = f"The budget of the job {self._address.shown} cannot be read; give it one again in another job."
            raise JobError(told) from error


def _write(connection: Connection[Any], job: int, purse: Purse) -> None:
    Statements(job, worker=0).note(connection, {PURSE: purse.model_dump()})
