"""Several workers on one job in a real PostgreSQL: leases, fencing, lost connections, secrets."""

from __future__ import annotations

import asyncio
import itertools
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from fakes.postgres_server import PostgresServer
from fakes.provider import FakeProvider, ask, gateway_over
from llm_gateway import LLMRequest
from llm_gateway.calls import CallWatch
from llm_gateway.errors import ConfigurationError, JobError, JobStoreBusyError, MissingApiKeyError
from llm_gateway.jobs import Job, JobOutcome, job, patience, postgres, postgres_tables, runner
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.postgres import PostgresJobStore, jobs_in, viewing
from llm_gateway.jobs.records import Calls, NewRow, Verdict

NAMES = (f"shared-{number}" for number in itertools.count())
ANSWER = Verdict(calls=Calls(answered=1), answer=b'{"content":"x"}')
CANARY = "sk-canary/pass%word"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runner, job):
        monkeypatch.setattr(module, "LOOK_PERIOD", 0.02)
    monkeypatch.setattr(patience, "STORE_PAUSE", 0.05)


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return f"{postgres_server.url}?job={next(NAMES)}"


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    server = PostgresServer()
    yield server
    server.close()


class Member:
    """One of several processes on a job: a gateway over a provider of its own."""

    def __init__(self, url: str, **config: Any) -> None:
        self.url = url
        self.provider = FakeProvider(latency=lambda _: 0.0)
        self.watch = CallWatch()
        self.gateway = gateway_over(self.provider, observers=[self.watch], **config)

    def job(self, **options: Any) -> Job:
        return Job(self.gateway, self.url, watch=self.watch, **options)

    async def run(self, requests: list[LLMRequest], **options: Any) -> list[JobOutcome]:
        async with self.job(**options) as job:
            return [outcome async for outcome in job.run(requests)]

    async def work(self, **options: Any) -> None:
        async with self.job(helps=True, **options) as job:
            await job.work()


def some(count: int) -> list[LLMRequest]:
    return [ask(f"r{number}", text=f"question {number}") for number in range(1, count + 1)]


def new(*numbers: int) -> list[NewRow]:
    return [
        NewRow(number=each, key=f"k{each}", form="f", model="m", fingerprint=b"x", request=b"{}") for each in numbers
    ]


@asynccontextmanager
async def stores(url: str, count: int, *, patience: float = 30.0) -> AsyncIterator[list[PostgresJobStore]]:
    address = JobAddress.of_job(url)
    opened = [await PostgresJobStore.open(address, begins=True, patience=patience) for _ in range(count)]
    try:
        yield opened
    finally:
        for store in opened:
            await store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of another process, at times
            await asyncio.sleep(0.01)


# --- together ----------------------------------------------------------------------------------------------------


async def test_workers_share_the_rows_and_whoever_feeds_the_job_hears_of_all_of_them(url: str) -> None:
    models = {"gpt-4o-mini": {"provider": "openai", "model": "m", "max_concurrency": 2}}  # few rows are leased ahead
    feeder, *helpers = (Member(url, models=models) for _ in range(3))
    for member in (feeder, *helpers):
        member.provider.latency = lambda _: 0.01
    running = asyncio.create_task(feeder.run(some(150)))
    await until(lambda: feeder.provider.ledger)
    await asyncio.gather(*(helper.work() for helper in helpers))
    outcomes = await running
    assert sorted(outcome.number for outcome in outcomes) == list(range(1, 151))
    assert all(outcome.ok for outcome in outcomes)
    called = [entry.request.request_id for member in (feeder, *helpers) for entry in member.provider.ledger]
    assert sorted(called) == sorted(f"r{number}" for number in range(1, 151))
    assert all(helper.provider.ledger for helper in helpers)
    assert await Member(url, models=models).run(some(150)) == outcomes  # nothing is asked again
    with viewing(JobAddress.of_job(url)) as view:
        assert view.workers() == []
        assert view.ledger().adds_up


