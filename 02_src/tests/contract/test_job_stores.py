"""What every store of jobs promises, on a file and in a database."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fakes.postgres_server import PostgresServer
from llm_gateway.errors import JobError
from llm_gateway.jobs import JobStore, SqliteJobStore
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.postgres import PostgresJobStore
from llm_gateway.jobs.records import Calls, Failure, Lease, NewRow, Verdict
from llm_gateway.jobs.sqlite import reading
from llm_gateway.jobs.store import Added

Open = Callable[[], Awaitable[JobStore]]
NAMES = (f"contract-{number}" for number in itertools.count())
ANSWER = Verdict(calls=Calls(answered=1, input_tokens=3, output_tokens=2, cost_usd=0.5), answer=b'{"content":"x"}')


def failure(kind: str) -> Failure:
    return Failure(kind=kind, body=b'{"kind":"%b","message":"no %b"}' % (kind.encode(), kind.encode()))


def row(number: int, key: str | None = None, *, text: bytes = b"a", model: str = "m") -> NewRow:
    return NewRow(
        number=number, key=key or f"k{number}", form="f", model=model, fingerprint=text.ljust(16), request=text
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def opens(request: pytest.FixtureRequest) -> Iterator[Open]:
    name = next(NAMES)
    if request.param == "sqlite":

        async def on_file() -> JobStore:
            return SqliteJobStore.open(Path(f"{name}.job"))

        yield on_file
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        address = JobAddress.of_job(f"{server.url}?job={name}")

        async def in_database() -> JobStore:
            return await PostgresJobStore.open(address, begins=True)

        yield in_database


@pytest.fixture
async def store(opens: Open) -> AsyncIterator[JobStore]:
    opened = await opens()
    yield opened
    await opened.close()


async def test_facts_are_noted_in_the_place_of_earlier_ones(store: JobStore) -> None:
    assert await store.facts() == {}
    await store.note({"a": 1, "b": "\0 and ü"})
    await store.note({"a": {"deep": [None]}})
    assert await store.facts() == {"a": {"deep": [None]}, "b": "\0 and ü"}


async def test_rows_are_taken_in_once_and_told_apart(store: JobStore) -> None:
    odd = [row(2, "with \0 and ü"), row(3, "long" * 2000)]
    malformed = NewRow(number=4, key=None, form="f", failure=failure("invalid_request"))
    assert await store.add([row(1), *odd, malformed]) == [Added.NEW] * 4
    assert await store.add([row(1), *odd, malformed]) == [Added.KNOWN] * 4
    assert await store.add([row(1, text=b"other"), row(2, "other")]) == [Added.CHANGED] * 2
    assert await store.add([row(5, "k1"), row(6, "same"), row(7, "same")]) == [Added.TWICE, Added.NEW, Added.TWICE]
    assert await store.last_number() == 6
    assert await store.pending() == {"m": 4}
    assert [lease.key for lease in await store.lease("m", 9)] == ["k1", odd[0].key, odd[1].key, "same"]
    assert [(each.number, each.asked, each.kind) for each in await store.results(0, 9)] == [
        (4, False, "invalid_request")
    ]
    assert (await store.ledger()).adds_up


async def test_a_row_is_leased_in_the_order_of_the_input_and_by_model(store: JobStore) -> None:
    await store.add([row(number, model="even" if number % 2 == 0 else "odd") for number in range(1, 8)])
    assert await store.pending() == {"odd": 4, "even": 3}
    assert [(lease.number, lease.request) for lease in await store.lease("odd", 2)] == [(1, b"a"), (3, b"a")]
    assert [lease.number for lease in await store.lease("odd", 9)] == [5, 7]
    assert await store.lease("odd", 9) == []
    assert await store.pending() == {"even": 3}


async def test_a_row_is_leased_as_it_is_taken_in(store: JobStore) -> None:
    first, second, third = (row(number) for number in (1, 2, 3))
    first.leased = third.leased = True
    assert await store.add([first, second, third]) == [Added.NEW] * 3
    assert await store.add([first, second, third]) == [Added.KNOWN] * 3
    ledger = await store.ledger()
    assert (ledger.leased, ledger.pending, ledger.calls, ledger.in_doubt) == (2, 1, 2, 2)
    assert [(lease.number, lease.turn) for lease in await store.lease("m", 9)] == [(2, 1)]
    assert await store.reclaim() == (0 if store.shared else 3)  # on a shared store this one is known to live
    lease = Lease(number=1, turn=1, key="k1", request=b"a", invalid=0)
    if store.shared:
        assert await store.finish([(lease._replace(turn=2), ANSWER), (lease, ANSWER)]) == [False, True]
        store.record_call(lease._replace(number=3, key="k3"))
        assert (await store.ledger()).calls == 4
    else:
        assert await store.finish([(lease, ANSWER)]) == [False]
        assert [again.turn for again in await store.lease("m", 9)] == [2, 2, 2]
    assert (await store.ledger()).adds_up


async def test_an_end_is_recorded_once_with_its_calls(store: JobStore) -> None:
    await store.add([row(number) for number in (1, 2, 3)])
    first, second, third = await store.lease("m", 9)
    store.record_call(first)
    assert await store.finish([(first, ANSWER)]) == [True]
    assert await store.finish([(first, ANSWER)]) == [False]
    with pytest.raises(JobError):
        store.record_call(first)
    assert await store.finish([(second, Verdict(calls=Calls(refused=1), failure=failure("timeout")))]) == [True]
    assert await store.finish([(third, Verdict(calls=Calls(unsent=1)))]) == [True]
    assert await store.finish([(third, ANSWER)]) == [False]
    (again,) = await store.lease("m", 9)
    assert again.number == 3
    assert again.turn > third.turn
    ledger = await store.ledger()
    assert ledger.adds_up
    assert (ledger.rows, ledger.done, ledger.leased, dict(ledger.failed)) == (3, 1, 1, {"timeout": 1})
    assert (ledger.calls, ledger.answered, ledger.refused, ledger.unsent, ledger.in_doubt) == (5, 1, 1, 1, 2)
    assert (ledger.input_tokens, ledger.output_tokens, ledger.cost_usd) == (3, 2, 0.5)
    assert ledger.examples == {"timeout": "no timeout"}
    answered, failed = await store.results(0, 9)
    assert (answered.number, answered.key, answered.body, answered.attempts) == (1, "k1", ANSWER.answer, 2)
    assert (failed.kind, failed.id) == ("timeout", ledger.last_result)
    assert await store.results(answered.id, 9) == [failed]


async def test_hundreds_of_rows_end_in_one_step_and_leave_no_prompt_behind(store: JobStore) -> None:
    prompts = {number: b"prompt %d" % number for number in range(1, 201)}  # blocks of every size but two
    assert await store.add([row(number, text=text) for number, text in prompts.items()]) == [Added.NEW] * 200
    leases = await store.lease("m", 300)
    assert {lease.number: lease.request for lease in leases} == prompts
    verdicts = [
        Verdict(calls=ANSWER.calls, answer=b'"answer %d"' % number)
        if number % 50
        else Verdict(calls=Calls(refused=1), failure=failure("timeout"))
        for number in prompts
    ]
    assert await store.finish(list(zip(leases, verdicts, strict=True))) == [True] * 200
    found = {each.number: each for each in await store.results(0, 300)}
    assert {number: each.body for number, each in found.items() if each.kind is None} == {
        number: b'"answer %d"' % number for number in prompts if number % 50
    }
    assert [number for number, each in found.items() if each.kind == "timeout"] == [50, 100, 150, 200]
    ledger = await store.ledger()
    assert ledger.adds_up
    assert (ledger.done, ledger.answered, ledger.input_tokens, ledger.cost_usd) == (196, 196, 588, 98.0)
    if isinstance(store, SqliteJobStore):
        with reading(Path(store.name)) as connection:  # what failed may be asked again
            left = connection.execute("SELECT number FROM requests ORDER BY number").fetchall()
        assert left == [(50,), (100,), (150,), (200,)]


async def test_a_stale_lease_among_others_is_told_and_costs_them_nothing(store: JobStore) -> None:
    await store.add([row(number) for number in (1, 2, 3)])
    first, second, third = await store.lease("m", 9)
    await store.finish([(second, Verdict(calls=Calls(unsent=1)))])
    refused = Verdict(calls=Calls(refused=1), failure=failure("timeout"))
    (again,) = await store.lease("m", 9)
    ends = [(first, ANSWER), (second, ANSWER), (third, refused), (again, ANSWER), (again, ANSWER)]
    assert await store.finish(ends) == [True, False, True, True, False]
    ledger = await store.ledger()
    assert ledger.adds_up
    assert (ledger.done, dict(ledger.failed), ledger.answered, ledger.in_doubt) == (2, {"timeout": 1}, 2, 0)
    assert [(each.number, each.kind) for each in await store.results(0, 9)] == [(1, None), (3, "timeout"), (2, None)]
    assert await store.finish([]) == []


async def test_failures_are_taken_back_by_kind(store: JobStore) -> None:
    await store.add([row(number) for number in (1, 2)])
    for lease, kind in zip(await store.lease("m", 9), ("timeout", "rejected"), strict=True):
        await store.finish([(lease, Verdict(calls=Calls(refused=1), failure=failure(kind), invalid=True))])
    assert await store.retry_failed(["none"]) == 0
    assert await store.retry_failed(["timeout"]) == 1
    assert await store.retry_failed(None) == 1
    assert [lease.invalid for lease in await store.lease("m", 9)] == [0, 0]


async def test_a_job_is_over_when_its_input_was_read_and_every_row_has_ended(store: JobStore) -> None:
    assert not await store.is_over()
    await store.add([row(1)])
    await store.note({"read": True})
    assert not await store.is_over()
    (lease,) = await store.lease("m", 1)
    assert not await store.is_over()
    await store.finish([(lease, ANSWER)])
    assert await store.is_over()


async def test_what_was_recorded_is_there_when_the_job_is_opened_again(store: JobStore, opens: Open) -> None:
    await store.add([row(1), row(2)])
    lease, lost = await store.lease("m", 2)
    await store.finish([(lease, ANSWER)])
    await store.close()
    await store.close()
    with pytest.raises(JobError, match="is closed"):
        await store.ledger()
    again = await opens()
    assert [each.number for each in await again.results(0, 9)] == [1]
    assert await again.reclaim() == 1
    assert [(each.number, each.turn > lost.turn) for each in await again.lease("m", 9)] == [(2, True)]
    await again.close()
