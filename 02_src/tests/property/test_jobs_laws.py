"""Any order of leases, ends, crashes and retries: a stale lease writes nothing, and the ledger adds up."""

from __future__ import annotations

import sqlite3
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from llm_gateway.jobs import batch_book, statements
from llm_gateway.jobs.records import Calls, Failure, Lease, NewRow, RowState, Verdict
from llm_gateway.jobs.store import Added

MODELS = ("a", "b")


class Store(RuleBasedStateMachine):
    """The statements on a database in memory, beside a model of rows and calls in plain dicts."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in statements.SCHEMA.split(";"):
            self.connection.execute(statement)
        batch_book.make_tables(self.connection)
        self.states: dict[int, RowState] = {}
        self.models: dict[int, str] = {}
        self.turns = Counter[int]()
        self.calls = Counter[int]()
        self.known = Counter[int]()  # calls whose outcome is recorded
        self.kinds: dict[int, str] = {}
        self.answers: dict[int, bytes] = {}

    @rule(model=st.sampled_from(MODELS), malformed=st.booleans())
    def add(self, model: str, malformed: bool) -> None:  # noqa: FBT001 - drawn
        number = len(self.states) + 1
        failure = Failure(kind="invalid_request", body=b'{"message":"m"}') if malformed else None
        row = NewRow(
            number=number, key=f"k{number}", form="f", model="" if malformed else model, request=b"{}", failure=failure
        )
        assert statements.add(self.connection, [row]) == [Added.NEW]
        assert statements.add(self.connection, [row]) == [Added.KNOWN]
        self.states[number] = RowState.FAILED if malformed else RowState.PENDING
        self.models[number] = "" if malformed else model

    @rule(target=leases, model=st.sampled_from(MODELS), limit=st.integers(1, 3))
    def lease(self, model: str, limit: int) -> object:
        found = statements.lease(self.connection, model, limit)
        pending = [each for each, state in self.states.items() if state is RowState.PENDING]
        assert [each.number for each in found] == [each for each in pending if self.models[each] == model][:limit]
        for each in found:
            self.states[each.number] = RowState.LEASED
            self.turns[each.number] += 1
            self.calls[each.number] += 1
            assert each.turn == self.turns[each.number]
        return multiple(*found)

    def holds(self, lease: Lease) -> bool:
        return self.states[lease.number] is RowState.LEASED and self.turns[lease.number] == lease.turn

    @rule(lease=leases)
    def call_again(self, lease: Lease) -> None:
        held = self.holds(lease)
        assert statements.record_call(self.connection, lease) is held
        self.calls[lease.number] += held

    @rule(lease=leases, end=st.sampled_from(["answer", "failure", "pending"]), kind=st.sampled_from(["x", "y"]))
    def finish(self, lease: Lease, end: str, kind: str) -> None:
        body = f'{{"message": "{lease.number}-{lease.turn}"}}'.encode()
        verdict = Verdict(
            calls=Calls(answered=1) if end == "answer" else Calls(refused=1) if end == "failure" else Calls(),
            answer=body if end == "answer" else None,
            failure=Failure(kind=kind, body=body) if end == "failure" else None,
        )
        held = self.holds(lease)
        assert statements.finish(self.connection, lease, verdict) is held
        if held:
            self.states[lease.number] = verdict.state
            self.known[lease.number] += end != "pending"
            if end == "answer":
                self.answers[lease.number] = body
            if end == "failure":
                self.kinds[lease.number] = kind

    @rule()
    def crash(self) -> None:
        leased = [number for number, state in self.states.items() if state is RowState.LEASED]
        assert batch_book.reclaim(self.connection) == len(leased)
        self.states |= dict.fromkeys(leased, RowState.PENDING)

    @rule(kinds=st.none() | st.sets(st.sampled_from(["x", "y"]), min_size=1))
    def retry_failed(self, kinds: set[str] | None) -> None:
        chosen = [
            number
            for number, kind in self.kinds.items()
            if self.states[number] is RowState.FAILED and (kinds is None or kind in kinds)
        ]
        assert statements.retry_failed(self.connection, kinds) == len(chosen)
        self.states |= dict.fromkeys(chosen, RowState.PENDING)

    @invariant()
    def the_ledger_adds_up(self) -> None:
        ledger = statements.ledger(self.connection)
        states = Counter(self.states.values())
        assert ledger.adds_up
        assert (ledger.rows, ledger.done) == (len(self.states), states[RowState.DONE])
        assert (ledger.pending, ledger.leased) == (states[RowState.PENDING], states[RowState.LEASED])
        assert ledger.malformed + sum(ledger.failed.values()) == states[RowState.FAILED]
        assert (ledger.calls, ledger.in_doubt) == (self.calls.total(), self.calls.total() - self.known.total())

    @invariant()
    def an_answer_is_recorded_once_and_stays(self) -> None:
        found = statements.results(self.connection, 0, 1_000)
        assert len({each.number for each in found}) == len(found)
        assert {each.number: each.body for each in found if each.kind is None} == self.answers
        assert [each.number for each in statements.results_by_number(self.connection, 0, 1_000)] == sorted(
            each.number for each in found
        )

    def teardown(self) -> None:
        self.connection.close()


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
