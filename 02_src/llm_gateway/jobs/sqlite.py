"""A job in one SQLite file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from llm_gateway.errors import JobError, JobStoreBusyError
from llm_gateway.jobs import batch_book, statements
from llm_gateway.jobs.batch_book import BatchBook, StoredBatch
from llm_gateway.jobs.commits import LOCK_PATIENCE, SqliteCommits
from llm_gateway.jobs.lock import is_locked
from llm_gateway.jobs.records import Lease, Ledger, NewRow, StoredResult, Verdict
from llm_gateway.jobs.store import Added

OWNER_ONLY = 0o600  # it holds prompts until they are answered


class SqliteJobStore:
    """JobStore in one file: write-ahead log, every transaction flushed to the disk, one connection in one thread."""

    shared = False

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        """Open it. Raises JobError; see `open` and `temporary`."""
        self.name = name
        self._commits = SqliteCommits(connect, name)
        self.batches = BatchBook(self._commits)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the job at `path`, or begin one there; its file is readable by its owner alone. Raises JobError."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, OWNER_ONLY))
        except OSError as error:
            raise JobError(f"The job's state {path} cannot be written: {error.strerror}.") from None
        return cls(partial(_connect, path), str(path))

    @classmethod
    def temporary(cls) -> Self:
        """Make a job that vanishes when it is closed. What does not fit the memory goes to the disk meanwhile."""
        return cls(partial(_connect, None), "(temporary)")

    async def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""
        return await self._commits.run(statements.facts)

    async def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""
        await self._commits.run(lambda connection: statements.note(connection, facts))

    async def add(self, rows: Sequence[NewRow], /) -> list[Added]:
        """Take in rows of the input, and lease the new ones that say so; return for each what became of it."""
        return await self._commits.run(lambda connection: statements.add(connection, rows))

    async def lease(self, model: str, limit: int, /) -> list[Lease]:
        """Lease up to `limit` pending rows of a model, the first of the input first, and record a call for each."""
        return await self._commits.run(lambda connection: statements.lease(connection, model, limit))

    def record_call(self, lease: Lease, /) -> None:
        """Record that one more call will be made for a leased row. Blocks until it is on disk."""
        if not self._commits.run_now(lambda connection: statements.record_call(connection, lease)):
            raise JobError(f"Row {lease.number} was leased anew; this lease of it has ended.")

    async def finish(self, ends: Sequence[tuple[Lease, Verdict]], /) -> list[bool]:
        """Record the ends of leases and their results, all or nothing; False for a stale one, of which nothing is."""
        return await self._commits.run(lambda connection: statements.finish_all(connection, ends))

    async def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording, those with an id above `after`."""
        return await self._commits.run(lambda connection: statements.results(connection, after, limit))

    async def pending(self) -> dict[str, int]:
        """Return how many rows of each model are pending."""
        return await self._commits.run(statements.pending)

    async def is_over(self) -> bool:
        """Whether the input was read to its end and every row has ended."""
        return await self._commits.run(statements.is_over)

    async def last_number(self) -> int:
        """Return the highest number of a row, 0 where there is none."""
        return await self._commits.run(statements.last_number)

    async def ledger(self) -> Ledger:
        """Add up all rows and calls."""
        return await self._commits.run(statements.ledger)

    async def reclaim(self) -> int:
        """Make leased rows pending whose process is gone; return how many. Their open calls are in doubt.

        Rows that wait for a provider's batch are not: it goes on without us.
        """
        return await self._commits.run(batch_book.reclaim)

    async def retry_failed(self, kinds: Collection[str] | None, /) -> int:
        """Make rows pending that were asked in vain, of some kinds or of all; return how many."""
        return await self._commits.run(lambda connection: statements.retry_failed(connection, kinds))

    async def close(self) -> None:
        """Close it. Safe to call twice."""
        await self._commits.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    """Connect to `path`, None for a database that vanishes, and make the tables if there are none."""
    connection = sqlite3.connect(path or "", timeout=LOCK_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        if path is not None:
            connection.execute("PRAGMA journal_mode = WAL")
        # A power cut takes nothing that was acknowledged; what vanishes anyway need not wait for the disk.
        connection.execute(f"PRAGMA synchronous = {'OFF' if path is None else 'FULL'}")
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in statements.SCHEMA.split(";"):
                connection.execute(statement)
        connection.execute("COMMIT")
        _check(connection, path)
        batch_book.make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path | None) -> None:
    """Raise JobError unless this is a job that this version can go on with."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != statements.APPLICATION:
        raise JobError(f"{path} is not the state of a job, or of one that has not begun.")
    if version != statements.VERSION:
        raise JobError(
            f"The job's state {path} has format {version}, and this version of llm-gateway knows "
            f"{statements.VERSION}; go on with the version that began it."
        )


def reading(path: Path) -> closing[sqlite3.Connection]:
    """Open a job's state for reading, also while another process works on it. Raises JobError."""
    connection = _connect_to_read(path)
    try:
        _check(connection, path)
    except (sqlite3.Error, JobError) as error:
        connection.close()
        raise error if isinstance(error, JobError) else JobError(f"{path} is not the state of a job.") from None
    return closing(connection)