async def test_two_stores_never_lease_one_row(url: str) -> None:
    async with stores(url, 3) as opened:
        await opened[0].add(new(*range(1, 101)))
        leased = await asyncio.gather(*(store.lease("m", 10) for store in opened * 3))
        numbers = [lease.number for leases in leased for lease in leases]
        assert len(set(numbers)) == len(numbers) == 90


async def test_one_process_feeds_a_job_at_a_time(url: str) -> None:
    async with Member(url).job():
        with pytest.raises(JobError, match=r"Another process feeds the job postgresql://gateway@127.*help it with"):
            await Member(url).job().__aenter__()
    async with Member(url).job():
        pass


async def test_who_closes_a_job_leaves_it_free_before_the_server_sees_the_connection_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CLAIMS", 1)
    closing: list[psycopg.Connection[Any]] = []
    async with stores(url, 2) as (first, second):
        await first.claim()
        with monkeypatch.context() as slow:
            slow.setattr(psycopg.Connection, "close", lambda connection: closing.append(connection))  # noqa: PLW0108 - bound
            await first.close()
        await second.claim()
    for connection in closing:
        connection.close()


async def test_a_job_whose_process_was_just_killed_can_be_fed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "CLAIM_PAUSE", 0.01)
    async with stores(url, 2) as (killed, store):
        await killed.claim()
        claims = store._claimed

        def claimed(connection: psycopg.Connection[Any]) -> bool:
            free = claims(connection)
            if not free:  # and now the server sees the end of the other's connection
                asyncio.run_coroutine_threadsafe(killed.close(), loop).result()
            return free

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(store, "_claimed", claimed)
        await store.claim()


async def test_a_worker_needs_a_job_that_is_there_and_a_database(url: str) -> None:
    with pytest.raises(JobError, match=r"There is no job postgresql://.*job=none; `llm-gateway run"):
        await Member(f"{url.partition('?')[0]}?job=none").job(helps=True).__aenter__()
    with pytest.raises(JobError, match="Only a job in a database has workers"):
        await Member("file.job").job(helps=True).__aenter__()


async def test_a_worker_without_a_key_ends_and_fails_no_row_of_the_others(url: str) -> None:
    feeder, keyless = Member(url), Member(url)
    await feeder.run(some(3))

    async def no_key(_request: LLMRequest) -> None:
        raise MissingApiKeyError("no key")

    async with feeder.job() as job:
        await job.load(some(6))
    keyless.provider.work = no_key
    with pytest.raises(MissingApiKeyError):
        await keyless.work()
    async with feeder.job() as job:
        ledger = await job.ledger()
    assert (ledger.done, ledger.pending, dict(ledger.failed)) == (3, 3, {})
    assert len(await Member(url).run(some(6))) == 6


async def test_a_fresh_job_forgets_but_not_while_somebody_works_on_it(url: str) -> None:
    await Member(url).run(some(3))
    async with stores(url, 1) as (store,):
        await store.lease("m", 1)
        with pytest.raises(JobError, match=r"A worker \(.*process \d+\) works on the job; stop it first"):
            await Member(url).job(fresh=True).__aenter__()
    again = Member(url)
    assert len(await again.run(some(2), fresh=True)) == 2
    assert len(again.provider.ledger) == 2


# --- leases ------------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_silent_for_too_long_loses_its_rows_and_cannot_record_them_twice(
    url: str, postgres_server: PostgresServer
) -> None:
    async with stores(url, 2) as (slow, other):
        await slow.add(new(1, 2, 3))
        held = await slow.lease("m", 3)
        assert await other.reclaim() == 0  # it lives
        silence(postgres_server)
        assert await other.reclaim() == 3
        assert (await other.ledger()).in_doubt == 3
        with pytest.raises(JobError, match="Row 1 is not leased to this worker any more"):
            slow.record_call(held[0])
        assert [lease.number for lease in await other.lease("m", 2)] == [1, 2]
        # Its paid answers count where nobody has asked anew, and only there.
        assert await slow.finish([(lease, ANSWER) for lease in held]) == [False, False, True]
        assert [result.number for result in await other.results(0, 9)] == [3]
        ledger = await other.ledger()
        assert (ledger.done, ledger.leased, ledger.calls, ledger.answered, ledger.adds_up) == (1, 2, 5, 1, True)


