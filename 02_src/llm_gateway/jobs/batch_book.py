"""The provider batches of a job, in its state: what was intended, what was made of it, and which rows are in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llm_gateway.clock import utc_now
from llm_gateway.jobs import statements
from llm_gateway.jobs.commits import SqliteCommits
from llm_gateway.jobs.records import Calls, Lease, RowState, Verdict

INTENDED = "intended"  # the state of a batch of which nobody knows yet whether it was made
PENDING, LEASED = RowState.PENDING.value, RowState.LEASED.value
SCHEMA = """
CREATE TABLE IF NOT EXISTS batches(
    id INTEGER PRIMARY KEY,
    intent TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    deployment TEXT NOT NULL,
    batch_id TEXT,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    is_open INTEGER NOT NULL DEFAULT 1,
    requests INTEGER NOT NULL,
    size INTEGER NOT NULL,
    served INTEGER NOT NULL DEFAULT 0,
    made TEXT NOT NULL,
    ended TEXT
);
CREATE TABLE IF NOT EXISTS batch_rows(number INTEGER PRIMARY KEY, batch INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS batch_rows_of ON batch_rows(batch, number);
"""
COLUMNS = "id, intent, model, deployment, batch_id, state, reason, is_open, requests, size, served, made, ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One batch of a job."""

    id: int
    intent: str  # stored before the batch was made, and told to the provider with it
    model: str
    deployment: str
    batch_id: str | None  # the provider's; None: it is not known to have been made
    state: str  # "intended", the provider's word, or why it came to nothing
    reason: str
    is_open: bool  # rows may still wait for its results
    requests: int
    size: int  # bytes
    served: int  # as the provider told last
    made: str  # when the intent was stored, ISO 8601 in UTC
    ended: str | None

    @property
    def since(self) -> datetime:
        """When the intent was stored."""
        return datetime.fromisoformat(self.made)

    @property
    def age(self) -> float:
        """How many seconds ago that was."""
        return max(0.0, (utc_now() - self.since).total_seconds())


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("COMMIT")


def reclaim(connection: sqlite3.Connection) -> int:
    """Make leased rows pending, but for those that wait for a provider's batch: it goes on without us."""
    return connection.execute(
        f"UPDATE rows SET state = {PENDING} WHERE state = {LEASED} AND number NOT IN (SELECT number FROM batch_rows)"  # noqa: S608
    ).rowcount


def batches(connection: sqlite3.Connection, *, only_open: bool = False) -> list[StoredBatch]:
    """Return the batches in the order in which they were intended; also from the state of a job that has none."""
    if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'batches'").fetchone()[0]:
        return []
    which = " WHERE is_open" if only_open else ""
    names = COLUMNS.split(", ")
    found = connection.execute(f"SELECT {COLUMNS} FROM batches{which} ORDER BY id").fetchall()  # noqa: S608
    told = (dict(zip(names, row, strict=True)) for row in found)
    return [StoredBatch(**each | {"is_open": bool(each["is_open"])}) for each in told]


class BatchBook:
    """Reads and writes them. What a method returns is on disk; each raises as JobStore's do."""

    def __init__(self, commits: SqliteCommits) -> None:
        self._commits = commits

    async def open_batches(self, model: str) -> list[StoredBatch]:
        """Return the batches of a model whose rows wait for results."""
        return [each for each in await self._commits.run(lambda db: batches(db, only_open=True)) if each.model == model]

    async def all_batches(self) -> list[StoredBatch]:
        """Return all batches of the job."""
        return await self._commits.run(batches)

    async def fresh(self, model: str, after: int, limit: int, most_turns: int) -> list[Lease]:
        """Return pending rows above a number that were leased less than `most_turns` times, as `intend` leases them."""
        return await self._commits.run(
            lambda db: [
                Lease(number=number, turn=turn + 1, key=key, request=body, invalid=invalid)
                for number, turn, key, body, invalid in db.execute(
                    "SELECT number, turn, key, body, invalid FROM rows JOIN requests USING (number)"  # noqa: S608
                    f" WHERE state = {PENDING} AND model = ? AND number > ? AND turn < ? ORDER BY number LIMIT ?",
                    (model, after, most_turns, limit),
                )
            ]
        )

    async def weary(self, model: str, limit: int, least_turns: int) -> list[Lease]:
        """Lease pending rows that were leased so often already, and record a call for each."""
        return await self._commits.run(lambda db: statements.lease(db, model, limit, least_turns=least_turns))

    async def intend(self, intent: str, rows: Sequence[int], *, model: str, deployment: str, size: int) -> StoredBatch:
        """Store what will be made: lease the rows, record a call for each, and note which batch they are in."""

        def step(db: sqlite3.Connection) -> StoredBatch:
            made = utc_now().isoformat()
            row = db.execute(
                "INSERT INTO batches(intent, model, deployment, state, requests, size, made) VALUES (?,?,?,?,?,?,?)",
                (intent, model, deployment, INTENDED, len(rows), size, made),
            )
            number = row.lastrowid
            db.executemany(
                f"UPDATE rows SET state = {LEASED}, turn = turn + 1, calls = calls + 1 WHERE number = ?",  # noqa: S608
                [(each,) for each in rows],
            )
            db.executemany("INSERT INTO batch_rows VALUES (?, ?)", [(each, number) for each in rows])
            return next(each for each in batches(db, only_open=True) if each.id == number)

        return await self._commits.run(step)

    async def note(self, batch: StoredBatch, **told: str | int) -> None:
        """Note what is known of a batch: `batch_id`, `state`, `reason`, `served`."""
        names = ", ".join(f"{name} = ?" for name in told)
        await self._commits.run(
            lambda db: db.execute(f"UPDATE batches SET {names} WHERE id = ?", (*told.values(), batch.id)).rowcount  # noqa: S608
        )

    async def leases(
        self, batch: StoredBatch, numbers: Sequence[int] | None, limit: int, *, after: int = 0
    ) -> list[Lease]:
        """Return the leases of rows that wait for a batch's results: of some numbers, or the first above one."""
        chosen = "" if numbers is None else f" AND number IN ({', '.join('?' * len(numbers))})"

        def step(db: sqlite3.Connection) -> list[Lease]:
            return [
                Lease(number=number, turn=turn, key=key, request=body, invalid=invalid)
                for number, turn, key, body, invalid in db.execute(
                    "SELECT number, turn, key, body, invalid FROM batch_rows JOIN rows USING (number)"  # noqa: S608
                    f" JOIN requests USING (number) WHERE batch = ? AND number > ?{chosen} ORDER BY number LIMIT ?",
                    (batch.id, after, *(numbers or ()), limit),
                )
            ]

        return await self._commits.run(step)

    async def refuse(self, ended: Sequence[tuple[Lease, Verdict]]) -> None:
        """End pending rows that cannot be asked at all, as if they had been leased for it."""

        def step(db: sqlite3.Connection) -> None:
            db.executemany(
                f"UPDATE rows SET state = {LEASED}, turn = turn + 1, calls = calls + 1 WHERE number = ?",  # noqa: S608
                [(lease.number,) for lease, _ in ended],
            )
            for lease, verdict in ended:
                statements.finish(db, lease, verdict)

        await self._commits.run(step)

    async def record(self, ended: Sequence[tuple[Lease, Verdict]]) -> None:
        """Record the ends of leases and take their rows out of their batches, all or nothing."""

        def step(db: sqlite3.Connection) -> None:
            for lease, verdict in ended:
                statements.finish(db, lease, verdict)
            db.executemany("DELETE FROM batch_rows WHERE number = ?", [(lease.number,) for lease, _ in ended])

        await self._commits.run(step)

    async def close(self, batch: StoredBatch, state: str, reason: str, rest: Calls) -> int:
        """Make the rows pending that a batch still has, with `rest` known of each one's call, and close it.

        Return how many rows that were.
        """

        def step(db: sqlite3.Connection) -> int:
            rows = db.execute(
                "SELECT number, turn FROM batch_rows JOIN rows USING (number) WHERE batch = ?", (batch.id,)
            ).fetchall()
            for number, turn in rows:
                lease = Lease(number=number, turn=turn, key="", request=b"", invalid=0)
                statements.finish(db, lease, Verdict(calls=rest))
            db.execute("DELETE FROM batch_rows WHERE batch = ?", (batch.id,))
            db.execute(
                "UPDATE batches SET is_open = 0, state = ?, reason = ?, ended = ? WHERE id = ?",
                (state, reason, utc_now().isoformat(), batch.id),
            )
            return len(rows)

        return await self._commits.run(step)
