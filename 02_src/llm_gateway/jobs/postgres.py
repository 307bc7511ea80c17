"""Jobs in a PostgreSQL database, on which many processes and hosts may work at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from llm_gateway.errors import JobError, JobStoreBusyError
from llm_gateway.jobs import postgres_tables as tables
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.batch_book import StoredBatch
from llm_gateway.jobs.postgres_commits import PostgresCommits, connect, told
from llm_gateway.jobs.postgres_statements import Statements
from llm_gateway.jobs.records import Lease, Ledger, NewRow, StoredResult, Verdict
from llm_gateway.jobs.store import Added

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")
LEASE_SECONDS = 30.0  # a worker that was not heard of for so long loses its leases
BEATS = 4  # in that time
CLAIMS, CLAIM_PAUSE = 5, 0.2  # attempts and seconds: the server may not have noticed yet that a process was killed


class PostgresJobStore:
    """JobStore in a database. Every transaction tells that this worker lives; while it is idle, a task does."""

    shared = True

    def __init__(self, address: JobAddress, *, begins: bool, patience: float = LEASE_SECONDS) -> None:
        """Connect, and make the tables and the job where they are missing and `begins`. Blocks. Raises JobError.

        `patience`: seconds without a sign of life after which others take this worker's rows.
        """
        self.name = address.shown
        self._address = address
        self._patience = patience
        self._host, self._process = socket.gethostname(), os.getpid()
        self._statements: Statements | None = None
        self._works = False  # whether it has leased anything
        self._feeds = False  # whether it holds the claim
        self._beating: asyncio.Task[None] | None = None
        self._commits = PostgresCommits(address, self._begin)
        try:
            job = self._commits.run_now(lambda connection: self._find(connection, begins=begins))
        except BaseException:
            self._commits.close_now()
            raise
        # Drawn, not counted: a worker has its number before it has a row.
        self._statements = Statements(job, secrets.randbits(62))

    @classmethod
    async def open(cls, address: JobAddress, *, begins: bool, patience: float = LEASE_SECONDS) -> Self:
        """Open a job without blocking the event loop. Raises JobError."""
        return await asyncio.to_thread(lambda: cls(address, begins=begins, patience=patience))

    async def claim(self) -> None:
        """Be the one process that feeds the job, until this is closed. Raises JobError if another one is."""
        for _ in range(CLAIMS):
            if await self._commits.run(self._claimed):
                self._commits.on_connect = self._claim_again
                self._feeds = True
                return
            await asyncio.sleep(CLAIM_PAUSE)
        raise JobError(
            f"Another process feeds the job {self.name} and collects its results; help it with `llm-gateway worker`."
        )

    async def forget(self) -> None:
        """Delete all that is known of the job. Raises JobError while somebody works on it."""
        await self._commits.run(self._steps.forget)

    async def workers(self) -> list[tuple[str, int]]:
        """Return host and process of the workers that live."""
        return await self._commits.run(self._steps.workers)

    # --- JobStore -------------------------------------------------------------------------------------------------

    async def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""
        return await self._commits.run(self._steps.facts)

    async def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""
        await self._commits.run(lambda connection: self._steps.note(connection, facts))

    async def add(self, rows: Sequence[NewRow], /) -> list[Added]:
        """Take in rows of the input, and lease the new ones that say so; return for each what became of it."""
        if any(row.leased for row in rows):
            self._begin_to_work()
        return await self._commits.run(lambda connection: self._steps.add(connection, rows))

    async def lease(self, model: str, limit: int, /) -> list[Lease]:
        """Lease up to `limit` pending rows of a model, the first of the input first, and record a call for each."""
        self._begin_to_work()
        return await self._commits.run(lambda connection: self._steps.lease(connection, model, limit))

    async def announce(self) -> None:
        """Let others know of this worker, also before it leases anything."""
        self._begin_to_work()
        await self._commits.run(lambda _connection: None)

    def record_call(self, lease: Lease, /) -> None:
        """Record that one more call will be made for a leased row. Blocks until it is on disk."""
        if not self._commits.run_now(lambda connection: self._steps.record_call(connection, lease)):
            raise JobError(f"Row {lease.number} is not leased to this worker any more.")

    async def finish(self, ends: Sequence[tuple[Lease, Verdict]], /) -> list[bool]:
        """Record the ends of leases and their results, all or nothing; False for a stale one, of which nothing is."""
        return await self._commits.run(lambda db: [self._steps.finish(db, lease, verdict) for lease, verdict in ends])

    async def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording, those with an id above `after`."""
        return await self._commits.run(lambda connection: self._steps.results(connection, after, limit))

    async def pending(self) -> dict[str, int]:
        """Return how many rows of each model are pending; beyond some thousands they are not counted."""
        return await self._commits.run(self._steps.pending)

    async def is_over(self) -> bool:
        """Whether the input was read to its end and every row has ended."""
        return await self._commits.run(self._steps.is_over)

    async def last_number(self) -> int:
        """Return the highest number of a row, 0 where there is none."""
        return await self._commits.run(self._steps.last_number)

    async def ledger(self) -> Ledger:
        """Add up all rows and calls."""
        return await self._commits.run(self._steps.ledger)

    async def reclaim(self) -> int:
        """Make leased rows pending whose worker is gone by the server's clock; return how many."""
        return await self._commits.run(self._steps.reclaim)

    async def retry_failed(self, kinds: Collection[str] | None, /) -> int:
        """Make rows pending that were asked in vain, of some kinds or of all; return how many."""
        return await self._commits.run(lambda connection: self._steps.retry_failed(connection, kinds))

    async def close(self) -> None:
        """Take leave of the other workers and close the connection. Safe to call twice."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait((self._beating,))
            self._beating = None
        if self._works or self._feeds:
            self._works = self._feeds = False
            with suppress(JobStoreBusyError):  # others will see that it is gone
                await self._commits.run(self._take_leave)
        await self._commits.close()

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def _steps(self) -> Statements:
        assert self._statements is not None  # noqa: S101 - the constructor ends with it
        return self._statements

    def _find(self, connection: Connection[Any], *, begins: bool) -> int:
        """Return the job's number."""
        if begins:
            tables.make_tables(connection, self._address.database)
            return tables.begin_job(connection, self._address.name or "")
        return existing_job(connection, self._address)

    def _begin(self, connection: Connection[Any], number: int, in_doubt: Sequence[int]) -> None:
        """Begin a transaction: tell that the worker lives, and make good what the connection's loss left behind."""
        if self._statements is None:
            return
        self._statements.begin(number)
        if self._works:
            self._statements.beat(connection, self._host, self._process, self._patience)
            if in_doubt:
                self._statements.release(connection, in_doubt)

    def _begin_to_work(self) -> None:
        if not self._works:
            self._works = True
            self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        """Have transactions, if only empty ones."""
        while True:
            await asyncio.sleep(self._patience / BEATS)
            try:
                await self._commits.run(lambda _connection: None)
            except JobStoreBusyError:
                continue  # who has something to record says so

    def _claimed(self, connection: Connection[Any]) -> bool:
        locked = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (tables.RUN_LOCK, self._steps.job))
        return locked.fetchall() == [(True,)]

    def _take_leave(self, connection: Connection[Any]) -> None:
        """Let others see at once that it is gone: the server may take a while to notice the end of a connection."""
        connection.execute("SELECT pg_advisory_unlock_all()")
        self._steps.leave(connection)

    def _claim_again(self, connection: Connection[Any]) -> None:
        """Take the claim on a new connection; the server may not have noticed yet that the old one is gone."""
        if not self._claimed(connection):
            raise JobStoreBusyError(f"Another process feeds the job {self.name} now.")


