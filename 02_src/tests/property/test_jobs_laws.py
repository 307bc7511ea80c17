"""Any order of leases, ends, crashes and retries: a stale lease writes nothing, and the ledger adds up.

The same holds of both databases, but for one thing: in PostgreSQL a lease that was taken back, and that nobody has got
since, can still be ended. A file has no such leases: whoever held one is dead.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from fakes.postgres_server import PostgresServer
from llm_gateway.jobs import batch_book, postgres_tables, statements
from llm_gateway.jobs.postgres_statements import Statements
from llm_gateway.jobs.records import Calls, Failure, Lease, NewRow, RowState, Verdict
from llm_gateway.jobs.store import Added

MODELS = ("a", "b")


Opened = tuple[Any, Any, Callable[[Any], int]]  # a connection, the statements, and the one that takes leases back


def in_memory() -> Opened:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in statements.SCHEMA.split(";"):
        connection.execute(statement)
    batch_book.make_tables(connection)
    return connection, statements, batch_book.reclaim


class Store(RuleBasedStateMachine):
    """The statements on a database, beside a model of rows and calls in plain dicts."""

    leases = Bundle("leases")

    def __init__(self, opened: Callable[[], Opened] = in_memory, *, keeps: bool = False) -> None:
        super().__init__()
        self.connection, self.statements, self.reclaim = opened()
        self.keeps = keeps  # whether a lease that was taken back holds until the row is leased anew
        self.taken_back: set[int] = set()
        self.states: dict[int, RowState] = {}
        self.models: dict[int, str] = {}
        self.turns = Counter[int]()
        self.calls = Counter[int]()
        self.known = Counter[int]()  # calls whose outcome is recorded
        self.kinds: dict[int, str] = {}
        self.answers: dict[int, bytes] = {}

    @rule(target=leases, model=st.sampled_from(MODELS), malformed=st.booleans(), leased=st.booleans())
    def add(self, model: str, malformed: bool, leased: bool) -> object:  # noqa: FBT001 - drawn
        number = len(self.states) + 1
        failure = Failure(kind="invalid_request", body=b'{"message":"m"}') if malformed else None
        row = NewRow(
            number=number,
            key=f"k{number}",
            form="f",
            model="" if malformed else model,
            request=b"{}",
            failure=failure,
            leased=leased and not malformed,
        )
        assert self.statements.add(self.connection, [row]) == [Added.NEW]
        assert self.statements.add(self.connection, [row]) == [Added.KNOWN]
        self.states[number] = row.state
        self.models[number] = "" if malformed else model
        if not row.leased:
            return multiple()
        self.turns[number] = 1
        self.calls[number] += 1
        return Lease(number=number, turn=1, key=f"k{number}", request=b"{}", invalid=0)

    @rule(target=leases, model=st.sampled_from(MODELS), limit=st.integers(1, 3))
    def lease(self, model: str, limit: int) -> object:
        found = self.statements.lease(self.connection, model, limit)
        pending = [each for each, state in self.states.items() if state is RowState.PENDING]
        assert [each.number for each in found] == [each for each in pending if self.models[each] == model][:limit]
        for each in found:
            self.states[each.number] = RowState.LEASED
            self.taken_back.discard(each.number)
            assert each.turn > self.turns[each.number]
            self.turns[each.number] = each.turn
            self.calls[each.number] += 1
        return multiple(*found)

    def holds(self, lease: Lease) -> bool:
        return self.states[lease.number] is RowState.LEASED and self.turns[lease.number] == lease.turn

    @rule(lease=leases)
    def call_again(self, lease: Lease) -> None:
        held = self.holds(lease)
        assert self.statements.record_call(self.connection, lease) is held
        self.calls[lease.number] += held

    @rule(lease=leases, end=st.sampled_from(["answer", "failure", "pending"]), kind=st.sampled_from(["x", "y"]))
    def finish(self, lease: Lease, end: str, kind: str) -> None:
        body = f'{{"message": "{lease.number}-{lease.turn}"}}'.encode()
        verdict = Verdict(
            calls=Calls(answered=1) if end == "answer" else Calls(refused=1) if end == "failure" else Calls(),
            answer=body if end == "answer" else None,
            failure=Failure(kind=kind, body=body) if end == "failure" else None,
        )
        came_back = lease.number in self.taken_back and self.turns[lease.number] == lease.turn
        held = self.holds(lease) or came_back
        assert self.statements.finish(self.connection, lease, verdict) is held
        if held:
            self.taken_back.discard(lease.number)
            self.states[lease.number] = verdict.state
            self.known[lease.number] += end != "pending"
            if end == "answer":
                self.answers[lease.number] = body
            if end == "failure":
                self.kinds[lease.number] = kind

    @rule()
    def crash(self) -> None:
        leased = [number for number, state in self.states.items() if state is RowState.LEASED]
        assert self.reclaim(self.connection) == len(leased)
        self.states |= dict.fromkeys(leased, RowState.PENDING)
        if self.keeps:
            self.taken_back.update(leased)

    @rule(kinds=st.none() | st.sets(st.sampled_from(["x", "y"]), min_size=1))
    def retry_failed(self, kinds: set[str] | None) -> None:
        chosen = [
            number
            for number, kind in self.kinds.items()
            if self.states[number] is RowState.FAILED and (kinds is None or kind in kinds)
        ]
        assert self.statements.retry_failed(self.connection, kinds) == len(chosen)
        self.states |= dict.fromkeys(chosen, RowState.PENDING)

    @invariant()
    def the_ledger_adds_up(self) -> None:
        ledger = self.statements.ledger(self.connection)
        states = Counter(self.states.values())
        assert ledger.adds_up
        assert (ledger.rows, ledger.done) == (len(self.states), states[RowState.DONE])
        assert (ledger.pending, ledger.leased) == (states[RowState.PENDING], states[RowState.LEASED])
        assert ledger.malformed + sum(ledger.failed.values()) == states[RowState.FAILED]
        assert (ledger.calls, ledger.in_doubt) == (self.calls.total(), self.calls.total() - self.known.total())

    @invariant()
    def an_answer_is_recorded_once_and_stays(self) -> None:
        found = self.statements.results(self.connection, 0, 1_000)
        assert len({each.number for each in found}) == len(found)
        assert {each.number: each.body for each in found if each.kind is None} == self.answers
        assert [each.number for each in self.statements.results_by_number(self.connection, 0, 1_000)] == sorted(
            each.number for each in found
        )

    def teardown(self) -> None:
        self.connection.close()


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_same_laws_hold_in_postgresql(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        with connection.transaction():
            postgres_tables.make_tables(connection, "here")
        jobs = 0

        def opened() -> Opened:
            nonlocal jobs
            jobs += 1
            connection.execute("BEGIN")  # advisory locks last as long as a transaction
            job = Statements(postgres_tables.begin_job(connection, f"laws-{jobs}"), worker=1)
            return Borrowed(connection), job, job.reclaim

        class InPostgres(Store):
            def __init__(self) -> None:
                super().__init__(opened, keeps=True)

        laws = settings(max_examples=6, stateful_step_count=30, deadline=None)
        run_state_machine_as_test(InPostgres, settings=laws)


class Borrowed:
    """A connection whose transaction ends where the connection would be closed."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.execute = connection.execute

    def close(self) -> None:
        self.execute("ROLLBACK")
