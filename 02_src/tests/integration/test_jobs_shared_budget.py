"""One budget for all processes that work on a job in a real PostgreSQL: never exceeded, kept over their ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Emulator, Reply, Usage
from fakes.emulator_thread import emulator_in_a_thread
from fakes.postgres_server import PostgresServer
from fakes.provider import ask
from llm_gateway import LLMGateway
from llm_gateway.budgets import Hold
from llm_gateway.cli.app import app
from llm_gateway.clock import LoopClock
from llm_gateway.config import BudgetSettings, read_config
from llm_gateway.errors import BudgetExceededError, ConfigurationError, JobError
from llm_gateway.jobs import lending, postgres_purse
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.postgres import PostgresJobStore
from llm_gateway.jobs.postgres_purse import PostgresPurse, Standing
from llm_gateway.jobs.records import Calls, NewRow, Verdict
from llm_gateway.limits.shared.budgets import Ledger, SharedBudgets
from llm_gateway.limits.shared.protocol import Lending, Part

NAMES = (f"budget-{number}" for number in itertools.count())
ROWS = 20


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        Path("llm-gateway.toml").write_text(
            f'[logs]\ndir = false\n[providers.openai]\nbase_url = "{emulator.url}/v1"\napi_key = "k"\n'
            "[models.gpt-4o-mini]\nmax_concurrency = 2\nmax_tokens = 10\nprice = { input = 0, output = 1000 }\n"
        )
        Path("in.jsonl").write_text("".join(json.dumps({"prompt": f"row {number}"}) + "\n" for number in range(ROWS)))
        emulator.answer = lambda _: Reply(usage=Usage(input=5, output=8))  # 0.008 US dollars, at most 0.01
        yield emulator


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    """The address of a job that nobody has begun."""
    return f"{postgres_server.url}?job={next(NAMES)}"


def command(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments, prog_name="llm-gateway", catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def facts(url: str) -> dict[str, float]:
    told: dict[str, float] = json.loads(command("jobs", "show", url, "--json").stdout)
    return told


def test_a_budget_ends_a_run_and_a_larger_one_goes_on(url: str, provider: Emulator) -> None:
    stopped = command("run", "in.jsonl", "--job", url, "-o", "out.jsonl", "--budget", "0.05", code=1).stderr
    assert "of the budget of the job, $0.05, " in stopped
    assert "or raise it with `llm-gateway run … --budget`." in stopped
    assert "The same command goes on from here." in stopped
    assert 0.03 < facts(url)["cost_usd"] <= 0.05
    assert "$0.0480 of $0.0500 spent by all processes" in command("jobs", "show", url).stdout
    assert "of the budget of the job" in command("worker", "--job", url, code=1).stderr  # it is the job's own
    assert "of the budget of the job" in command("run", "in.jsonl", "--job", url, code=1).stderr
    assert len(provider.ledger) <= 6
    assert "--budget: the job has spent" in command("run", "in.jsonl", "--job", url, "--budget", "0.01", code=2).stderr
    command("run", "in.jsonl", "--job", url, "-o", "out.jsonl", "--budget", "1")
    assert len(Path("out.jsonl").read_text().splitlines()) == len(provider.ledger) == ROWS
    assert facts(url)["cost_usd"] == pytest.approx(ROWS * 0.008)


def test_a_job_is_loaded_with_the_budget_of_its_workers(url: str, provider: Emulator) -> None:
    command("run", "in.jsonl", "--job", url, "--load-only", "--budget", "0.03")
    assert "of the budget of the job, $0.03, " in command("worker", "--job", url, code=1).stderr
    assert 1 <= len(provider.ledger) <= 3


def test_what_a_job_cost_before_it_had_a_budget_counts(url: str, provider: Emulator) -> None:
    provider.answer = lambda call: (
        Reply(status=400) if "row 7" in str(call.body["messages"]) else Reply(usage=Usage(input=5, output=8))
    )
    command("run", "in.jsonl", "--job", url, code=1)
    told = command("run", "in.jsonl", "--job", url, "--budget", "0.1", "--retry-failed", "all", code=2).stderr
    assert told == "llm-gateway: --budget: the job has spent $0.152 of $0.100; raise it to go on.\n"


async def test_a_python_job_has_the_same_budget(url: str, provider: Emulator) -> None:
    requests = [ask(str(number), text=f"row {number}") for number in range(ROWS)]

    async def answers(**options: Any) -> int:
        async with LLMGateway(read_config(Path("llm-gateway.toml"))) as gateway, gateway.job(url, **options) as job:
            return len([outcome async for outcome in job.run(requests) if outcome.ok])

    with pytest.raises(BudgetExceededError, match=r"of the budget of the job, .* or raise the job's `budget`"):
        await answers(budget=0.05)
    assert len(provider.ledger) == 6
    with pytest.raises(BudgetExceededError, match="of the budget of the job"):
        await answers()  # it is the job's own, for whoever works on it
    with pytest.raises(ConfigurationError, match=r"^budget: the job has spent \$0.0480 of \$0.0400; raise it"):
        await answers(budget=0.04)
    assert await answers(budget=1) == len(provider.ledger) == ROWS


# --- the ledger -------------------------------------------------------------------------------------------------------


class Spender:
    """One process that spends."""

    def __init__(self, url: str, limit: float) -> None:
        self.lender = PostgresPurse(JobAddress.of_job(url))
        self.budgets = SharedBudgets(BudgetSettings(total=limit), owner="the job")
        self._talk = Ledger(self.budgets, self.lender, key="", clock=LoopClock(), patience=30.0)
        self.talking = asyncio.create_task(self._talk.run())
        self._changed = asyncio.Event()
        self.budgets.on_change.append(self._changed.set)
        self.worst = 0.0  # spent and reserved, as its calls know it

    async def hold(self, amount: float) -> Hold:
        while True:
            self._changed.clear()
            hold = self.budgets.reserve(amount, model="m", agent=None)
            if isinstance(hold, Hold):
                self.worst += amount
                return hold
            await self._changed.wait()

    def settle(self, hold: Hold, actual: float) -> None:
        self.worst += actual - hold.amount
        self.budgets.settle(hold, actual)

    async def kill(self) -> None:
        self.talking.cancel()
        await asyncio.wait((self.talking,))
        await self.lender.aclose()

    async def end(self) -> None:
        if not self.talking.done():
            self.talking.cancel()
            await asyncio.wait((self.talking,))
            await self._talk.say_bye()
        await self.lender.aclose()


@asynccontextmanager
async def spenders(url: str, limit: float) -> AsyncIterator[Callable[[], Spender]]:
    address = JobAddress.of_job(url)
    store = await PostgresJobStore.open(address, begins=True)
    purse = PostgresPurse(address)
    assert await purse.begin(None) is None
    assert (await purse.begin(limit)) == (limit, 0.0)
    await purse.aclose()
    all_of_them: list[Spender] = []

    def join() -> Spender:
        all_of_them.append(Spender(url, limit))
        return all_of_them[-1]

    try:
        yield join
    finally:
        for spender in all_of_them:
            await spender.end()
        await store.close()


async def spend(spender: Spender, rng: Random, worst: Callable[[], float], limit: float) -> None:
    while True:
        try:
            hold = await spender.hold(0.05 + rng.random() * 0.1)
        except BudgetExceededError:
            return
        assert worst() <= limit * (1 + 1e-9)
        await asyncio.sleep(0)
        spender.settle(hold, hold.amount * rng.random())


async def test_what_several_processes_spend_and_reserve_never_exceeds_the_budget(url: str) -> None:
    async with spenders(url, 3.0) as join:
        members = [join() for _ in range(3)]

        def worst() -> float:
            return sum(member.worst for member in members)

        async with asyncio.timeout(60.0), asyncio.TaskGroup() as group:
            for number, member in enumerate(members):
                for _ in range(2):
                    group.create_task(spend(member, Random(number), worst, 3.0))
        assert 2.5 <= worst() <= 3.0


async def test_what_a_killed_process_had_borrowed_counts_as_spent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with spenders(url, 1.0) as join:
        killed = join()
        await killed.hold(0.6)
        await killed.kill()
        monkeypatch.setattr(lending, "SILENT", -1.0)  # whoever does not speak at this moment is dead
        other = join()
        await other.hold(0.001)
        with pytest.raises(BudgetExceededError, match="of the job"):
            await asyncio.wait_for(other.hold(0.5), 60.0)


async def test_processes_that_count_no_budget_are_to_stop_before_a_job_gets_one(url: str) -> None:
    address = JobAddress.of_job(url)
    store = await PostgresJobStore.open(address, begins=True)
    await store.add([NewRow(number=1, key="k", form="f", model="m", fingerprint=b"x", request=b"{}")])
    (lease,) = await store.lease("m", 1)
    purse = PostgresPurse(address)
    with pytest.raises(JobError, match="count no budget; stop them"):
        await purse.begin(1.0)
    await store.finish([(lease, Verdict(calls=Calls(answered=1, cost_usd=0.25), answer=b"{}"))])
    await store.close()
    assert await purse.begin(1.0) == (1.0, 0.25)
    assert await purse.begin(None) == (1.0, 0.25)
    assert await purse.begin(2.0) == (2.0, 0.25)
    await purse.aclose()


async def test_two_that_give_a_job_its_budget_at_once_lend_it_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = JobAddress.of_job(url)
    store = await PostgresJobStore.open(address, begins=True)
    writing, go_on = threading.Event(), threading.Event()
    write = postgres_purse._write

    def slowly(*what: Any) -> None:
        if not writing.is_set():
            writing.set()
            go_on.wait(60.0)
        write(*what)

    monkeypatch.setattr(postgres_purse, "_write", slowly)
    first, second = PostgresPurse(address), PostgresPurse(address)
    one = asyncio.create_task(first.begin(1.0))
    assert await asyncio.to_thread(writing.wait, 60.0)
    other = asyncio.create_task(second.begin(1.0))
    with psycopg.connect(address.dsn, autocommit=True) as looking:
        async with asyncio.timeout(60.0):
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while not other.done() and looking.execute(waits).fetchall() == [(0,)]:  # noqa: ASYNC110 - of the database
                await asyncio.sleep(0.01)
    assert not other.done()
    go_on.set()
    assert [await one, await other] == [(1.0, 0.0), (1.0, 0.0)]
    part = Part(limit=1.0, lent=0.0, spent=0.0, gone=0.0, need=0.8)
    lent = [
        float(
            (await purse.lend("", Lending(me=me, born="", parts={"total:": part}, bye=False)))["parts"]["total:"][
                "loan"
            ]
        )
        for me, purse in (("a", first), ("b", second))
    ]
    assert lent[0] >= 0.8
    assert lent[1] == 0.0
    for purse in (first, second):
        await purse.aclose()
    await store.close()


async def test_a_budget_that_is_refused_changes_nothing(url: str) -> None:
    def refuse(standing: Standing) -> None:
        raise ConfigurationError(f"{standing.limit} is too little")

    async with spenders(url, 10.0):
        purse = PostgresPurse(JobAddress.of_job(url))
        with pytest.raises(ConfigurationError):
            await purse.begin(2.0, check=refuse)
        assert await purse.begin(None) == (10.0, 0.0)
        await purse.aclose()


async def test_a_worker_that_has_looked_for_a_budget_in_vain_is_seen_before_it_leases(url: str) -> None:
    address = JobAddress.of_job(url)
    worker = await PostgresJobStore.open(address, begins=True)
    await worker.announce()
    purse = PostgresPurse(address)
    assert await purse.begin(None) is None
    with pytest.raises(JobError, match="count no budget; stop them"):
        await purse.begin(1.0)
    await worker.close()
    assert await purse.begin(1.0) == (1.0, 0.0)
    await purse.aclose()


def test_a_run_without_a_budget_is_seen_before_it_looks_for_one(
    url: str, provider: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = PostgresPurse.begin
    refused: list[str] = []

    async def beside_another(purse: PostgresPurse, limit: float | None, **options: Any) -> Standing | None:
        other = PostgresPurse(JobAddress.of_job(url))
        with pytest.raises(JobError) as caught:
            await begin(other, 1.0)
        refused.append(str(caught.value))
        await other.aclose()
        return await begin(purse, limit, **options)

    monkeypatch.setattr(PostgresPurse, "begin", beside_another)
    command("run", "in.jsonl", "--job", url, "-o", "out.jsonl")
    assert len(refused) == 1
    assert "count no budget; stop them" in refused[0]
    assert len(provider.ledger) == ROWS


async def test_a_budget_that_cannot_be_read_is_told_in_a_sentence(url: str) -> None:
    async with spenders(url, 1.0):
        store = await PostgresJobStore.open(JobAddress.of_job(url), begins=False)
        await store.note({lending.PURSE: {"limit": "much"}})
        await store.close()
        purse = PostgresPurse(JobAddress.of_job(url))
        with pytest.raises(JobError, match="cannot be read"):
            await purse.begin(None)
        await purse.aclose()


async def test_a_budget_that_is_raised_reaches_those_who_work_and_a_job_begun_anew_lends_nothing(url: str) -> None:
    async with spenders(url, 0.1) as join:
        spender = join()
        spender.settle(await spender.hold(0.1), 0.1)
        with pytest.raises(BudgetExceededError):
            await spender.hold(0.5)
        await spender.lender.begin(1.0)
        async with asyncio.timeout(60.0):
            while spender.budgets.snapshot()["the job"]["limit"] < 1.0:  # noqa: ASYNC110 - of the database
                await asyncio.sleep(0.02)
        assert isinstance(await spender.hold(0.5), Hold)
        store = await PostgresJobStore.open(JobAddress.of_job(url), begins=True)
        await store.forget()
        await store.close()
        waiting = asyncio.create_task(spender.hold(0.4))
        with pytest.raises(JobError, match="was begun anew"):
            async with asyncio.timeout(60.0):
                await spender.talking
        assert not waiting.done()
        waiting.cancel()
        assert spender.worst == pytest.approx(0.6)


async def test_a_lost_connection_is_made_anew_and_what_is_lent_is_told_again(url: str) -> None:
    async with spenders(url, 1.0) as join:
        spender = join()
        await spender.hold(0.01)
        connection = spender.lender._connection
        assert connection is not None
        with psycopg.connect(JobAddress.of_job(url).dsn, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        async with asyncio.timeout(60.0):
            assert isinstance(await spender.hold(0.6), Hold)
        purse = PostgresPurse(JobAddress.of_job(url))
        assert await purse.begin(None) == (1.0, 0.0)
        await purse.aclose()
        await purse.aclose()