class PostgresView:
    """Looks at one job of a database, also while others work on it. Blocks."""

    def __init__(self, connection: Connection[Any], address: JobAddress) -> None:
        """Take a connection and the address of a job that is there."""
        self.name = address.shown
        self._address = address
        self._connection = connection
        self._statements = Statements(existing_job(connection, address), worker=0)

    def facts(self) -> dict[str, Any]:
        """Return what was noted of the job."""
        return self._told(self._statements.facts)

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""
        self._told(lambda connection: self._statements.note(connection, facts))

    def ledger(self) -> Ledger:
        """Add up all rows and calls."""
        return self._told(self._statements.ledger)

    def batches(self) -> list[StoredBatch]:
        """Return nothing: batches are kept in files alone."""
        return []

    def workers(self) -> list[str]:
        """Return a word for each worker that lives."""
        return [f"{host} (process {process})" for host, process in self._told(self._statements.workers)]

    def last_number(self) -> int:
        """Return the highest number of a row."""
        return self._told(self._statements.last_number)

    def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording."""
        return self._told(lambda connection: self._statements.results(connection, after, limit))

    def results_by_number(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of the input."""
        return self._told(lambda connection: self._statements.results_by_number(connection, after, limit))

    def _told(self, step: Callable[[Connection[Any]], T]) -> T:
        return told(self._address, lambda: step(self._connection))


@contextmanager
def viewing(address: JobAddress) -> Iterator[PostgresView]:
    """Open a job for a look. Raises JobError."""
    with closing(told(address, lambda: connect(address))) as connection:
        yield told(address, lambda: PostgresView(connection, address))


def jobs_in(address: JobAddress) -> list[JobAddress]:
    """Return the jobs of a database, the newest last. Blocks. Raises JobError."""

    def names() -> list[str]:
        with closing(connect(address)) as connection:
            if not tables.has_tables(connection, address.database):
                return []
            found = connection.execute("SELECT name FROM llm_gateway.jobs ORDER BY id").fetchall()
            return [str(name) for (name,) in found]

    return [address.of(name) for name in told(address, names)]


def existing_job(connection: Connection[Any], address: JobAddress) -> int:
    """Return the number of a job. Raises JobError where there is none."""
    there = tables.has_tables(connection, address.database)
    found = tables.job_id(connection, address.name or "") if there else None
    if found is None:
        raise JobError(
            f"There is no job {address.shown}; `llm-gateway run INPUT --job …` begins one, "
            "`llm-gateway jobs --dir …` lists those of a database."
        )
    return found