def silence(server: PostgresServer) -> None:
    """Let all workers have been silent for an hour, on a server that has been there for longer."""
    server.execute("UPDATE llm_gateway.workers SET beat = beat - interval '1 hour', patience = -3600")


async def test_an_idle_worker_keeps_its_leases_by_its_beat(
    url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "BEATS", 1000)
    async with stores(url, 2) as (busy, other):
        await busy.add(new(1))
        await busy.lease("m", 1)
        beats = {beat_of(postgres_server, busy)}
        async with asyncio.timeout(60):
            while len(beats) < 4:
                await asyncio.sleep(0.01)
                beats.add(beat_of(postgres_server, busy))
        assert await other.workers()
    with viewing(JobAddress.of_job(url)) as view:
        assert view.workers() == []


def beat_of(server: PostgresServer, store: PostgresJobStore) -> Any:
    return server.execute(f"SELECT beat FROM llm_gateway.workers WHERE id = {store._steps.worker}")[0][0]  # noqa: S608


async def test_results_are_seen_in_the_order_of_their_ids(url: str) -> None:
    async with stores(url, 4) as (reader, *writers):
        await reader.add(new(*range(1, 121)))
        seen: list[int] = []

        async def write(store: PostgresJobStore) -> None:
            while leases := await store.lease("m", 5):
                await asyncio.gather(*(store.finish([(lease, ANSWER)]) for lease in leases))

        writing = asyncio.gather(*(write(store) for store in writers))
        while not writing.done() or len(seen) < 120:
            seen += [result.id for result in await reader.results(seen[-1] if seen else 0, 7)]
        assert len(set(seen)) == 120
        assert seen == sorted(seen)


# --- connections -------------------------------------------------------------------------------------------------


async def test_a_server_that_is_restarted_costs_no_answer(own_server: PostgresServer) -> None:
    member = Member(f"{own_server.url}?job=restarted")
    told: list[str] = []
    gate = asyncio.Event()

    async def held(_request: LLMRequest) -> None:
        await gate.wait()

    member.provider.work = held
    hooks = Hooks(paused=lambda error: told.append(str(error)), resumed=lambda: told.append("resumed"))
    async with member.job(hooks=hooks) as job:
        running = asyncio.create_task(collect(job, some(30)))
        await until(lambda: len(member.provider.ledger) >= 5)
        own_server.stop()
        gate.set()
        await until(lambda: told)
        own_server.start()
        outcomes = await running
        ledger = await job.ledger()
    assert sorted(outcome.number for outcome in outcomes) == list(range(1, 31))
    assert told[0].startswith("The job's database postgresql://gateway@127.0.0.1:")
    assert "cannot be used for the moment: " in told[0]
    assert told[-1] == "resumed"
    assert len(member.provider.ledger) == 30  # nothing that was paid for was asked again
    assert (ledger.calls - ledger.unsent, ledger.answered, ledger.in_doubt) == (30, 30, 0)


async def collect(job: Job, requests: list[LLMRequest]) -> list[JobOutcome]:
    return [outcome async for outcome in job.run(requests)]


