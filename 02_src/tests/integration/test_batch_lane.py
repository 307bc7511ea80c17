"""Jobs in the batch lane, against the emulator: every state, every fault, and a crash at every step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fakes.deployments import tool
from fakes.emulator import Emulator
from fakes.emulator.batches import COMPLETED, Fate, Made, answer_to
from fakes.provider import QUIET, Recorder, ask
from llm_gateway import BudgetExceededError, ConfigurationError, LLMGateway, LLMMessage, LLMRequest, RequestPriority
from llm_gateway.calls import CallWatch
from llm_gateway.clock import LoopClock
from llm_gateway.events import AttemptFailed, Event, ProviderBatchChanged, RequestDone, RetryScheduled
from llm_gateway.jobs import Job, JobOutcome, batches
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.records import Ledger
from llm_gateway.jobs.sqlite import SqliteJobStore
from llm_gateway.models import TokenUsage

E = TypeVar("E", bound=Event)
STATE = Path("work.job")
KINDS = ("openai", "anthropic")
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
ROWS = 6


class Crash(Exception):  # noqa: N818 - it stands for the end of a process
    """The process ends here."""


class Fuse:
    """Crashes at the n-th passing of a step."""

    def __init__(self, step: str, nth: int = 1) -> None:
        self._step = step
        self._left = nth

    def __call__(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                raise Crash(step)


class Skipping(LoopClock):
    """A clock that jumps an hour ahead when the first batch is noted, and tells the fuse of each step."""

    def __init__(self, fuse: Any = None) -> None:
        super().__init__()
        self._skipped = 0.0
        self._fuse = fuse

    def now(self) -> float:
        return super().now() + self._skipped

    def passed(self, step: str) -> None:
        if step == "noted":
            self._skipped = 3600.0
        if self._fuse is not None:
            self._fuse(step)


class Bench:
    """Jobs over the emulator, one after the other on one state."""

    def __init__(self, emulator: Emulator, kind: str) -> None:
        self.emulator = emulator
        self.kind = kind
        self.provider = emulator.batches
        self.told: list[str] = []
        self.heard = Recorder()  # in all runs
        url = emulator.url if kind == "anthropic" else f"{emulator.url}/v1"
        price = {"input": 1.0, "output": 2.0}
        self.config: dict[str, Any] = {
            **QUIET,
            "providers": {kind: {"base_url": url, "api_key": "sk-canary-0123456789"}},
            "models": {"m": {"provider": kind, "model": MODELS[kind], "price": price, "limits": False}},
            "retry": {"base_delay": 0.0},
        }

    async def run(
        self, rows: int = ROWS, *, step: Any = None, requests: Iterable[LLMRequest] | None = None, **options: Any
    ) -> list[JobOutcome]:
        given = {"lane": "batch", "poll": 0.001, **options}
        hooks = Hooks(told=self.told.append, **({"step": step} if step else {}))
        watch = CallWatch()
        asked = some(rows) if requests is None else requests
        async with (
            LLMGateway(self.config, observers=[watch, self.heard]) as gateway,
            Job(gateway, STATE, watch=watch, hooks=hooks, **given) as job,
        ):
            self.gateway = gateway
            try:
                outcomes = [outcome async for outcome in job.run(asked)]
            finally:
                self.ledger = await job.ledger()
            self.batches = await store_of(job).batches.all_batches()
        return outcomes

    def events(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard.events if isinstance(event, kind)]

    @property
    def called(self) -> Counter[str]:
        """Prompts that were answered in the standard lane."""
        return Counter(call.body["messages"][-1]["content"] for call in self.emulator.ledger if call.status == 200)

    @property
    def paid(self) -> Counter[str]:
        """Prompts by how often they were paid, in all lanes."""
        return self.called + self.provider.paid


def store_of(job: Job) -> SqliteJobStore:
    assert isinstance(job.store, SqliteJobStore)
    return job.store


def some(count: int) -> list[LLMRequest]:
    return [ask(f"r{number}", model="m", text=f"q{number}") for number in range(1, count + 1)]


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, emulator: Emulator) -> Bench:
    return Bench(emulator, request.param)


def check(bench: Bench, outcomes: list[JobOutcome], rows: int = ROWS) -> Ledger:
    """Every row is answered once and paid once."""
    assert sorted(outcome.number for outcome in outcomes) == list(range(1, rows + 1))
    assert all(outcome.ok for outcome in outcomes)
    assert bench.paid == Counter({f"q{number}": 1 for number in range(1, rows + 1)})
    assert bench.ledger.adds_up
    assert (bench.ledger.done, bench.ledger.answered, bench.ledger.in_doubt) == (rows, rows, 0)
    done = [event for event in bench.events(RequestDone) if event.outcome == "ok"]  # whoever looks on saw all of it
    assert Counter(event.request_id for event in done) == Counter(f"r{number}" for number in range(1, rows + 1))
    assert sum(event.cost_usd or 0.0 for event in done) == pytest.approx(bench.ledger.cost_usd)
    return bench.ledger


# --- the plain way ------------------------------------------------------------------------------------------------


async def test_a_job_is_probed_with_one_row_and_the_others_go_in_one_batch_at_half_the_price(bench: Bench) -> None:
    outcomes = await bench.run()
    ledger = check(bench, outcomes)
    assert bench.called == {"q1": 1}
    assert len(bench.provider.made) == 1
    lanes = Counter(
        outcome.response.receipt.price_lane for outcome in outcomes if outcome.response and outcome.response.receipt
    )
    assert lanes == {"standard": 1, "batch": ROWS - 1}
    batched = next(outcome.response for outcome in outcomes if outcome.number == 2)
    assert batched is not None
    assert (batched.content, batched.request_id, batched.model) == (answer_to("q2"), "r2", "m")
    assert batched.receipt is not None
    assert batched.receipt.cost_usd == pytest.approx(10e-6)  # half of 10 · $1 + 5 · $2 a million
    standard = next(
        o.response.receipt.cost_usd for o in outcomes if o.number == 1 and o.response and o.response.receipt
    )
    assert ledger.cost_usd == pytest.approx((standard or 0) + 5 * 10e-6)
    assert [(each.state in {"completed", "ended"}, each.requests, each.is_open) for each in bench.batches] == [
        (True, ROWS - 1, False)
    ]
    assert await bench.run() == outcomes  # a later run asks nothing
    assert sum(bench.paid.values()) == ROWS


async def test_observers_hear_of_a_jobs_batches_as_of_any_request(bench: Bench, tmp_path: Path) -> None:
    bench.config |= {"logs": {"dir": str(tmp_path / "logs"), "text": True}}
    requests = [
        request.model_copy(update={"agent": "a", "metadata": {"team": "x"}, "priority": RequestPriority.LOW})
        for request in some(3)
    ]
    await bench.run(requests=requests)
    batched = [event for event in bench.events(RequestDone) if event.price_lane == "batch"]
    assert {event.request_id for event in batched} == {"r2", "r3"}
    intent = bench.batches[0].intent
    for event in batched:
        assert (event.batch_id, event.model, event.deployment) == (intent, "m", f"{bench.kind}/{MODELS[bench.kind]}")
        assert (event.priority, event.agent, event.metadata) == (RequestPriority.LOW, "a", {"team": "x"})
        assert (event.attempt, event.finish_reason) == (1, "stop")
        assert event.cost_usd == pytest.approx(10e-6)
        assert (event.usage, event.answer) == (
            TokenUsage(input_tokens=10, output_tokens=5),
            answer_to(f"q{event.request_id[1:]}"),
        )
        assert event.prompt == [{"role": "user", "content": f"q{event.request_id[1:]}"}]
    states = bench.events(ProviderBatchChanged)
    assert {(event.batch_id, event.provider_batch_id, event.size) for event in states} == {
        (intent, bench.batches[0].batch_id, 2)
    }
    assert (states[0].state, states[0].waiting) == ("made", 2)
    assert (states[-1].state, states[-1].waiting) == (bench.batches[0].state, 0)
    stats = bench.gateway.get_stats()
    assert (stats["submitted"], stats["completed"], stats["failed"]) == (3, 3, 0)
    assert stats["cost_usd"] == pytest.approx(bench.ledger.cost_usd)
    assert stats["provider_time"]["count"] == 1  # the hours of a batch say nothing of the provider
    written = (line for file in sorted((tmp_path / "logs").iterdir()) for line in file.read_text().splitlines())
    lines = [json.loads(line) for line in written]
    done = [line for line in lines if line["event"] == "item_done"]
    assert Counter(line.get("price_lane") for line in done) == {None: 1, "batch": 2}
    assert [line["state"] for line in lines if line["event"] == "provider_batch"] == [event.state for event in states]


async def test_observers_hear_of_rows_that_a_batch_did_not_answer(bench: Bench) -> None:
    fates: dict[str, Fate] = {"2": "refused", "3": "broken"}
    bench.provider.fate = lambda told, _state: fates.pop(told[-1], "ok")
    await bench.run(4)
    ends = Counter((event.request_id, event.outcome) for event in bench.events(RequestDone))
    assert ends == {("r1", "ok"): 1, ("r2", "rejected"): 1, ("r3", "ok"): 1, ("r4", "ok"): 1}
    assert [event.request_id for event in bench.events(RetryScheduled)] == ["r3"]
    assert {event.request_id for event in bench.events(AttemptFailed)} == {"r2", "r3"}
    stats = bench.gateway.get_stats()
    assert (stats["submitted"], stats["completed"], stats["failed"]) == (4, 3, 1)
    assert stats["cost_usd"] == pytest.approx(bench.ledger.cost_usd)


async def test_a_batch_holds_no_more_than_the_provider_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LARGEST", 600)
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 2)
    check(bench, await bench.run(9), 9)
    assert len(bench.provider.made) > 2
    assert all(each.size <= 600 for each in bench.batches)
    assert sum(each.requests for each in bench.batches) == 8


async def test_what_is_wrong_with_all_rows_fails_three_times_and_not_in_a_batch(bench: Bench) -> None:
    from fakes.emulator.script import Reply

    bench.emulator.default = Reply(status=400)
    with pytest.raises(ConfigurationError, match="The first 3 rows of model 'm' failed"):
        await bench.run()
    assert not bench.provider.made
    assert len(bench.emulator.ledger) == 3


async def test_a_row_that_was_at_fault_itself_does_not_stop_the_others(bench: Bench) -> None:
    from fakes.emulator.script import Reply

    bench.emulator.script(Reply(status=400))
    outcomes = await bench.run()
    assert [outcome.number for outcome in outcomes if not outcome.ok] == [1]
    assert len(bench.provider.made[0].lines) == ROWS - 2


async def test_a_lane_that_the_model_has_not_is_said_once(bench: Bench) -> None:
    bench.config["models"]["local"] = {"provider": "ollama", "model": "llama3.2"}
    bench.config["providers"]["ollama"] = {"base_url": bench.emulator.url}
    outcomes = await bench.run(requests=[ask(f"r{n}", model="local", text=f"q{n}") for n in range(3)])
    assert all(outcome.ok for outcome in outcomes)
    [sentence] = bench.told
    assert sentence == (
        "Model 'local' is asked in the standard lane: 'batch' is a lane of OpenAI and Anthropic alone, and this is "
        "model 'llama3.2' of kind 'ollama'; use one of 'auto', 'standard'."
    )
    assert not bench.provider.made


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_what_a_batch_answered_before_its_end_is_kept_and_the_rest_sent_again(bench: Bench, end: str) -> None:
    bench.provider.path = lambda made: ("in_progress", end) if made.id == "batch_1" else COMPLETED
    served = {"2", "4"}

    def fate(told: str, state: str) -> Fate:
        cut: Fate = "expired" if state == "expired" else "cancelled"
        return cut if state == end and told.rpartition("-")[2] not in served else "ok"

    bench.provider.fate = fate
    check(bench, await bench.run())
    assert [len(made.lines) for made in reversed(bench.provider.made)] == [5, 3]


async def test_a_cancelled_batch_may_say_nothing_of_what_it_did_not_serve(bench: Bench) -> None:
    bench.provider.path = lambda made: ("in_progress", "cancelled") if made.id == "batch_1" else COMPLETED
    bench.provider.fate = lambda told, state: "silent" if state == "cancelled" and told[-1] != "2" else "ok"
    check(bench, await bench.run())
    assert [len(made.lines) for made in reversed(bench.provider.made)] == [5, 4]


async def test_a_full_queue_of_tokens_makes_smaller_batches(bench: Bench) -> None:
    if bench.kind == "anthropic":
        pytest.skip("it has no such limit")
    bench.provider.path = lambda made: ("validating", "failed") if len(made.lines) > 3 else COMPLETED
    bench.provider.code = lambda made: "token_limit_exceeded" if made.state == "validating" else None
    check(bench, await bench.run(9), 9)
    assert max(len(made.lines) for made in bench.provider.made if made.state == "completed") <= 3
    assert bench.batches[0].state == "failed"


async def test_a_row_that_is_refused_fails_alone_and_one_that_broke_is_sent_again(bench: Bench) -> None:
    seen: Counter[str] = Counter()

    def fate(told: str, _state: str) -> Fate:
        number = told.rpartition("-")[2]
        seen[number] += 1
        if number == "3":
            return "refused"
        return "broken" if number == "4" and seen[number] == 1 else "twice"

    bench.provider.fate = fate
    outcomes = await bench.run()
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert [(outcome.number, outcome.kind) for outcome in failed] == [(3, "rejected")]
    assert bench.paid == Counter({f"q{number}": 1 for number in (1, 2, 4, 5, 6)})
    assert bench.ledger.adds_up
    assert bench.ledger.in_doubt == 0


async def test_an_answer_that_is_none_is_asked_for_again_and_at_last_in_the_standard_lane(bench: Bench) -> None:
    bench.provider.fate = lambda told, _state: "garbage" if told.endswith("-5") else "ok"
    outcomes = await bench.run()
    assert all(outcome.ok for outcome in outcomes)
    assert bench.called == {"q1": 1, "q5": 1}
    assert (
        bench.provider.paid["q5"] == 5
    )  # as often as a request may be attempted; they were refused for what they were
    assert bench.ledger.refused == 5


async def test_a_row_without_a_line_in_a_whole_batch_is_in_doubt_and_asked_again(bench: Bench) -> None:
    seen: Counter[str] = Counter()

    def fate(told: str, _state: str) -> Fate:
        seen[told[-2:]] += 1
        return "missing" if told.endswith("-2") and seen["-2"] == 1 else "ok"

    bench.provider.fate = fate
    outcomes = await bench.run()
    assert all(outcome.ok for outcome in outcomes)
    assert bench.ledger.in_doubt == 1
    assert bench.paid["q2"] == 2  # nobody could know


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("upload", 500),
        ("create", 429),
        ("create", 500),
        ("look", 429),
        ("content", 500),
        ("results", 500),
        ("list", 500),
    ],
)
async def test_a_failure_of_any_call_costs_nothing_but_time(bench: Bench, step: str, status: int) -> None:
    bench.provider.fail = {step: [(status, False)], **({"create": [(500, False)]} if step == "list" else {})}
    check(bench, await bench.run())


async def test_a_batch_that_was_made_though_the_call_failed_is_found(bench: Bench) -> None:
    bench.provider.fail = {"create": [(500, True)]}
    check(bench, await bench.run())
    assert len(bench.provider.made) == 1


async def test_a_batch_that_the_provider_refuses_ends_the_run_and_no_row_is_lost(bench: Bench) -> None:
    bench.provider.fail = {"create": [(400, False)]}
    with pytest.raises(ConfigurationError, match="does not take the batch of model 'm'"):
        await bench.run()
    check(bench, await bench.run())


async def test_a_batch_that_the_provider_has_lost_is_in_doubt(bench: Bench) -> None:
    bench.provider.path = lambda _made: ("in_progress",) * 1000
    with pytest.raises(Crash):
        await bench.run(step=Fuse("noted"))
    bench.provider.made.clear()
    bench.provider.path = lambda _made: COMPLETED
    outcomes = await bench.run()
    assert all(outcome.ok for outcome in outcomes)
    assert bench.ledger.in_doubt == ROWS - 1


# --- deadlines ----------------------------------------------------------------------------------------------------


async def test_what_has_no_answer_near_the_deadline_is_asked_in_the_standard_lane(bench: Bench) -> None:
    bench.provider.path = lambda _made: ("in_progress",) * 1000
    bench.provider.fate = lambda told, _state: "ok" if told.endswith("-2") else "cancelled"
    clock = Skipping()
    check(bench, await bench.run(deadline=1800.0, clock=clock, step=clock.passed))
    assert bench.provider.paid == {"q2": 1}
    assert bench.batches[0].state in {"cancelled", "ended"}


# --- budgets ------------------------------------------------------------------------------------------------------


def within(bench: Bench, dollars: float) -> None:
    """Let a row cost at most 100 millionths in a batch, twice that in a call; it will cost a tenth."""
    bench.config["models"]["m"] |= {"price": {"input": 0.0, "output": 4.0}, "max_tokens": 50}
    bench.config["budgets"] = {"total": dollars}


async def test_rows_wait_for_the_money_that_others_turn_out_not_to_need(bench: Bench) -> None:
    within(bench, 420e-6)
    check(bench, await bench.run())
    assert max(len(made.lines) for made in bench.provider.made) <= 4
    assert len(bench.provider.made) > 1


async def test_a_budget_ends_a_run_once_its_batches_are_collected_and_a_larger_one_goes_on(bench: Bench) -> None:
    within(bench, 200e-6)  # enough for the probe, and then for one row at a time, while 100 are left
    with pytest.raises(BudgetExceededError):
        await bench.run(12)
    ledger = bench.ledger
    assert ledger.cost_usd <= 200e-6
    assert ledger.cost_usd > 100e-6 - 10e-6
    assert (ledger.leased, ledger.in_doubt) == (0, 0)
    within(bench, 1.0)
    check(bench, await bench.run(12), 12)


async def test_what_an_earlier_run_sent_is_held_again(bench: Bench) -> None:
    within(bench, 1.0)
    with pytest.raises(Crash):
        await bench.run(step=Fuse("noted"))
    reserved: list[float] = []

    def look(step: str) -> None:
        if step == "over":
            reserved.append(bench.gateway.get_stats()["budgets"]["the gateway"]["reserved"])

    check(bench, await bench.run(step=look))
    assert reserved[0] == pytest.approx((ROWS - 1) * 100e-6)


async def test_a_row_that_a_budget_cannot_judge_fails_alone(bench: Bench) -> None:
    within(bench, 1.0)
    del bench.config["models"]["m"]["max_tokens"]
    asked = [ask(f"r{n}", model="m", text=f"q{n}", max_tokens=None if n == 2 else 50) for n in (1, 2, 3)]
    outcomes = await bench.run(requests=asked)
    failed = [(outcome.number, outcome.kind) for outcome in outcomes if not outcome.ok]
    assert failed == [(2, "invalid_request")]


# --- crashes ------------------------------------------------------------------------------------------------------

STEPS = ("before_intent", "intended", "made", "noted", "over", "recorded", "before_close", "closed")


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_crash_at_any_step_nothing_is_lost_and_nothing_paid_twice(
    bench: Bench, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 2)
    with pytest.raises(Crash):
        await bench.run(step=Fuse(step))
    check(bench, await bench.run())


@pytest.mark.parametrize("step", ["before_cancel", "cancelled"])
async def test_after_a_crash_while_batches_are_cancelled_nothing_is_paid_twice(bench: Bench, step: str) -> None:
    bench.provider.path = lambda made: ("in_progress",) * 1000 if made.id == "batch_1" else COMPLETED
    bench.provider.fate = lambda _told, state: "ok" if state == "completed" else "cancelled"
    clock = Skipping(Fuse(step))
    with pytest.raises(Crash):
        await bench.run(deadline=1800.0, clock=clock, step=clock.passed)
    bench.provider.made[0].cancel()  # whether or not the call came through, somebody does it now
    check(bench, await bench.run())


async def test_a_batch_made_before_a_crash_is_taken_up_in_whatever_lane_the_job_goes_on(bench: Bench) -> None:
    with pytest.raises(Crash):
        await bench.run(step=Fuse("made"))
    check(bench, await bench.run(lane="standard"))
    assert bench.called == {"q1": 1}


async def test_a_crash_while_an_orphan_is_adopted_leaves_it_to_the_next_run(bench: Bench) -> None:
    for step in ("made", "adopted"):
        with pytest.raises(Crash):
            await bench.run(step=Fuse(step))
    check(bench, await bench.run())


# --- orphans among others' batches --------------------------------------------------------------------------------


def foreign(bench: Bench, count: int, *, hours: float = 0.0) -> Made:
    """Let somebody else make a batch in the same account, `hours` from now; it never ends by itself."""
    params = {"model": "x", "messages": [{"role": "user", "content": "of another"}]}
    lines = [{"custom_id": f"other-{number}", "params": params} for number in range(count)]
    path, bench.provider.path = bench.provider.path, lambda _made: ("in_progress",) * 1000
    made = bench.provider.make(bench.kind, lines, {})
    bench.provider.path = path
    made.created += timedelta(hours=hours)
    return made


@pytest.mark.parametrize("made", [True, False], ids=["made", "not_made"])
async def test_open_batches_of_others_that_cannot_be_the_orphan_are_not_waited_for(
    bench: Bench,
    made: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with pytest.raises(Crash):
        await bench.run(step=Fuse("made" if made else "intended"))
    others = [foreign(bench, ROWS), foreign(bench, ROWS - 1, hours=3.0), foreign(bench, ROWS - 1, hours=-3.0)]
    bench.provider.made.sort(key=lambda each: each.created, reverse=True)
    check(bench, await bench.run())
    assert not any(each.is_over for each in others)
    assert bench.provider.steps.count("list") <= 5


async def test_a_batch_of_another_job_in_the_folder_is_not_waited_for(bench: Bench) -> None:
    with pytest.raises(Crash):
        await bench.run(step=Fuse("intended"))
    other = foreign(bench, ROWS - 1)
    beside = SqliteJobStore.open(Path("beside.job"))
    intent = await beside.batches.intend("x", [], model="m", deployment="d", size=1)
    await beside.batches.note(intent, batch_id=other.id)
    await beside.close()
    Path("broken.job").write_bytes(b"no state")
    check(bench, await bench.run())
    assert not other.is_over


async def test_what_may_be_the_orphan_is_waited_for_until_its_results_tell_whose_it_is(bench: Bench) -> None:
    with pytest.raises(Crash):
        await bench.run(step=Fuse("intended"))
    other = foreign(bench, ROWS - 1)
    if bench.kind == "openai":  # its batches tell whose they are
        check(bench, await bench.run())
        return
    other.states = ["in_progress"] * 20 + ["expired"]
    bench.provider.fate = lambda told, _state: "expired" if told.startswith("other") else "ok"
    check(bench, await bench.run())
    assert bench.provider.steps.count("list") >= 20


async def test_at_the_deadline_the_rows_of_what_may_be_an_orphan_are_asked_and_counted_in_doubt(bench: Bench) -> None:
    with pytest.raises(Crash):
        await bench.run(step=Fuse("intended"))
    other = foreign(bench, ROWS - 1)
    outcomes = await bench.run(deadline=1e-9)
    assert sorted(each.number for each in outcomes) == list(range(1, ROWS + 1))
    assert all(each.ok for each in outcomes)
    assert (bench.ledger.adds_up, not other.is_over) == (True, True)
    if bench.kind == "anthropic":
        assert bench.ledger.in_doubt == ROWS - 1
        assert bench.batches[0].state == "unknown"


async def test_a_job_that_is_stopped_leaves_its_batch_to_the_provider_and_a_later_run_collects_it(bench: Bench) -> None:
    bench.provider.path = lambda _made: ("in_progress", *COMPLETED)
    jobs: list[Job] = []

    def stop(step: str) -> None:
        if step == "noted":
            jobs[0].stop()

    watch = CallWatch()
    async with (
        LLMGateway(bench.config, observers=[watch, bench.heard]) as gateway,
        Job(gateway, STATE, watch=watch, hooks=Hooks(step=stop), lane="batch", poll=0.001) as job,
    ):
        jobs.append(job)
        outcomes = [outcome async for outcome in job.run(some(ROWS))]
        ledger = await job.ledger()
    assert len(outcomes) == 1
    assert (ledger.leased, ledger.pending) == (ROWS - 1, 0)
    check(bench, await bench.run())
    assert len(bench.provider.made) == 1


# --- on the wire --------------------------------------------------------------------------------------------------


async def test_a_batch_asks_what_a_call_would_ask(bench: Bench) -> None:
    """The first row is asked in a call, the second, which asks the same, in a batch."""
    same: dict[str, Any] = {
        "model": "m",
        "text": "hello",
        "temperature": 0.5,
        "max_tokens": 77,
        "stop": ["END"],
        "tools": [tool("look", {"where": {"type": "string"}})],
        "tool_choice": "any",
    }
    await bench.run(requests=[ask("r1", **same), ask("r2", **same)])
    [call], [made] = bench.emulator.ledger, bench.provider.made
    line = made.lines[0]
    assert line.get("body", line.get("params")) == {key: value for key, value in call.body.items() if key != "stream"}
    assert line["custom_id"].endswith("-2")
    assert len(line["custom_id"]) <= 64


async def test_a_schema_holds_for_the_answers_of_a_batch_too(bench: Bench) -> None:
    from fakes.emulator.script import Reply

    bench.emulator.default = Reply(text='{"label": "a"}')
    outcomes = await bench.run(3, schema={"type": "object", "required": ["label"]})
    assert sorted((outcome.number, outcome.kind) for outcome in outcomes) == [
        (1, None),
        (2, "invalid_answer"),
        (3, "invalid_answer"),
    ]
    assert bench.ledger.answered == 1 + 2 * 5  # each was paid, as often as a row may be answered in vain
    assert bench.ledger.adds_up


async def test_no_key_stands_in_a_jobs_state_or_in_an_error(bench: Bench) -> None:
    bench.provider.fail = {"create": [(401, False)]}
    with pytest.raises(ConfigurationError) as caught:
        await bench.run()
    assert "sk-canary" not in str(caught.value)
    assert b"sk-canary" not in STATE.read_bytes()


async def test_a_job_without_a_file_has_no_batch_lane(bench: Bench) -> None:
    async with LLMGateway(bench.config) as gateway, gateway.job(None, lane="batch") as job:
        with pytest.raises(ConfigurationError, match="The batch lane needs a job whose state is a file"):
            [outcome async for outcome in job.run(some(2))]


async def test_auto_takes_the_batch_lane_where_it_can_and_the_standard_one_where_not(bench: Bench) -> None:
    check(bench, await bench.run(lane="auto"))
    assert len(bench.provider.made) == 1
    async with LLMGateway(bench.config) as gateway, gateway.job(None, lane="auto") as job:
        assert len([outcome async for outcome in job.run(some(2))]) == 2
    assert len(bench.provider.made) == 1


@pytest.mark.parametrize("lane", ["auto", "batch"])
async def test_a_row_that_names_a_lane_itself_goes_in_no_batch_that_the_state_does_not_keep(
    bench: Bench, lane: str
) -> None:
    asked = [ask(f"r{n}", RequestPriority.LOW, model="m", text=f"q{n}", lane=lane) for n in (1, 2)]
    outcomes = await bench.run(requests=asked, lane="standard")
    assert bench.called == {"q1": 1, "q2": 1}
    assert all(outcome.ok for outcome in outcomes)
    assert not bench.provider.made


async def test_a_row_that_the_model_is_known_to_refuse_fails_without_being_sent(bench: Bench) -> None:
    if bench.kind == "openai":
        pytest.skip("content blocks go there as they are")
    turns = [LLMMessage(role="user", content=[{"type": "image", "url": 5}])]  # a picture without a form on the wire
    odd = LLMRequest(model="m", messages=turns, request_id="odd")
    outcomes = await bench.run(requests=[*some(2), odd])
    assert [(outcome.number, outcome.kind) for outcome in outcomes if not outcome.ok] == [(3, "invalid_request")]
    assert [len(made.lines) for made in bench.provider.made] == [1]
    assert bench.ledger.adds_up
    assert bench.ledger.in_doubt == 0


@pytest.mark.parametrize("status", [400, 500])
async def test_a_batch_that_cannot_be_cancelled_is_waited_for(bench: Bench, status: int) -> None:
    bench.provider.path = lambda _made: ("in_progress", "in_progress", "in_progress", "completed")
    bench.provider.fail = {"cancel": [(status, False)] * 5}
    clock = Skipping()
    check(bench, await bench.run(deadline=1800.0, clock=clock, step=clock.passed))
    assert bench.called == {"q1": 1}