class SqliteView:
    """JobView of a file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take a connection that reads."""
        self.name = str(path)
        self._path = path
        self._connection = connection

    def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""
        return statements.facts(self._connection)

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, on a connection that may write."""
        connection = sqlite3.connect(self._path, timeout=LOCK_PATIENCE)
        try:
            with connection:
                statements.note(connection, facts)
        except sqlite3.OperationalError as error:
            told = f"The job's state {self.name} cannot be written for the moment ({error})."
            raise JobStoreBusyError(told) from None
        finally:
            connection.close()

    def ledger(self) -> Ledger:
        """Add up all rows and calls."""
        return statements.ledger(self._connection)

    def batches(self) -> list[StoredBatch]:
        """Return the provider batches of the job, those that have ended too."""
        return batch_book.batches(self._connection)

    def workers(self) -> list[str]:
        """Return a word for the process that has the job, if there is one."""
        return ["this host"] if is_locked(self._path) else []

    def last_number(self) -> int:
        """Return the highest number of a row, 0 where there is none."""
        return statements.last_number(self._connection)

    def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording, those with an id above `after`."""
        return statements.results(self._connection, after, limit)

    def results_by_number(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of the input, those of rows above `after`."""
        return statements.results_by_number(self._connection, after, limit)


@contextmanager
def viewing(path: Path) -> Iterator[SqliteView]:
    """Open a job's state for a look, also while another process works on it. Raises JobError."""
    with reading(path) as connection:
        yield SqliteView(connection, path)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise JobError(f"There is no job's state {path}.")
    if not os.access(path, os.R_OK):
        raise JobError(f"The job's state {path} cannot be read: it belongs to another user.")
    # Whoever may write also takes the log away that a reader needs.
    has_folder = os.access(path.absolute().parent, os.W_OK)
    mode = "rw" if has_folder and os.access(path, os.W_OK) else "ro"
    if not has_folder and not path.with_name(f"{path.name}-wal").exists():
        mode = "ro&immutable=1"  # nobody writes, and a reader cannot make the files by which it would see that
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", timeout=LOCK_PATIENCE, uri=True)
    except sqlite3.OperationalError as error:
        raise JobError(f"The job's state {path} cannot be read: {error}.") from None
    connection.execute("PRAGMA query_only = ON")
    return connection


def remove_state(path: Path) -> None:
    """Delete a job's state, if there is one; nobody may work on it. Raises JobError for a file that is something else.

    The state of another version, or of a job that was killed before it began, is one.
    """
    if not path.exists():
        return
    with closing(_connect_to_read(path)) as connection:
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            is_empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        except sqlite3.Error:
            application, is_empty = 0, False
    if application != statements.APPLICATION and not is_empty:
        raise JobError(f"{path} is not the state of a job; give another output.")
    for suffix in ("-wal", "-shm", ""):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
