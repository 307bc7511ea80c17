"""Durable jobs: what is asked, what is recorded, and what the next run does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, unavailable
from llm_gateway import LLMGateway, LLMMessage, LLMRequest, LLMResponse, RequestPriority
from llm_gateway.calls import CallWatch
from llm_gateway.errors import (
    ConfigurationError,
    JobChangedError,
    JobError,
    JobStoreBusyError,
    MissingApiKeyError,
    QueueFullError,
    RequestRejectedError,
)
from llm_gateway.jobs import Job, JobOutcome, SqliteJobStore, claims, intake, rows, statements
from llm_gateway.jobs.asking import FULL_QUEUE_PAUSE
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.records import Lease
from llm_gateway.jobs.sqlite import reading
from llm_gateway.models import TokenUsage

STATE = Path("work.job")
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}


class Bench:
    """A gateway over a fake provider, and jobs through it."""

    def __init__(self, provider: FakeProvider | None = None, **config: Any) -> None:
        self.provider = provider or FakeProvider()
        self.watch = CallWatch()
        self.gateway = gateway_over(self.provider, observers=[self.watch], **config)

    def job(self, path: Path | None = STATE, *, gateway: Any = None, **options: Any) -> Job:
        return Job(gateway or self.gateway, path, watch=self.watch, **options)

    async def run(self, requests: Iterable[LLMRequest], **options: Any) -> list[JobOutcome]:
        async with self.job(**options) as job:
            return [outcome async for outcome in job.run(requests)]


def some(count: int, **fields: Any) -> list[LLMRequest]:
    return [ask(f"r{number}", text=f"question {number}", **fields) for number in range(1, count + 1)]


# --- asking ------------------------------------------------------------------------------------------------------


async def test_every_request_gets_one_outcome_and_the_ledger_adds_up() -> None:
    bench = Bench()
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run(some(40))]
        ledger = await job.ledger()
        facts = await job.facts()
    assert sorted(outcome.number for outcome in outcomes) == list(range(1, 41))
    assert facts["read"] is True  # so that `jobs` says that it has ended
    assert all(outcome.ok and outcome.response and outcome.response.content == "ok" for outcome in outcomes)
    assert {outcome.request_id for outcome in outcomes} == {f"r{number}" for number in range(1, 41)}
    assert ledger.adds_up
    assert (ledger.rows, ledger.done, ledger.calls, ledger.answered, ledger.in_doubt) == (40, 40, 40, 40, 0)
    assert (ledger.input_tokens, ledger.output_tokens) == (400, 200)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("budget", 0, "0 is wrong: it should be greater than 0."),
        ("budget", float("inf"), "inf is wrong: it should be a finite number."),
        ("budget", True, "True is wrong: it should be a number."),
        ("deadline", -1, "-1 is wrong: it should be greater than 0."),
        ("deadline", "soon", "'soon' is wrong: it should be a valid number."),
        ("poll", 0.0, "0.0 is wrong: it should be greater than 0."),
        ("lane", "cheap", "'cheap' is not one of 'auto', 'standard', 'flex' or 'batch'."),
        ("priority", 9, "9 is not one of 1, 2 or 3."),
        ("lease_seconds", 0, "0 is wrong: it should be greater than 0."),
    ],
)
async def test_an_option_of_the_wrong_kind_is_refused_before_anything_is_opened(
    option: str, value: object, sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as told:
        Bench().gateway.job(STATE, **{option: value})
    assert str(told.value) == f"gateway.job({option}=…): {sentence}"
    assert not STATE.exists()


async def test_a_second_run_asks_nothing_again_and_tells_everything_again() -> None:
    bench = Bench()
    first = await bench.run(some(5))
    second = await bench.run(some(7))
    assert len(bench.provider.ledger) == 7
    assert second[:5] == first
    assert [outcome.request_id for outcome in second[5:]] == ["r6", "r7"]


async def test_requests_may_come_slowly_and_are_answered_as_they_come() -> None:
    bench = Bench()
    answered = asyncio.Event()

    async def slowly() -> AsyncIterator[LLMRequest]:
        yield ask("a")
        await answered.wait()
        yield ask("b")

    seen = []
    async with bench.job() as job:
        async for outcome in job.run(slowly()):
            seen.append(outcome.request_id)
            answered.set()
    assert seen == ["a", "b"]


async def test_requests_without_an_id_are_named_by_their_place() -> None:
    bench = Bench()
    plain = [LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content=text)]) for text in "xy"]
    first = await bench.run(plain)
    again = [LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content=text)]) for text in "xy"]
    assert await bench.run(again) == first
    assert {outcome.request_id for outcome in first} == {"row-1", "row-2"}
    assert len(bench.provider.ledger) == 2


async def test_no_more_than_a_window_of_rows_is_under_way_and_no_more_than_some_are_read_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "AHEAD", 100)
    monkeypatch.setattr(intake, "CHUNK", 20)
    models = {"gpt-4o-mini": {"provider": "openai", "model": "m", "max_concurrency": 2}}
    bench = Bench(FakeProvider(latency=lambda _: 0.01), models=models)
    read, most_ahead, done = 0, 0, 0

    def counted() -> Iterable[LLMRequest]:
        nonlocal read, most_ahead
        for request in some(500):
            read += 1
            most_ahead = max(most_ahead, read - done)
            yield request

    async with bench.job(None) as job:
        async for _ in job.run(counted()):
            done += 1
            assert job.under_way <= 16
    assert bench.provider.most_under_way <= 2
    assert done == 500
    assert most_ahead < 300


async def test_rows_that_can_be_asked_at_once_are_leased_as_they_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SqliteJobStore, "lease")
    models = {"gpt-4o-mini": {"provider": "openai", "model": "m", "max_concurrency": 8}}
    bench = Bench(FakeProvider(latency=lambda _: 0.01), models=models)
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run(some(200))]
        ledger = await job.ledger()
    assert [outcome.attempts for outcome in outcomes] == [1] * 200
    assert (ledger.done, ledger.calls, ledger.answered, ledger.in_doubt) == (200, 200, 200, 0)


async def test_a_long_request_is_not_kept_until_it_is_asked_and_asked_all_the_same() -> None:
    short, long = ask("short"), ask("long", text="x" * rows.KEPT_BYTES)
    assert rows.asked_row(1, short, form="f").asked is short
    assert rows.asked_row(2, long, form="f").asked is None
    bench = Bench()
    assert [outcome.ok for outcome in await bench.run([short, long])] == [True, True]
    assert {len(entry.request.messages[0].content) for entry in bench.provider.ledger} >= {rows.KEPT_BYTES}


async def test_new_rows_do_not_go_before_those_that_wait() -> None:
    bench = Bench()
    async with bench.job() as job:
        await job.load(some(40))
    assert len(await bench.run(some(60))) == 60
    assert [entry.request.request_id for entry in bench.provider.ledger] == [f"r{number}" for number in range(1, 61)]


async def test_a_file_takes_all_requests_in_before_any_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "AHEAD", 100)
    bench = Bench()
    async with bench.job() as job:
        await job.load(some(300))
        assert (await job.ledger()).pending == 300
        assert not bench.provider.ledger
    assert len(await bench.run(some(300))) == 300


async def test_a_slow_model_does_not_hold_up_another() -> None:
    bench = Bench(FakeProvider(latency=lambda request: 1000.0 if request.model == "claude-haiku" else 1.0))
    requests = [*some(300, model="claude-haiku"), ask("quick")]
    async with bench.job(None) as job:
        async for outcome in job.run(requests):
            assert outcome.request_id == "quick"
            job.abandon()
            break


async def test_a_priority_of_the_job_goes_before_that_of_its_requests() -> None:
    bench = Bench()
    await bench.run([ask("a", RequestPriority.HIGH)], priority=RequestPriority.LOW)
    assert bench.provider.ledger[0].request.priority is RequestPriority.LOW


# --- what changed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.7}, {"max_tokens": 5}, {"text": "another"}, {"stop": ["x"]}, {"request_id": "other"}],
    ids=lambda change: next(iter(change)),
)
async def test_a_request_that_is_not_what_it_was_is_refused(change: dict[str, Any]) -> None:
    bench = Bench()
    await bench.run([ask("a"), ask("b")])
    changed = ask(**{"request_id": "b", **change})
    with pytest.raises(JobChangedError, match=r"Row 2 \('\w+'\) is not what it was when the job began"):
        await bench.run([ask("a"), changed])
    assert len(bench.provider.ledger) == 2


async def test_what_does_not_change_an_answer_may_change() -> None:
    bench = Bench()
    await bench.run([ask("a")])
    await bench.run([ask("a", RequestPriority.HIGH, deadline=5.0, agent="x", metadata={"k": 1})])
    assert len(bench.provider.ledger) == 1


async def test_a_model_that_is_configured_otherwise_is_refused_before_anything_is_sent() -> None:
    mine = {"provider": "openai", "model": "m-1", "options": {"top_p": 0.5, "api_key": "sk-canary-1"}}
    await Bench(models={"mine": mine}).run([ask("a", model="mine")])
    later = Bench(models={"mine": {**mine, "max_tokens": 7}})
    with pytest.raises(JobChangedError) as caught:
        await later.run([ask("a", model="mine"), ask("b", model="mine")])
    assert "Model 'mine' was openai/m-1 (top_p=0.5) when the job" in str(caught.value)
    assert "is openai/m-1 (max_tokens=7, top_p=0.5) now" in str(caught.value)
    assert later.provider.ledger == []
    assert b"canary" not in STATE.read_bytes()


async def test_a_fresh_job_forgets_what_was_there() -> None:
    bench = Bench()
    await bench.run([ask("a")])
    outcomes = await bench.run([ask("a", text="another")], fresh=True)
    assert len(outcomes) == 1
    assert len(bench.provider.ledger) == 2


# --- failures ----------------------------------------------------------------------------------------------------


async def test_one_bad_row_fails_alone_with_its_kind_and_attempts() -> None:
    def answer(request: LLMRequest) -> Exception | None:
        return RequestRejectedError("no", provider="p", model="m", status=400) if request.request_id == "r2" else None

    bench = Bench(FakeProvider(answer=answer))
    outcomes = {outcome.request_id: outcome for outcome in await bench.run([*some(3), ask("x", model="nobody")])}
    assert [outcomes[name].ok for name in ("r1", "r2", "r3", "x")] == [True, False, True, False]
    assert (outcomes["r2"].kind, outcomes["r2"].message, outcomes["r2"].attempts) == ("rejected", "no", 1)
    assert (outcomes["x"].kind, outcomes["x"].attempts) == ("unknown_model", 0)


async def test_an_id_serves_one_row_also_in_a_later_run() -> None:
    bench = Bench()
    requests = [ask("a"), ask("b"), ask("a", text="again")]
    for _ in range(2):
        outcomes = {outcome.number: outcome for outcome in await bench.run(requests)}
        assert (outcomes[3].kind, outcomes[3].request_id) == ("invalid_request", None)
        assert outcomes[3].message == "the id 'a' stands on an earlier line too; give each line its own."
    assert len(bench.provider.ledger) == 2


async def test_failures_of_one_kind_are_taken_back_and_asked_again() -> None:
    fails = {"r1": unavailable(), "r2": RequestRejectedError("no", provider="p", model="m", status=400)}
    bench = Bench(FakeProvider(answer=lambda request: fails.get(request.request_id)), retry={"max_attempts": 1})
    await bench.run(some(3))
    fails.clear()
    async with bench.job() as job:
        assert dict((await job.ledger()).failed) == {"rejected": 1, "unavailable": 1}
        assert await job.retry_failed(["unavailable"]) == 1
        outcomes = {outcome.request_id: outcome async for outcome in job.run(some(3))}
        ledger = await job.ledger()
    assert (outcomes["r1"].ok, outcomes["r2"].ok, outcomes["r1"].attempts) == (True, False, 2)
    assert (ledger.calls, ledger.answered, ledger.refused) == (4, 2, 2)
    assert ledger.adds_up
    async with bench.job() as job:
        assert await job.retry_failed() == 1


async def test_a_bug_costs_its_own_row_alone(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    class Buggy:
        config = bench.gateway.config

        async def request(self, request: LLMRequest) -> LLMResponse:
            if request.request_id == "r1":
                raise KeyError("a bug")
            return await bench.gateway.request(request)

    outcomes = {outcome.request_id: outcome for outcome in await bench.run(some(2), gateway=Buggy())}
    assert (outcomes["r1"].kind, outcomes["r2"].ok) == ("bug", True)
    assert "row 1 of a job met a bug:\nTraceback" in caplog.text


async def test_a_deadline_that_passes_under_way_leaves_a_call_in_doubt() -> None:
    bench = Bench(FakeProvider(latency=lambda _: 100.0))
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run([ask("a", deadline=1.0)])]
        ledger = await job.ledger()
    assert outcomes[0].kind == "deadline"
    assert (ledger.calls, ledger.in_doubt) == (1, 1)


# --- calls -------------------------------------------------------------------------------------------------------


async def test_every_call_is_recorded_before_it_is_made() -> None:
    bench = Bench(FakeProvider(script=[unavailable(), rate_limited(), unavailable()]))
    recorded: list[int] = []

    async def look(_request: LLMRequest) -> None:
        recorded.append((await job.ledger()).calls - len(bench.provider.ledger))

    bench.provider.work = look
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run([ask("a")])]
        ledger = await job.ledger()
    assert min(recorded) >= 0
    assert len(recorded) == 4
    assert outcomes[0].attempts == 4
    assert (ledger.calls, ledger.answered, ledger.refused, ledger.in_doubt) == (4, 1, 3, 0)


async def test_a_call_of_a_fallback_is_recorded_too() -> None:
    models = {"gpt-4o-mini": {"provider": "openai", "model": "m", "fallbacks": ["claude-haiku"]}}
    provider = FakeProvider(by={"openai/m": unavailable()})
    bench = Bench(provider, models=models, retry={"max_attempts": 1})
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run([ask("a")])]
        ledger = await job.ledger()
    assert outcomes[0].ok
    assert len(provider.ledger) == 2
    assert (ledger.calls, ledger.answered, ledger.refused, ledger.in_doubt) == (2, 1, 1, 0)


async def test_a_retry_that_cannot_be_recorded_is_not_made_before_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FakeProvider(script=[unavailable()]))
    calls_at_failure: list[int] = []
    record_call = SqliteJobStore.record_call

    def full(_store: SqliteJobStore, _lease: Lease) -> None:
        calls_at_failure.append(len(bench.provider.ledger))
        monkeypatch.setattr(SqliteJobStore, "record_call", record_call)
        raise JobStoreBusyError("full")

    monkeypatch.setattr(SqliteJobStore, "record_call", full)
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run([ask("a")])]
        ledger = await job.ledger()
    assert outcomes[0].ok
    assert calls_at_failure == [1]
    assert (len(bench.provider.ledger), ledger.calls, ledger.refused, ledger.answered) == (2, 2, 1, 1)


async def test_calls_that_identical_requests_share_are_counted_once() -> None:
    bench = Bench(coalesce=True)
    async with bench.job() as job:
        outcomes = [outcome async for outcome in job.run([ask(name) for name in "abc"])]
        ledger = await job.ledger()
    assert all(outcome.ok for outcome in outcomes)
    assert len(bench.provider.ledger) == 1
    assert (ledger.done, ledger.calls - ledger.unsent, ledger.answered, ledger.in_doubt) == (3, 1, 1, 0)


async def test_a_full_queue_is_waited_for() -> None:
    bench = Bench()
    turned_away: list[float] = []

    class Full:
        config = bench.gateway.config

        async def request(self, request: LLMRequest) -> LLMResponse:
            if len(turned_away) < 3:
                turned_away.append(asyncio.get_running_loop().time())
                raise QueueFullError("m", depth=1, limit=1, retry_after=None if len(turned_away) == 1 else 0.1)
            return await bench.gateway.request(request)

    outcomes = await bench.run([ask("a")], gateway=Full())
    assert outcomes[0].ok
    assert turned_away[2] - turned_away[0] >= 2 * FULL_QUEUE_PAUSE


# --- stopping ----------------------------------------------------------------------------------------------------


async def test_leaving_the_loop_stops_the_job_and_loses_nothing() -> None:
    bench = Bench()
    seen = []
    async with bench.job() as job:
        async for outcome in job.run(some(200)):
            seen.append(outcome)
            if len(seen) == 3:
                break
    later = await bench.run(some(200))
    assert later[:3] == seen
    assert sorted(outcome.number for outcome in later) == list(range(1, 201))
    assert len(bench.provider.ledger) == 200


async def test_a_job_that_is_stopped_gives_rows_back_that_nobody_has_asked() -> None:
    models = {"gpt-4o-mini": {"provider": "openai", "model": "m", "max_concurrency": 8}}
    bench = Bench(FakeProvider(latency=lambda _: 10.0), models=models)
    async with bench.job() as job:
        running = asyncio.ensure_future(anext(job.run(some(100))))
        await asyncio.sleep(5.0)
        assert ((await job.ledger()).leased, job.under_way) == (32, 16)
        job.stop()
        await running
        await asyncio.sleep(60.0)
        ledger = await job.ledger()
        assert (ledger.leased, job.under_way, job.broken_off) == (0, 0, 0)
        assert (ledger.done, ledger.pending, ledger.unsent, ledger.in_doubt) == (16, 84, 16, 0)
    assert len(bench.provider.ledger) == 16
    later = await bench.run(some(100))
    assert [outcome.attempts for outcome in later] == [1] * 100
    assert len(bench.provider.ledger) == 100


async def test_a_job_that_ends_leaves_no_task_behind() -> None:
    bench = Bench()
    before = asyncio.all_tasks()
    await bench.run(some(100))
    await bench.gateway.shutdown()
    assert asyncio.all_tasks() == before


async def test_an_error_in_the_loop_cancels_what_is_under_way_and_leaves_it_in_doubt() -> None:
    bench = Bench(FakeProvider(latency=lambda request: 1.0 if request.request_id == "r1" else 1e6))

    async def take_one() -> None:
        async with bench.job() as job:
            async for _ in job.run(some(4)):
                raise KeyError("of the caller")

    with pytest.raises(KeyError):
        await take_one()
    assert [entry.outcome for entry in bench.provider.ledger] == ["answered", *["cancelled"] * 3]
    bench.provider.latency = lambda _: 1.0
    async with bench.job() as job:
        ledger = await job.ledger()
        assert (ledger.done, ledger.pending, ledger.in_doubt) == (1, 3, 3)
        assert len([outcome async for outcome in job.run(some(4))]) == 4
        assert (await job.ledger()).in_doubt == 3


async def test_a_gateway_that_is_shut_down_leaves_rows_pending() -> None:
    bench = Bench(FakeProvider(latency=lambda _: 10.0))
    async with bench.job() as job:
        ending = asyncio.create_task(end(job, bench.gateway))
        outcomes = [outcome async for outcome in job.run(some(4))]
        ledger = await job.ledger()
        await ending
        assert (job.broken_off, job.under_way) == (4, 0)
    assert outcomes == []
    assert (ledger.pending, ledger.in_doubt, ledger.adds_up) == (4, 4, True)


async def end(job: Job, gateway: LLMGateway) -> None:
    await asyncio.sleep(5.0)
    job.stop()
    await gateway.shutdown(0.0)


async def test_a_key_that_is_missing_halts_the_job_before_any_row_fails() -> None:
    bench = Bench()

    class Keyless:
        config = bench.gateway.config

        async def request(self, _request: LLMRequest) -> LLMResponse:
            raise MissingApiKeyError("no key")

    async with bench.job(gateway=Keyless()) as job:
        with pytest.raises(MissingApiKeyError):
            _ = [outcome async for outcome in job.run(some(30))]
        ledger = await job.ledger()
    assert (ledger.done, ledger.failed, ledger.calls - ledger.unsent) == (0, {}, 0)
    assert ledger.adds_up
    assert len(await bench.run(some(30))) == 30


async def test_a_row_whose_model_has_no_key_fails_where_others_are_answered() -> None:
    bench = Bench()

    class Half:
        config = bench.gateway.config

        async def request(self, request: LLMRequest) -> LLMResponse:
            if request.model == "claude-haiku":
                raise MissingApiKeyError("no key")
            return await bench.gateway.request(request)

    requests = [ask("a", model="claude-haiku"), *some(3), ask("b", model="claude-haiku")]
    outcomes = {outcome.request_id: outcome for outcome in await bench.run(requests, gateway=Half())}
    assert [outcomes[name].kind for name in ("a", "b", "r1")] == ["missing_api_key", "missing_api_key", None]


async def test_a_budget_stops_the_job_before_it_is_exceeded() -> None:
    provider = FakeProvider(usage=lambda _: TokenUsage(input_tokens=3, output_tokens=1_000))
    bench = Bench(provider, budgets={"total": 0.01})  # dollars
    from llm_gateway.errors import BudgetExceededError

    async with bench.job() as job:
        with pytest.raises(BudgetExceededError):
            _ = [outcome async for outcome in job.run(some(60, max_tokens=1_000))]
        ledger = await job.ledger()
    assert 0 < ledger.cost_usd <= 0.01
    assert ledger.pending > 0
    assert ledger.failed == {}


# --- answers that must fit ----------------------------------------------------------------------------------------


async def test_an_answer_that_does_not_fit_is_asked_for_again() -> None:
    bench = Bench(FakeProvider(script=["no JSON", '{"label": 5}', '{"label": "fine"}']))
    async with bench.job(schema=SCHEMA) as job:
        outcomes = [outcome async for outcome in job.run([ask("a")])]
        ledger = await job.ledger()
    assert outcomes[0].response is not None
    assert outcomes[0].response.content == '{"label": "fine"}'
    assert outcomes[0].attempts == 3
    assert (ledger.done, ledger.answered, ledger.input_tokens) == (1, 3, 30)  # all three were paid


async def test_an_answer_that_never_fits_fails_once_the_attempts_are_used_up() -> None:
    bench = Bench(FakeProvider(answer=lambda _: '{"label": 5}'), retry={"max_attempts": 2})
    outcomes = await bench.run([ask("a")], schema=SCHEMA)
    assert (outcomes[0].kind, outcomes[0].attempts) == ("invalid_answer", 2)
    assert outcomes[0].message == "The answer does not fit the schema at .label: 5 is not of type 'string'."


# --- the state ---------------------------------------------------------------------------------------------------


async def test_two_processes_never_work_on_one_job() -> None:
    bench = Bench()
    async with bench.job():
        with pytest.raises(JobError, match=r"Another process \(id \d+\) works on the job work.job"):
            await bench.job().__aenter__()
    await bench.run([ask("a")])
    assert sorted(path.name for path in Path().iterdir()) == ["work.job"]


async def test_a_job_is_run_once_at_a_time_and_only_while_it_is_open() -> None:
    bench = Bench(FakeProvider(latency=lambda request: 1.0 if request.request_id == "r1" else 1e6))
    job = bench.job()
    with pytest.raises(JobError, match="The job is not open"):
        await job.ledger()
    async with job:
        running = job.run(some(3))
        await anext(running)
        with pytest.raises(JobError, match="one run at a time"):
            await anext(job.run(some(3)))
        job.abandon()


@pytest.mark.parametrize("step", ["add", "lease"])
async def test_rows_that_are_being_leased_when_a_job_is_given_up_are_not_asked(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(FakeProvider(latency=lambda _: 1e6))
    if step == "lease":  # of rows that an earlier run took in
        async with bench.job() as job:
            await job.load(some(3))
    job = bench.job()
    leasing = getattr(SqliteJobStore, step)

    async def given_up(store: SqliteJobStore, *what: Any) -> Any:
        leases = await leasing(store, *what)
        job.abandon()
        return leases

    monkeypatch.setattr(SqliteJobStore, step, given_up)
    async with job:
        assert [outcome async for outcome in job.run(some(3))] == []
        ledger = await job.ledger()
        assert (ledger.pending, ledger.leased, ledger.in_doubt) == (3, 0, 0)
    assert bench.provider.ledger == []
    assert asyncio.get_running_loop().time() < 1.0


@pytest.mark.parametrize("content", [b"precious, and no database", b"SQLite format 3\0 but broken" + b"x" * 4096])
async def test_a_file_that_is_no_state_is_left_alone(content: bytes) -> None:
    STATE.write_bytes(content)
    for fresh in (False, True):
        with pytest.raises(JobError, match=r"work\.job"):
            await Bench().job(fresh=fresh).__aenter__()
        assert STATE.read_bytes() == content


async def test_a_state_is_for_its_owner_alone_and_forgets_prompts_that_are_answered() -> None:
    await Bench().run([ask("a", text="my secret")])
    assert STATE.stat().st_mode & 0o777 == 0o600
    store = SqliteJobStore.open(STATE)
    assert await store.lease("gpt-4o-mini", 10) == []
    await store.close()


async def test_a_full_disk_pauses_the_job_and_nothing_is_lost_or_called_without_a_record() -> None:
    bench = Bench(FakeProvider(answer=lambda _: "long answer " * 500))
    told: list[str] = []
    looks: list[bool] = []

    async def limit_pages(store: SqliteJobStore, pages: int) -> None:
        await store._commits.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    async def make_room(job: Job) -> None:
        await asyncio.sleep(60.0)
        assert isinstance(job.store, SqliteJobStore)
        job.store._commits.run_now(lambda each: each.execute("PRAGMA max_page_count = 1000000").fetchone())

    def paused(error: JobStoreBusyError) -> None:
        told.append(str(error))
        tasks.append(asyncio.create_task(make_room(job)))

    async def look(_request: LLMRequest) -> None:
        with reading(STATE) as connection:
            looks.append(statements.ledger(connection).calls >= len(bench.provider.ledger))

    tasks: list[asyncio.Task[None]] = []
    bench.provider.work = look
    job = bench.job(hooks=Hooks(paused=paused, resumed=lambda: told.append("resumed")))
    async with job:
        assert isinstance(job.store, SqliteJobStore)
        await limit_pages(job.store, 60)  # 4 KiB each
        outcomes = [outcome async for outcome in job.run(some(120))]
        ledger = await job.ledger()
    assert len(outcomes) == 120
    assert all(outcome.ok for outcome in outcomes)
    assert told == ["The job's state work.job cannot be written: its disk is full; make room.", "resumed"]
    assert all(looks)
    assert (ledger.calls, ledger.answered, len(bench.provider.ledger)) == (120, 120, 120)


async def test_a_job_whose_disk_stays_full_can_be_given_up() -> None:
    bench = Bench(FakeProvider(answer=lambda _: "long answer " * 500))
    job = bench.job(hooks=Hooks(paused=lambda _: job.abandon()))
    async with job:
        assert isinstance(job.store, SqliteJobStore)
        await job.store._commits.run(lambda each: each.execute("PRAGMA max_page_count = 60").fetchone())
        known = [outcome async for outcome in job.run(some(120))]
    assert len(known) < 120
    assert len(await bench.run(some(120))) == 120
    async with bench.job() as again:
        ledger = await again.ledger()
        assert ledger.adds_up
        assert ledger.in_doubt > 0
        assert ledger.calls >= len(bench.provider.ledger)
