"""The SQL of a job: what each step reads and writes, on a connection whose transaction somebody else ends."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from llm_gateway.jobs.encoding import from_json
from llm_gateway.jobs.records import ALLOWED, Lease, Ledger, NewRow, RowState, StoredResult, Verdict
from llm_gateway.jobs.store import Added

T = TypeVar("T")

APPLICATION = 0x4C474A42  # "LGJB", in the head of the file
VERSION = 1
PENDING, LEASED, DONE, FAILED = (state.value for state in RowState)

SCHEMA = f"""
CREATE TABLE facts(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows(
    number INTEGER PRIMARY KEY,
    key TEXT UNIQUE,
    model TEXT NOT NULL,
    form TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    state INTEGER NOT NULL,
    turn INTEGER NOT NULL DEFAULT 0,
    invalid INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    unsent INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0,
    unpriced INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX rows_pending ON rows(model, number) WHERE state = {PENDING};
CREATE INDEX rows_leased ON rows(number) WHERE state = {LEASED};
-- Beside the rows, since every change of a row writes the whole of it anew.
CREATE TABLE requests(number INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE results(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL UNIQUE,
    kind TEXT,
    body BLOB NOT NULL
);
CREATE INDEX results_failed ON results(kind) WHERE kind IS NOT NULL;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""

BLOCK = 64
"""Rows that one statement inserts or deletes: each releases Python's lock and has to win it back.

SQLite before 3.32 takes 999 parameters in a statement; a row has at most eight.
"""

ADD = "INSERT OR IGNORE INTO rows(number, key, model, form, fingerprint, state, turn, calls)"
ADD_BODY = "INSERT INTO requests(number, body)"
FINISH = (
    "UPDATE rows SET state = ?, invalid = invalid + ?, answered = answered + ?, refused = refused + ?,"  # noqa: S608
    " unsent = unsent + ?, input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,"
    " cost_usd = cost_usd + ?, unpriced = unpriced + ?"
    f" WHERE number = ? AND turn = ? AND state = {LEASED}"
)
END_WELL = "INSERT INTO results(number, body)"
END = "INSERT INTO results(number, kind, body)"

blob = bytearray
"""What bytes are bound as: sqlite3 takes a bytearray as it is, and looks for an adapter of bytes each time."""


def facts(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return what was noted of the job."""
    return {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM facts")}


def note(connection: sqlite3.Connection, noted: Mapping[str, Any]) -> None:
    """Note facts of the job."""
    rows = [(name, json.dumps(value)) for name, value in noted.items()]
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)


# --- rows in ------------------------------------------------------------------------------------------------------


def add(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> list[Added]:
    """Take rows in, lease those that say so, and take in the results of those that cannot be asked."""
    values = [
        # A lease is the row's first turn, and records its first call.
        (row.number, row.key, row.model, row.form, blob(row.fingerprint), row.state.value, row.leased, row.leased)
        for row in rows
    ]
    if not _together(connection, len(rows), lambda: _insert(connection, ADD, values)):
        return [_add(connection, row, one) for row, one in zip(rows, values, strict=True)]
    _add_bodies(connection, rows)
    return [Added.NEW] * len(rows)


def _add(connection: sqlite3.Connection, row: NewRow, values: Sequence[Any]) -> Added:
    if not _insert(connection, ADD, [values]):
        return _known(connection, row)
    _add_bodies(connection, [row])
    return Added.NEW


def _add_bodies(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> None:
    bodies = [(row.number, blob(row.request)) for row in rows if row.failure is None]
    _insert(connection, ADD_BODY, bodies)
    failures = [(row.number, row.failure.kind, row.failure.body) for row in rows if row.failure is not None]
    _insert(connection, END, failures)


def _known(connection: sqlite3.Connection, row: NewRow) -> Added:
    there = connection.execute("SELECT key, fingerprint FROM rows WHERE number = ?", (row.number,)).fetchone()
    if there is None:
        return Added.TWICE
    key, fingerprint = there
    # A row without a key is one that was refused for it.
    return Added.KNOWN if fingerprint == row.fingerprint and key in {row.key, None} else Added.CHANGED


def last_number(connection: sqlite3.Connection) -> int:
    """Return the highest number of a row."""
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM rows").fetchone()[0])


# --- leases -------------------------------------------------------------------------------------------------------


def lease(connection: sqlite3.Connection, model: str, limit: int, *, least_turns: int = 0) -> list[Lease]:
    """Lease pending rows that were leased `least_turns` times before, and record a call for each."""
    found = connection.execute(
        f"SELECT number, turn + 1, key, body, invalid FROM rows JOIN requests USING (number)"  # noqa: S608
        f" WHERE state = {PENDING} AND model = ? AND turn >= ? ORDER BY number LIMIT ?",
        (model, least_turns, limit),
    ).fetchall()
    if found:  # which are all of that kind up to the last of them
        connection.execute(
            f"UPDATE rows SET state = {LEASED}, turn = turn + 1, calls = calls + 1"  # noqa: S608
            f" WHERE state = {PENDING} AND model = ? AND turn >= ? AND number <= ?",
            (model, least_turns, found[-1][0]),
        )
    return [Lease._make(row) for row in found]


def record_call(connection: sqlite3.Connection, held: Lease) -> bool:
    """Record one more call; False if the lease is stale."""
    changed = connection.execute(
        f"UPDATE rows SET calls = calls + 1 WHERE number = ? AND turn = ? AND state = {LEASED}",  # noqa: S608
        (held.number, held.turn),
    )
    return changed.rowcount == 1


def finish(connection: sqlite3.Connection, held: Lease, verdict: Verdict) -> bool:
    """End a lease; False, and nothing is written, if it is stale."""
    if not connection.execute(FINISH, _of_end(held, verdict)).rowcount:
        return False
    _write_results(connection, [(held, verdict)])
    return True


def finish_all(connection: sqlite3.Connection, ends: Sequence[tuple[Lease, Verdict]]) -> list[bool]:
    """End leases; False for a stale one, of which nothing is written."""
    values = [_of_end(held, verdict) for held, verdict in ends]
    if not _together(connection, len(ends), lambda: connection.executemany(FINISH, values).rowcount):
        return [finish(connection, held, verdict) for held, verdict in ends]
    _write_results(connection, ends)
    return [True] * len(ends)


def _of_end(held: Lease, verdict: Verdict) -> tuple[Any, ...]:
    """Return the values of FINISH."""
    state, calls = verdict.state, verdict.calls
    assert state in ALLOWED[RowState.LEASED]  # noqa: S101 - a verdict has no other states
    return (
        state.value,
        int(verdict.invalid),
        calls.answered,
        calls.refused,
        calls.unsent,
        calls.input_tokens,
        calls.output_tokens,
        calls.cost_usd,
        calls.unpriced,
        held.number,
        held.turn,
    )


def _write_results(connection: sqlite3.Connection, ends: Sequence[tuple[Lease, Verdict]]) -> None:
    """Write answers and failures; what was answered will not be asked again."""
    answers = [(held.number, blob(verdict.answer)) for held, verdict in ends if verdict.answer is not None]
    _insert(connection, END_WELL, answers)
    for block in _blocks(answers):
        chosen = ", ".join("?" * len(block))
        connection.execute(f"DELETE FROM requests WHERE number IN ({chosen})", [number for number, _ in block])  # noqa: S608
    failures = [
        (held.number, verdict.failure.kind, verdict.failure.body)
        for held, verdict in ends
        if verdict.answer is None and verdict.failure is not None
    ]
    _insert(connection, END, failures)


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]]) -> int:
    """Insert rows, a block in a statement; return how many are new."""
    new = 0
    for block in _blocks(rows):
        one = f"({', '.join('?' * len(block[0]))})"
        new += connection.execute(f"{into} VALUES {', '.join([one] * len(block))}", list(chain(*block))).rowcount
    return new


def _blocks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield all rows in blocks of few sizes, powers of two, so that their statements are prepared but once."""
    first = 0
    while left := len(rows) - first:
        size = min(BLOCK, 1 << left.bit_length() - 1)
        yield rows[first : first + size]
        first += size


def _together(connection: sqlite3.Connection, number: int, change: Callable[[], int]) -> bool:
    """Change `number` rows; False, and nothing is changed, if `change` returns that it found fewer to change."""
    connection.execute("SAVEPOINT together")
    is_whole = change() == number
    if not is_whole:
        connection.execute("ROLLBACK TO together")
    connection.execute("RELEASE together")
    return is_whole


def retry_failed(connection: sqlite3.Connection, kinds: Collection[str] | None) -> int:
    """Make rows pending that were asked in vain, and take their results back."""
    chosen = "" if kinds is None else f" AND kind IN ({', '.join('?' * len(kinds))})"
    rows = connection.execute(
        "SELECT number FROM results JOIN rows USING (number)"  # noqa: S608
        f" WHERE kind IS NOT NULL AND model != ''{chosen}",
        tuple(kinds or ()),
    ).fetchall()
    connection.executemany(f"UPDATE rows SET state = {PENDING}, invalid = 0 WHERE number = ?", rows)  # noqa: S608
    connection.executemany("DELETE FROM results WHERE number = ?", rows)
    return len(rows)


# --- looking ------------------------------------------------------------------------------------------------------


def results(connection: sqlite3.Connection, after: int, limit: int) -> list[StoredResult]:
    """Return results in the order of their recording."""
    return _results(connection, "id > ? ORDER BY id LIMIT ?", (after, limit))


def results_by_number(connection: sqlite3.Connection, after: int, limit: int) -> list[StoredResult]:
    """Return results in the order of the input, those of rows above `after`."""
    return _results(connection, "number > ? ORDER BY number LIMIT ?", (after, limit))


def _results(connection: sqlite3.Connection, which: str, values: tuple[int, int]) -> list[StoredResult]:
    found = connection.execute(
        "SELECT id, number, key, form, kind, body, model != '', calls - unsent,"  # noqa: S608
        " input_tokens, output_tokens, cost_usd, unpriced"
        f" FROM results JOIN rows USING (number) WHERE {which}",
        values,
    )
    return [StoredResult._make(row) for row in found]


def pending(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many rows of each model are pending."""
    return dict(
        connection.execute(f"SELECT model, count(*) FROM rows WHERE state = {PENDING} GROUP BY model").fetchall()  # noqa: S608
    )


def is_over(connection: sqlite3.Connection) -> bool:
    """Whether the input was read to its end and every row has ended."""
    left = connection.execute(f"SELECT EXISTS (SELECT 1 FROM rows WHERE state IN ({PENDING}, {LEASED}))").fetchone()[0]  # noqa: S608
    return bool(facts(connection).get("read")) and not left


def ledger(connection: sqlite3.Connection) -> Ledger:
    """Add up rows, results and calls."""
    states = dict(connection.execute("SELECT state, count(*) FROM rows GROUP BY state").fetchall())
    kinds = connection.execute(
        "SELECT kind, times, body FROM (SELECT kind, count(*) AS times, min(id) AS id FROM results"
        " JOIN rows USING (number) WHERE kind IS NOT NULL AND model != '' GROUP BY kind)"
        " JOIN (SELECT id, body FROM results) USING (id) ORDER BY times DESC, kind"
    ).fetchall()
    sums = connection.execute(
        "SELECT count(*), coalesce(sum(state = ? AND model = ''), 0), coalesce(sum(calls > unsent), 0),"
        " coalesce(sum(calls), 0), coalesce(sum(answered), 0), coalesce(sum(refused), 0), coalesce(sum(unsent), 0),"
        " coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cost_usd), 0.0),"
        " coalesce(sum(unpriced), 0) FROM rows",
        (FAILED,),
    ).fetchone()
    names = ("rows", "malformed", "asked", "calls", "answered", "refused", "unsent")
    more = ("input_tokens", "output_tokens", "cost_usd", "unpriced")
    last = connection.execute("SELECT coalesce(max(id), 0) FROM results").fetchone()[0]
    return Ledger(
        last_result=last,
        pending=states.get(PENDING, 0),
        leased=states.get(LEASED, 0),
        done=states.get(DONE, 0),
        failed={kind: number for kind, number, _ in kinds},
        examples={kind: str(from_json(body)["message"]) for kind, _, body in kinds},
        **dict(zip(names + more, sums, strict=True)),
    )