@pytest.mark.parametrize("reached", [True, False], ids=["committed", "lost"])
async def test_leases_whose_commit_got_no_answer_are_given_back_unsent(
    url: str,
    reached: bool,  # noqa: FBT001 - drawn
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stores(url, 1) as (store,):
        await store.add(new(1, 2))
        execute = psycopg.Connection.execute

        def breaking(connection: Any, query: Any, *given: Any, **named: Any) -> Any:
            if query != "COMMIT":
                return execute(connection, query, *given, **named)
            monkeypatch.undo()
            if reached:
                execute(connection, query)
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(psycopg.Connection, "execute", breaking)
        with pytest.raises(JobStoreBusyError, match="server closed the connection unexpectedly"):
            await store.lease("m", 2)
        with pytest.raises(JobStoreBusyError):  # no event loop waits for a connection
            store.record_call(leased(1))
        assert await store.pending() == {"m": 2}
        ledger = await store.ledger()
        assert (ledger.leased, ledger.calls - ledger.unsent, ledger.in_doubt) == (0, 0, 0)
        assert [lease.number for lease in await store.lease("m", 2)] == [1, 2]


def leased(number: int) -> Any:
    from llm_gateway.jobs.records import Lease

    return Lease(number=number, turn=1, key="k", request=b"", invalid=0)


async def test_an_idle_connection_that_was_cut_is_made_anew_with_its_claim(
    url: str, postgres_server: PostgresServer
) -> None:
    async with stores(url, 2) as (store, other):
        await store.claim()
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'llm-gateway'"
        )
        await store.note({"a": 1})
        with pytest.raises(JobError, match="Another process feeds"):
            await other.claim()
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'llm-gateway'"
        )
        await other.claim()
        with pytest.raises(JobStoreBusyError, match=r"Another process feeds the job .* now"):
            await store.facts()


# --- tables ------------------------------------------------------------------------------------------------------


async def test_many_workers_that_begin_at_once_make_the_tables_once(postgres_server: PostgresServer) -> None:
    postgres_server.execute("CREATE DATABASE fresh")
    base = postgres_server.url.replace("/postgres", "/fresh")
    address = JobAddress.of_job(f"{base}?job=first")
    assert jobs_in(address) == []
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: PostgresJobStore(address, begins=True), range(8)))
    for store in opened:
        await store.close()
    assert [each.shown for each in jobs_in(address)] == [address.shown]
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute("UPDATE llm_gateway.version SET number = 99")
    for begins in (True, False):
        with pytest.raises(JobError, match="have format 99, and this version of llm-gateway knows 1"):
            PostgresJobStore(address, begins=begins)
    assert postgres_tables.VERSION == 1


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://u:p@h/db", "The address postgresql://u@h/db names no job; add ?job=NAME to it."),
        ("postgresql://u:p@h/db?job=", "job: the name of a job has 1 to 200 printable characters."),
        ("postgresql://u:p@h/db?job=a%00b", "job: the name of a job has 1 to 200 printable characters."),
        ("postgresql://u:sk-canary/x@h/db?job=a", "write @ as %40, / as %2F"),
        ("postgresql://u:sk-canary?x@h/db?job=a", "write @ as %40, / as %2F"),
        ("postgresql://u:sk-canary#x@h/db?job=a", "write @ as %40, / as %2F"),
        ("postgresql://u:p@[h/db?job=a", "is malformed"),
    ],
    ids=["none", "empty", "zero", "slash", "question", "hash", "bracket"],
)
def test_an_address_that_cannot_be_meant_is_one_sentence_without_its_password(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Job(gateway_over(FakeProvider()), url, watch=CallWatch())
    assert sentence in str(caught.value)
    assert "sk-canary" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["127.0.0.1:1/db?job=a", "127.0.0.1:1/db?job=a&nonsense={password}", "127.0.0.1:1/db?job=a&password={password}"],
    ids=["refused", "unknown", "parameter"],
)
async def test_no_error_and_no_log_holds_a_password(place: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    password = "sk-canary%2Fpass%25word"
    member = Member(f"postgresql://user:{password}@{place.format(password=password)}")
    with pytest.raises(JobError) as caught:
        await member.job().__aenter__()
    address = JobAddress.of_job(member.url)
    trace = "".join(traceback.format_exception(caught.value))
    told = f"{trace} {caught.value!r} {address!r} {address.shown} {caplog.text}"
    assert "postgresql://user@127.0.0.1:1/db?job=a" in told
    assert "sk-canary" not in told
    assert CANARY not in told


async def test_a_missing_driver_is_told_with_the_command(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'llm-gateway\[postgres\]'"):
        await Member(url).job().__aenter__()
    assert postgres.LEASE_SECONDS == 30.0
