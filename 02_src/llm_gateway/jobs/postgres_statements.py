"""The SQL of jobs in PostgreSQL: what each step reads and writes, in a transaction that somebody else ends.

All jobs of a database lie in the tables of one schema. A row is leased by a worker, and the worker's beat keeps all its
leases; the server's clock decides. A row's turn is the lease's token: it grows with every lease and with every end
after which the row may be leased again, so that whoever was too slow writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_gateway.errors import JobError
from llm_gateway.jobs.encoding import from_json
from llm_gateway.jobs.postgres_tables import RESULTS_LOCK, TABLES
from llm_gateway.jobs.records import ALLOWED, Lease, Ledger, NewRow, RowState, StoredResult, Verdict
from llm_gateway.jobs.store import Added

if TYPE_CHECKING:
    from psycopg import Connection

PENDING, LEASED, DONE, FAILED = (state.value for state in RowState)
MOST_COUNTED = 20_000  # pending rows of a model; who needs to know more asks for the ledger
# A server that was away has heard nobody: it counts from its start.
ALIVE = "greatest(beat, pg_postmaster_start_time()) + patience * interval '1 second' > clock_timestamp()"


class Statements:
    """The steps of one job, for one worker."""

    def __init__(self, job: int, worker: int) -> None:
        """Take the number of the job, and that of the worker who leases."""
        self.job = job
        self.worker = worker
        self.step = 0  # number of the transaction under way, among those of this worker
        self._in_order = False  # whether this transaction records results, and others wait for it

    # --- transactions ---------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Note that another transaction begins, and its number."""
        self.step = step
        self._in_order = False

    def beat(self, connection: Connection[Any], host: str, process: int, patience: float) -> None:
        """Tell that the worker lives. Waits for an earlier transaction of the worker whose end nobody knows."""
        connection.execute(
            "INSERT INTO llm_gateway.workers(id, job, host, process, beat, patience)"
            " VALUES (%s, %s, %s, %s, clock_timestamp(), %s) ON CONFLICT (id) DO UPDATE SET beat = clock_timestamp()",
            (self.worker, self.job, host, process, patience),
        )

    def release(self, connection: Connection[Any], steps: Collection[int]) -> None:
        """Make the rows pending that were leased in transactions whose answer was lost; their calls were not made."""
        connection.execute(
            f"UPDATE llm_gateway.rows SET state = {PENDING}, turn = turn + 1, unsent = unsent + 1, worker = NULL"  # noqa: S608
            f" WHERE job = %s AND worker = %s AND state = {LEASED} AND step = ANY(%s)",
            (self.job, self.worker, list(steps)),
        )

    def leave(self, connection: Connection[Any]) -> None:
        """Tell that the worker is gone; what it still has leased can be reclaimed."""
        connection.execute("DELETE FROM llm_gateway.workers WHERE id = %s", (self.worker,))

    def workers(self, connection: Connection[Any]) -> list[tuple[str, int]]:
        """Return host and process of the workers that live."""
        found = connection.execute(
            f"SELECT host, process FROM llm_gateway.workers WHERE job = %s AND {ALIVE} ORDER BY host, process",  # noqa: S608
            (self.job,),
        )
        return [(str(host), int(process)) for host, process in found]

    def forget(self, connection: Connection[Any]) -> None:
        """Delete all that is known of the job, which goes on empty. Raises JobError while somebody works on it."""
        if there := self.workers(connection):
            host, process = there[0]
            raise JobError(f"A worker ({host}, process {process}) works on the job; stop it first.")
        for table in TABLES:
            connection.execute(f"DELETE FROM llm_gateway.{table} WHERE job = %s".encode(), (self.job,))  # noqa: S608

    # --- facts ----------------------------------------------------------------------------------------------------

    def facts(self, connection: Connection[Any]) -> dict[str, Any]:
        """Return what was noted of the job."""
        found = connection.execute("SELECT name, value FROM llm_gateway.facts WHERE job = %s", (self.job,))
        return {str(name): json.loads(value) for name, value in found}

    def note(self, connection: Connection[Any], noted: Mapping[str, Any]) -> None:
        """Note facts of the job."""
        for name, value in noted.items():
            connection.execute(
                "INSERT INTO llm_gateway.facts VALUES (%s, %s, %s)"
                " ON CONFLICT (job, name) DO UPDATE SET value = excluded.value",
                (self.job, name, json.dumps(value)),
            )

    # --- rows in --------------------------------------------------------------------------------------------------

    def add(self, connection: Connection[Any], rows: Sequence[NewRow]) -> list[Added]:
        """Take rows in, lease those that say so, and take in the results of those that cannot be asked."""
        found = connection.execute(
            "INSERT INTO llm_gateway.rows(job, number, key, model, form, fingerprint, state, turn, calls, worker, step)"  # noqa: S608
            f" SELECT %s, new.*, (state = {LEASED})::int, (state = {LEASED})::int,"
            f" CASE state WHEN {LEASED} THEN %s::bigint END, CASE state WHEN {LEASED} THEN %s::bigint END"
            " FROM unnest(%s::bigint[], %b::bytea[], %s::text[], %s::text[], %b::bytea[], %s::smallint[])"
            " AS new(number, key, model, form, fingerprint, state) ON CONFLICT DO NOTHING RETURNING number",
            (
                self.job,
                self.worker,
                self.step,
                [row.number for row in rows],
                [_bytes(row.key) for row in rows],
                [row.model for row in rows],
                [row.form for row in rows],
                [row.fingerprint for row in rows],
                [row.state.value for row in rows],
            ),
        ).fetchall()
        new = {int(number) for (number,) in found}
        asked = [row for row in rows if row.number in new and row.failure is None]
        connection.execute(
            "INSERT INTO llm_gateway.requests SELECT %s, new.* FROM unnest(%s::bigint[], %b::bytea[]) AS new",
            (self.job, [row.number for row in asked], [row.request for row in asked]),
        )
        for row in rows:
            if row.failure is not None and row.number in new:
                self._end(connection, row.number, row.failure.kind, row.failure.body)
        there = self._there(connection, [row.number for row in rows if row.number not in new])
        return [Added.NEW if row.number in new else _known(row, there.get(row.number)) for row in rows]

    def _there(self, connection: Connection[Any], numbers: list[int]) -> dict[int, tuple[bytes | None, bytes]]:
        if not numbers:
            return {}
        found = connection.execute(
            "SELECT number, key, fingerprint FROM llm_gateway.rows WHERE job = %s AND number = ANY(%s)",
            (self.job, numbers),
        )
        return {int(number): (key, fingerprint) for number, key, fingerprint in found}

    def last_number(self, connection: Connection[Any]) -> int:
        """Return the highest number of a row."""
        return int(_one(connection, "SELECT coalesce(max(number), 0) FROM llm_gateway.rows WHERE job = %s", self.job))

    # --- leases ---------------------------------------------------------------------------------------------------

    def lease(self, connection: Connection[Any], model: str, limit: int) -> list[Lease]:
        """Lease pending rows that nobody else is about to lease, and record a call for each."""
        found = connection.execute(
            f"WITH found AS MATERIALIZED (SELECT number FROM llm_gateway.rows WHERE job = %(job)s AND model = %(model)s"  # noqa: S608
            f" AND state = {PENDING} ORDER BY number LIMIT %(limit)s FOR UPDATE SKIP LOCKED),"
            f" leased AS (UPDATE llm_gateway.rows SET state = {LEASED}, turn = turn + 1, calls = calls + 1,"
            " worker = %(worker)s, step = %(step)s FROM found WHERE rows.job = %(job)s AND rows.number = found.number"
            " RETURNING rows.number, turn, key, invalid)"
            " SELECT leased.number, turn, key, body, invalid FROM leased"
            " JOIN llm_gateway.requests ON requests.job = %(job)s AND requests.number = leased.number ORDER BY 1",
            {"job": self.job, "model": model, "limit": limit, "worker": self.worker, "step": self.step},
        ).fetchall()
        return [
            Lease(number=number, turn=turn, key=_text(key) or "", request=bytes(body), invalid=invalid)
            for number, turn, key, body, invalid in found
        ]

    def record_call(self, connection: Connection[Any], held: Lease) -> bool:
        """Record one more call; False if the lease is stale."""
        changed = connection.execute(
            f"UPDATE llm_gateway.rows SET calls = calls + 1"  # noqa: S608
            f" WHERE job = %s AND number = %s AND turn = %s AND state = {LEASED}",
            (self.job, held.number, held.turn),
        )
        return changed.rowcount == 1

    def finish(self, connection: Connection[Any], held: Lease, verdict: Verdict) -> bool:
        """End a lease; False, and nothing is written, if it is stale.

        One that was taken back, but that nobody else has got, is not: what was paid for is recorded.
        """
        assert verdict.state in ALLOWED[RowState.LEASED]  # noqa: S101 - a verdict has no other states
        calls = verdict.calls
        changed = connection.execute(
            "UPDATE llm_gateway.rows SET state = %s, turn = turn + %s, invalid = invalid + %s,"  # noqa: S608
            " answered = answered + %s, refused = refused + %s, unsent = unsent + %s, input_tokens = input_tokens + %s,"
            " output_tokens = output_tokens + %s, cost_usd = cost_usd + %s, unpriced = unpriced + %s, worker = NULL"
            f" WHERE job = %s AND number = %s AND turn = %s AND state IN ({PENDING}, {LEASED})",
            (
                *(verdict.state.value, int(verdict.state is RowState.PENDING), int(verdict.invalid), calls.answered),
                *(calls.refused, calls.unsent, calls.input_tokens, calls.output_tokens, calls.cost_usd),
                *(calls.unpriced, self.job, held.number, held.turn),
            ),
        )
        if not changed.rowcount:
            return False
        if verdict.answer is not None:
            self._end(connection, held.number, None, verdict.answer)
            connection.execute(
                "DELETE FROM llm_gateway.requests WHERE job = %s AND number = %s", (self.job, held.number)
            )
        elif verdict.failure is not None:
            self._end(connection, held.number, verdict.failure.kind, verdict.failure.body)
        return True

    def _end(self, connection: Connection[Any], number: int, kind: str | None, body: bytes) -> None:
        if not self._in_order:
            # Ids must grow in the order in which they can be seen: whoever reads on from the last one misses none.
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (RESULTS_LOCK, self.job))
            self._in_order = True
        connection.execute(
            "INSERT INTO llm_gateway.results(job, number, kind, body) VALUES (%s, %s, %s, %b)",
            (self.job, number, kind, body),
        )

    def reclaim(self, connection: Connection[Any]) -> int:
        """Make leased rows pending whose worker has not been heard of for longer than it said."""
        taken = connection.execute(
            f"UPDATE llm_gateway.rows SET state = {PENDING} FROM (SELECT number FROM llm_gateway.rows WHERE job = %s"  # noqa: S608
            f" AND state = {LEASED} AND NOT EXISTS (SELECT FROM llm_gateway.workers WHERE id = worker AND {ALIVE})"
            " FOR UPDATE SKIP LOCKED) AS lost WHERE rows.job = %s AND rows.number = lost.number",
            (self.job, self.job),
        ).rowcount
        connection.execute(
            "DELETE FROM llm_gateway.workers WHERE id IN (SELECT id FROM llm_gateway.workers"  # noqa: S608
            f" WHERE job = %s AND NOT ({ALIVE}) FOR UPDATE SKIP LOCKED)",
            (self.job,),
        )
        return taken

    def retry_failed(self, connection: Connection[Any], kinds: Collection[str] | None) -> int:
        """Make rows pending that were asked in vain, and take their results back."""
        return connection.execute(
            "WITH back AS (DELETE FROM llm_gateway.results USING llm_gateway.rows WHERE results.job = %(job)s"  # noqa: S608
            " AND rows.job = results.job AND rows.number = results.number AND kind IS NOT NULL AND model <> ''"
            " AND (%(kinds)s::text[] IS NULL OR kind = ANY(%(kinds)s)) RETURNING results.number)"
            f" UPDATE llm_gateway.rows SET state = {PENDING}, turn = turn + 1, invalid = 0 FROM back"
            " WHERE rows.job = %(job)s AND rows.number = back.number",
            {"job": self.job, "kinds": None if kinds is None else list(kinds)},
        ).rowcount

    # --- looking --------------------------------------------------------------------------------------------------

    def is_over(self, connection: Connection[Any]) -> bool:
        """Whether the whole input was taken in and every row has ended."""
        return bool(
            _one(
                connection,
                "SELECT EXISTS (SELECT FROM llm_gateway.facts WHERE job = %(job)s AND name = 'read' AND value = 'true')"  # noqa: S608
                f" AND NOT EXISTS (SELECT FROM llm_gateway.rows WHERE job = %(job)s AND state = {PENDING})"
                f" AND NOT EXISTS (SELECT FROM llm_gateway.rows WHERE job = %(job)s AND state = {LEASED})",
                {"job": self.job},
            )
        )

    def pending(self, connection: Connection[Any]) -> dict[str, int]:
        """Return how many rows of each model are pending; beyond some thousands they are not counted."""
        some = f"FROM llm_gateway.rows WHERE job = %(job)s AND state = {PENDING}"
        found = connection.execute(
            f"WITH RECURSIVE models(model) AS ((SELECT model {some} ORDER BY model LIMIT 1) UNION ALL"  # noqa: S608
            f" SELECT (SELECT rows.model {some} AND rows.model > models.model ORDER BY rows.model LIMIT 1)"
            " FROM models WHERE models.model IS NOT NULL)"
            " SELECT model, (SELECT count(*) FROM (SELECT"
            f" {some} AND rows.model = models.model LIMIT {MOST_COUNTED}) AS counted)"
            " FROM models WHERE model IS NOT NULL",
            {"job": self.job},
        )
        return {str(model): int(number) for model, number in found}

    def results(self, connection: Connection[Any], after: int, limit: int) -> list[StoredResult]:
        """Return results in the order of their recording."""
        return self._results(connection, "results.id > %s ORDER BY results.id", after, limit)

    def results_by_number(self, connection: Connection[Any], after: int, limit: int) -> list[StoredResult]:
        """Return results in the order of the input, those of rows above `after`."""
        return self._results(connection, "results.number > %s ORDER BY results.number", after, limit)

    def _results(self, connection: Connection[Any], which: str, after: int, limit: int) -> list[StoredResult]:
        found = connection.execute(
            "SELECT id, results.number, key, form, kind, body, model <> '', calls - unsent, input_tokens,"  # noqa: S608
            " output_tokens, cost_usd, unpriced FROM llm_gateway.results JOIN llm_gateway.rows"
            f" ON rows.job = results.job AND rows.number = results.number WHERE results.job = %s AND {which} LIMIT %s",
            (self.job, after, limit),
        )
        return [
            StoredResult(
                id=row[0],
                number=row[1],
                key=_text(row[2]),
                form=row[3],
                kind=row[4],
                body=bytes(row[5]),
                asked=row[6],
                attempts=row[7],
                input_tokens=row[8],
                output_tokens=row[9],
                cost_usd=row[10],
                unpriced=row[11],
            )
            for row in found
        ]

    def ledger(self, connection: Connection[Any]) -> Ledger:
        """Add up rows, results and calls."""
        kinds = connection.execute(
            "SELECT kind, times, body FROM (SELECT kind, count(*) AS times, min(id) AS id FROM llm_gateway.results"
            " JOIN llm_gateway.rows USING (job, number) WHERE job = %(job)s AND kind IS NOT NULL AND model <> ''"
            " GROUP BY kind) AS counted JOIN (SELECT id, body FROM llm_gateway.results WHERE job = %(job)s) AS firsts"
            " USING (id) ORDER BY times DESC, kind",
            {"job": self.job},
        ).fetchall()
        names = ("rows", "pending", "leased", "done", "malformed", "asked", "calls", "answered", "refused", "unsent")
        more = ("input_tokens", "output_tokens", "cost_usd", "unpriced")
        sums = connection.execute(
            f"SELECT count(*), count(*) FILTER (WHERE state = {PENDING}), count(*) FILTER (WHERE state = {LEASED}),"  # noqa: S608
            f" count(*) FILTER (WHERE state = {DONE}), count(*) FILTER (WHERE state = {FAILED} AND model = ''),"
            " count(*) FILTER (WHERE calls > unsent), coalesce(sum(calls), 0)::bigint,"
            " coalesce(sum(answered), 0)::bigint, coalesce(sum(refused), 0)::bigint, coalesce(sum(unsent), 0)::bigint,"
            " coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,"
            " coalesce(sum(cost_usd), 0), coalesce(sum(unpriced), 0)::bigint FROM llm_gateway.rows WHERE job = %s",
            (self.job,),
        ).fetchall()[0]
        last = _one(connection, "SELECT coalesce(max(id), 0) FROM llm_gateway.results WHERE job = %s", self.job)
        return Ledger(
            last_result=last,
            failed={kind: number for kind, number, _ in kinds},
            examples={kind: str(from_json(bytes(body))["message"]) for kind, _, body in kinds},
            **dict(zip(names + more, sums, strict=True)),
        )


def _one(connection: Connection[Any], sql: str, given: int | Mapping[str, Any]) -> Any:
    """Return the one value that a statement finds."""
    values = (given,) if isinstance(given, int) else given
    return connection.execute(sql.encode(), values).fetchall()[0][0]


def _known(row: NewRow, there: tuple[bytes | None, bytes] | None) -> Added:
    """Say what a row is that could not be inserted; `there` is the one with its number."""
    if there is None:
        return Added.TWICE
    key, fingerprint = there
    # A row without a key is one that was refused for it.
    return Added.KNOWN if fingerprint == row.fingerprint and key in {_bytes(row.key), None} else Added.CHANGED


def _bytes(key: str | None) -> bytes | None:
    """Return a key as it is stored: any text, also one with a zero or half a surrogate pair in it."""
    return None if key is None else key.encode("utf-8", "surrogatepass")


def _text(key: bytes | None) -> str | None:
    return None if key is None else bytes(key).decode("utf-8", "surrogatepass")
