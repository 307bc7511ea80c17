"""Answers in one SQLite file that several processes may share, or in the memory of this one."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from llm_gateway.cache.sqlite_file import connect
from llm_gateway.cache.store import Bounds, CacheStoreError, Size
from llm_gateway.group_commit import settle, transact

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], Any]
Found = tuple[bytes, float]

TOGETHER = 500  # looks, or answers to keep, that the thread takes on at once
MOST_UNTOLD = 1000  # answers whose use is not written down yet
PUT = """
INSERT INTO answers(key, body, stored, used) VALUES (?, ?, ?, ?)
ON CONFLICT(key) DO UPDATE SET body = excluded.body, stored = excluded.stored, used = excluded.used
"""


class SqliteAnswerStore:
    """AnswerStore on one connection that lives in one thread: the event loop never waits for the disk.

    What is looked for while the thread works is looked for together next, and what is put shares one transaction. It
    is opened at its first use, and again after a failure. A power cut may take the last answers, never the file.
    """

    def __init__(self, path: Path | None, bounds: Bounds, *, now: Callable[[], float] = time.time) -> None:
        """Keep answers in the file `path`, readable by its owner alone; None: in memory."""
        self._path = path
        self._bounds = bounds
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answer-cache")
        self._connection: sqlite3.Connection | None = None  # the thread's own
        self._used: dict[bytes, float] = {}  # the thread's own: when answers were used, as far as that is not written
        self._reading: list[tuple[bytes | Step, asyncio.Future[Any]]] = []  # keys that are looked for, and steps
        self._writing: list[tuple[Step, asyncio.Future[Any]]] = []
        self._wrote_last = False
        self._works = False
        self._closed = False

    async def get(self, key: bytes, /) -> tuple[bytes, float] | None:
        """Return what is kept under `key` and the instant it is from, also where that is long ago."""
        future: asyncio.Future[Found | None] = self._future()
        self._reading.append((key, future))
        return await future

    async def put(self, key: bytes, body: bytes, /) -> None:
        """Keep `body` in place of what was under `key`, and let go what the bounds leave no room for."""
        now = self._now()
        await self._write_soon(lambda connection: connection.execute(PUT, (key, body, now, now)))

    async def size(self) -> Size:
        """Return how much is kept."""
        return await self._read_soon(_size)

    async def prune(self) -> int:
        """Let go what is too old or over the bounds; return how many answers."""
        return await self._write_soon(self._prune)

    async def clear(self) -> int:
        """Let go everything; return how many answers."""
        gone = await self._write_soon(_clear)
        with suppress(CacheStoreError):  # another process is at work: its answers will fill the room
            await self._read_soon(_give_room_back)
        return gone

    async def aclose(self) -> None:
        """Write down what is left, and close the file. Safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)

    def abandon(self) -> None:
        """Close the file without the event loop. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)

    # --- on the loop ------------------------------------------------------------------------------------------

    async def _read_soon(self, step: Callable[[sqlite3.Connection], T]) -> T:
        future: asyncio.Future[T] = self._future()
        self._reading.append((step, future))
        return await future

    async def _write_soon(self, step: Callable[[sqlite3.Connection], T]) -> T:
        future: asyncio.Future[T] = self._future()
        self._writing.append((step, future))
        return await future

    def _future(self) -> asyncio.Future[Any]:
        """Return a future for what is to be done next; the work begins when others have had their turn to ask, too."""
        if self._closed:
            raise CacheStoreError("it is closed")
        loop = asyncio.get_running_loop()
        if not self._works:
            self._works = True
            loop.call_soon(self._begin)
        return loop.create_future()

    def _begin(self) -> None:
        """Let the thread do all that waits, reads and writes in turn: a read does not wait for the disk."""
        if self._closed:
            self._refuse()
            return
        self._wrote_last = bool(self._writing) and not (self._reading and self._wrote_last)
        run = asyncio.get_running_loop().run_in_executor
        if self._wrote_last:
            group, self._writing = self._writing[:TOGETHER], self._writing[TOGETHER:]
            futures = [future for _, future in group]
            done = run(self._thread, self._write, [step for step, _ in group])
        else:
            looks, self._reading = self._reading[:TOGETHER], self._reading[TOGETHER:]
            futures = [future for _, future in looks]
            done = run(self._thread, self._read, [each for each, _ in looks])
        done.add_done_callback(lambda ended: self._end(futures, ended))

    def _end(self, futures: Sequence[asyncio.Future[Any]], done: asyncio.Future[list[Any]]) -> None:
        settle(futures, done)
        self._works = bool(self._reading or self._writing)
        if self._works:
            self._begin()

    def _refuse(self) -> None:
        waiting = [future for _, future in self._reading] + [future for _, future in self._writing]
        self._reading, self._writing = [], []
        for future in waiting:
            if not future.done():
                future.set_exception(CacheStoreError("it is closed"))

    # --- in the thread ----------------------------------------------------------------------------------------

    def _read(self, wanted: Sequence[bytes | Step]) -> list[Any]:
        connection = self._open()
        with self._told():
            found = self._find(connection, {each for each in wanted if isinstance(each, bytes)})
            return [found.get(each) if isinstance(each, bytes) else each(connection) for each in wanted]

    def _write(self, steps: Sequence[Step]) -> list[Any]:
        connection = self._open()
        with self._told():
            return transact(connection, [*steps, self._tell_uses, self._make_room])[: len(steps)]

    def _find(self, connection: sqlite3.Connection, keys: AbstractSet[bytes]) -> dict[bytes, Found]:
        """Return what is kept under some of `keys`; in one statement, each of which waits for a busy loop's turn."""
        if not keys:
            return {}
        rows = connection.execute(
            f"SELECT key, body, stored FROM answers WHERE key IN ({', '.join('?' * len(keys))})",  # noqa: S608 - marks
            list(keys),
        ).fetchall()
        self._used.update((key, self._now()) for key, _, _ in rows)
        if len(self._used) >= MOST_UNTOLD:
            self._tell_uses_apart(connection)
        return {key: (body, stored) for key, body, stored in rows}

    def _tell_uses_apart(self, connection: sqlite3.Connection) -> None:
        """Write down when answers were used, as far as that succeeds: it is a help to eviction, no more."""
        with suppress(sqlite3.Error), connection:
            self._tell_uses(connection)
        self._used.clear()

    def _tell_uses(self, connection: sqlite3.Connection) -> None:
        connection.executemany(
            "UPDATE answers SET used = ? WHERE key = ?", [(at, key) for key, at in self._used.items()]
        )
        self._used.clear()

    def _make_room(self, connection: sqlite3.Connection) -> None:
        size = _size(connection)
        if size.entries > self._bounds.max_entries or size.bytes > self._bounds.max_bytes:
            self._prune(connection)

    def _prune(self, connection: sqlite3.Connection) -> int:
        before = _size(connection).entries
        if self._bounds.ttl is not None:
            connection.execute("DELETE FROM answers WHERE stored < ?", (self._now() - self._bounds.ttl,))
        entries, held = (size := _size(connection)).entries, size.bytes
        gone = []
        for key, length in connection.execute("SELECT key, length(body) FROM answers ORDER BY used, rowid"):
            if entries <= self._bounds.max_entries and held <= self._bounds.max_bytes:
                break
            gone.append((key,))
            entries, held = entries - 1, held - length
        connection.executemany("DELETE FROM answers WHERE key = ?", gone)
        return before - entries

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            with self._told():
                self._connection = connect(self._path)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._used:
            self._tell_uses_apart(connection)
        connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a few words what SQLite or the system complains of."""
        try:
            yield
        except OSError as error:
            raise CacheStoreError(f"{error.strerror}") from error
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise CacheStoreError("its disk is full") from error
            if not name.startswith("SQLITE_BUSY"):
                self._forget_connection()  # the next use opens it again: it may have been replaced or mended
            raise CacheStoreError(str(error)) from error

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _size(connection: sqlite3.Connection) -> Size:
    return Size(*connection.execute("SELECT entries, bytes FROM totals").fetchone())


def _clear(connection: sqlite3.Connection) -> int:
    return connection.execute("DELETE FROM answers").rowcount


def _give_room_back(connection: sqlite3.Connection) -> None:
    connection.execute("VACUUM")
