"""Group commit: many steps, one transaction, one wait for the disk, in a thread of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from llm_gateway.errors import JobError, JobStoreBusyError
from llm_gateway.group_commit import settle, transact


class Closable(Protocol):
    """What the connections of all drivers have in common."""

    def close(self) -> None:
        """Close it."""


C = TypeVar("C", bound=Closable)  # the connection of a database's driver
T = TypeVar("T")
LOCK_PATIENCE = 5.0  # seconds for another process, as `llm-gateway jobs cancel`, to end its transaction


class Commits(ABC, Generic[C]):
    """Runs steps on one connection that lives in one thread. A step that returns is on disk.

    Steps that are asked for while a transaction is under way wait together and share the next one. If one of them
    raises, none of them has happened, and all raise.
    """

    def __init__(self, connect: Callable[[], C], name: str) -> None:
        """Open the connection. Raises JobError."""
        self._name = name
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        self._waiting: list[tuple[Callable[[C], Any], asyncio.Future[Any]]] = []
        self._is_due = False
        self._is_closed = False
        try:
            self._connection: C | None = self._thread.submit(self._told, connect).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, step: Callable[[C], T]) -> T:
        """Return what `step` returned, once its transaction is on disk.

        Raises JobStoreBusyError if the same could succeed later, JobError if not.
        """
        if self._is_closed:
            raise self._closed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((step, future))
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._begin)
        return await future

    def run_now(self, step: Callable[[C], T]) -> T:
        """Do the same without giving way to the event loop."""
        if self._is_closed:
            raise self._closed()
        outcome: T = self._thread.submit(self._transact, (step,)).result()[0]
        return outcome

    async def close(self) -> None:
        """Close the connection; nothing may be under way."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    def close_now(self) -> None:
        """Do the same without giving way to the event loop."""
        if not self._is_closed:
            self._is_closed = True
            self._thread.submit(self._disconnect).result()
            self._thread.shutdown()

    def _closed(self) -> JobError:
        return JobError(f"The job's state {self._name} is closed.")

    # --- on the loop ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        group, self._waiting = self._waiting, []
        steps = [step for step, _ in group]
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, steps)
        done.add_done_callback(lambda future: self._end(group, future))

    def _end(
        self, group: Sequence[tuple[Callable[[C], Any], asyncio.Future[Any]]], done: asyncio.Future[list[Any]]
    ) -> None:
        settle([future for _, future in group], done)
        self._is_due = bool(self._waiting)
        if self._waiting:
            self._begin()

    # --- in the thread ----------------------------------------------------------------------------------------

    def _transact(self, steps: Sequence[Callable[[C], Any]]) -> list[Any]:
        return self._told(lambda: self._transaction(steps))

    @abstractmethod
    def _transaction(self, steps: Sequence[Callable[[C], Any]]) -> list[Any]:
        """Return what the steps returned, once all of them are on disk."""

    @abstractmethod
    def _told(self, action: Callable[[], T]) -> T:
        """Do it, and put what the database complains of into a sentence."""

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class SqliteCommits(Commits[sqlite3.Connection]):
    """Group commit into a file."""

    def _transaction(self, steps: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        connection = self._connection
        if connection is None:
            raise self._closed()
        return transact(connection, steps)

    def _told(self, action: Callable[[], T]) -> T:
        """Do it, and put what SQLite complains of into a sentence."""
        try:
            return action()
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                told = f"The job's state {self._name} cannot be written: its disk is full; make room."
                raise JobStoreBusyError(told) from error
            if name.startswith(("SQLITE_BUSY", "SQLITE_IOERR")):
                told = f"The job's state {self._name} cannot be written for the moment ({error})."
                raise JobStoreBusyError(told) from error
            raise JobError(f"The job's state {self._name} cannot be used: {error}.") from error
