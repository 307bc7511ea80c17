"""Provider batches behind a plain await: who goes in which batch, what comes back, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.batch_provider import SILENT, BatchProvider, FakeBatch, Result, not_made, unknown_batch
from fakes.provider import FakeProvider, Recorder, ask, gateway_over, refused_key, unavailable
from llm_gateway import GatewayClosedError, InvalidRequestError, LLMGateway, QueueFullError, RequestPriority
from llm_gateway.clients.batches import Found
from llm_gateway.errors import AuthenticationError, BudgetExceededError, ProviderError, RequestRejectedError
from llm_gateway.events import ProviderBatchChanged, RequestDone, RetryScheduled
from llm_gateway.models import LLMRequest, LLMResponse

LOW = RequestPriority.LOW
MODEL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-mini", "price": {"input": 1.0, "output": 2.0}}
BATCH_COST, STANDARD_COST = 10e-6, 20e-6  # 10 · $1 + 5 · $2 a million, and half of that
HOUR = 3600.0


def over(provider: FakeProvider, *, observers: tuple[Recorder, ...] = (), **config: Any) -> LLMGateway:
    model = MODEL | config.pop("model", {})
    others = config.pop("models", {})
    return gateway_over(provider, observers=observers, models={"m": model, **others}, **config)


def row(name: str, lane: str | None = "batch", **fields: Any) -> LLMRequest:
    return ask(name, model="m", text=name, lane=lane, **fields)


def rows(count: int, **fields: Any) -> list[LLMRequest]:
    return [row(f"q{number}", **fields) for number in range(1, count + 1)]


def told(response: LLMResponse) -> tuple[Any, ...]:
    receipt = response.receipt
    assert receipt is not None
    return receipt.price_lane, receipt.cost_usd, receipt.attempts


def of_batches(provider: BatchProvider) -> list[list[str]]:
    return [batch.texts for batch in provider.batches.made]


def called(provider: FakeProvider) -> list[str]:
    return [entry.request.request_id for entry in provider.ledger]


def now() -> float:
    return asyncio.get_running_loop().time()


def only(*texts: str, else_: Result = None) -> Callable[[str, FakeBatch], Result]:
    """Answer these texts, and the others only from the second batch on."""

    def result(text: str, batch: FakeBatch) -> Result:
        return f"batched: {text}" if text in texts or batch.id != "b1" else else_

    return result


# --- the plain way ------------------------------------------------------------------------------------------------


async def test_requests_of_many_callers_share_a_batch_and_each_gets_its_answer_at_half_the_price() -> None:
    provider, recorder = BatchProvider(), Recorder()
    async with over(provider, observers=(recorder,)) as gateway:
        single = asyncio.create_task(gateway.request(row("alone")))
        together = await gateway.batch(rows(3))
        answers = [await single, *together]
    assert [(a.content, a.request_id, *told(a)) for a in answers] == [
        (f"batched: {name}", name, "batch", pytest.approx(BATCH_COST), 1) for name in ("alone", "q1", "q2", "q3")
    ]
    assert of_batches(provider) == [["alone", "q1", "q2", "q3"]]
    assert provider.batches.made[0].made == 61.0  # a minute of gathering, a second for the call
    assert provider.ledger == []
    receipt = answers[0].receipt
    assert receipt is not None
    assert receipt.queue_wait == 60.0
    assert receipt.provider_time >= 600.0
    states = [event.state for event in recorder.events if isinstance(event, ProviderBatchChanged)]
    assert states == ["made", "in_progress", "completed"]
    done = [event for event in recorder.events if isinstance(event, RequestDone)]
    assert [event.cost_usd for event in done] == [pytest.approx(BATCH_COST)] * 4
    assert {event.batch_id for event in done} == {provider.batches.made[0].intent}


async def test_a_batch_is_looked_at_less_and_less_often() -> None:
    provider = BatchProvider()
    async with over(provider, provider_batches={"max_wait": 0, "poll": 10, "max_poll": 30}) as gateway:
        await gateway.request(row("q1"))
    times = [look - 1.0 for look in provider.batches.looks]
    pauses = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert pauses[:5] == [10.0, 15.0, 22.5, 30.0, 30.0]


async def test_a_model_may_be_configured_for_batches_and_a_request_may_say_otherwise() -> None:
    provider = BatchProvider()
    async with over(provider, model={"lane": "batch"}) as gateway:
        batched, direct = await gateway.batch([row("a", None), row("b", "standard")])
        streamed = [piece async for piece in gateway.stream(row("c", None))]
    assert told(batched)[0] == "batch"
    assert told(direct) == ("standard", pytest.approx(STANDARD_COST), 1)
    assert isinstance(streamed[-1], LLMResponse)
    assert called(provider) == ["b", "c"]


@pytest.mark.parametrize(
    ("priority", "deadline", "lane"),
    [
        (LOW, None, "batch"),
        (LOW, 24 * HOUR, "batch"),
        (LOW, 23 * HOUR, "standard"),
        (RequestPriority.NORMAL, None, "standard"),
    ],
)
async def test_auto_goes_in_a_batch_where_the_request_is_low_and_has_a_day(
    priority: RequestPriority, deadline: float | None, lane: str
) -> None:
    async with over(BatchProvider()) as gateway:
        response = await gateway.request(row("a", "auto", priority=priority, deadline=deadline))
    assert told(response)[0] == lane


async def test_a_batch_leaves_when_it_is_full_by_number_by_bytes_and_by_tokens() -> None:
    provider = BatchProvider()
    async with over(provider, provider_batches={"max_requests": 2}) as gateway:
        await gateway.batch(rows(5))
    assert of_batches(provider) == [["q1", "q2"], ["q3", "q4"], ["q5"]]
    assert [batch.made for batch in provider.batches.made] == [1.0, 1.0, 61.0]
    small = BatchProvider()
    small.batches.limits = replace(small.batches.limits, size=70)
    async with over(small) as gateway:
        await gateway.batch(rows(4))
    assert of_batches(small) == [["q1", "q2"], ["q3", "q4"]]
    crowded = BatchProvider()
    async with over(crowded, provider_batches={"enqueued_tokens": 70 // 4}) as gateway:
        await gateway.batch(rows(4))
    first, second = crowded.batches.made
    assert second.made >= first.made + 600.0  # it waits for the end of the other


async def test_limits_of_calls_are_not_charged_for_batches() -> None:
    provider = BatchProvider()
    async with over(provider, model={"limits": {"rpm": 1, "tpm": 1000}}) as gateway:
        answers = await gateway.batch([row(f"q{n}", max_tokens=5000) for n in range(4)])
    assert {told(answer)[0] for answer in answers} == {"batch"}


async def test_what_waits_in_batches_stands_in_the_statistics() -> None:
    provider = BatchProvider()
    async with over(provider) as gateway:
        asking = asyncio.create_task(gateway.batch(rows(2)))
        await asyncio.sleep(10.0)
        assert gateway.eta(row("next")) == 50.0
        assert gateway.get_stats()["provider_batches"] == {"m": {"gathering": 2, "waiting": 0, "batches": []}}
        await asyncio.sleep(100.0)
        stats = gateway.get_stats()["provider_batches"]["m"]
        [batch] = stats["batches"]
        assert (stats["gathering"], stats["waiting"]) == (0, 2)
        assert batch == {
            "batch_id": provider.batches.made[0].intent,
            "provider_batch_id": "b1",
            "state": "in_progress",
            "size": 2,
            "waiting": 2,
            "served": 1,
        }
        assert json.dumps(stats)
        await asking
        assert gateway.get_stats()["provider_batches"]["m"] == {"gathering": 0, "waiting": 0, "batches": []}
        assert gateway.get_stats()["cost_usd"] == pytest.approx(2 * BATCH_COST)


async def test_the_journal_tells_of_every_batch(tmp_path: Path) -> None:
    async with over(BatchProvider(), logs={"dir": tmp_path}) as gateway:
        await gateway.batch(rows(2))
        path = gateway.log_path
    lines = [json.loads(line) for line in (path or tmp_path / next(tmp_path.iterdir())).read_text().splitlines()]
    told_of = [line for line in lines if line["event"] == "provider_batch"]
    assert [(line["state"], line["size"], line["waiting"]) for line in told_of] == [
        ("made", 2, 2),
        ("in_progress", 2, 2),
        ("completed", 2, 0),
    ]
    assert {line["provider_batch_id"] for line in told_of} == {"b1"}


# --- who is refused -----------------------------------------------------------------------------------------------


async def test_a_provider_without_batches_is_told_in_one_sentence() -> None:
    local = {"local": {"provider": "ollama", "model": "llama3.2"}}
    async with over(FakeProvider(), models=local) as gateway:
        with pytest.raises(InvalidRequestError, match=r"LLMRequest\.lane: 'batch' is a lane of OpenAI and Anthropic"):
            await gateway.request(ask("a", model="local", lane="batch"))
        with pytest.raises(InvalidRequestError, match=r"the client of model 'm' has no batches"):
            await gateway.request(row("a"))
        assert told(await gateway.request(row("a", "auto", priority=LOW)))[0] == "standard"


async def test_a_stream_cannot_be_asked_for_in_a_batch() -> None:
    async with over(BatchProvider()) as gateway:
        with pytest.raises(InvalidRequestError, match="nothing can be streamed"):
            [piece async for piece in gateway.stream(row("a"))]


async def test_a_request_that_no_batch_takes_is_refused_alone() -> None:
    provider = BatchProvider()
    provider.batches.unfit = ("q2",)
    async with over(provider, budgets={"total": 1.0}) as gateway:
        outcomes = await gateway.batch(rows(3, max_tokens=10), return_exceptions=True)
        assert isinstance(outcomes[1], InvalidRequestError)
        assert "an API that the provider's batches do not have" in str(outcomes[1])
        assert gateway.get_stats()["budgets"]["the gateway"]["spent"] == pytest.approx(2 * BATCH_COST)
    assert of_batches(provider) == [["q1", "q3"]]


async def test_no_more_wait_than_may_and_a_batch_waits_for_room() -> None:
    provider = BatchProvider()
    async with over(provider, provider_batches={"max_waiting": 2}) as gateway:
        asking = asyncio.create_task(gateway.batch(rows(5)))
        await asyncio.sleep(1.0)
        with pytest.raises(QueueFullError):
            await gateway.request(row("late"))
        assert len(await asking) == 5
    assert of_batches(provider) == [["q1", "q2"], ["q3", "q4"], ["q5"]]


# --- batches that end badly ---------------------------------------------------------------------------------------


async def test_what_an_expired_batch_answered_is_kept_and_the_rest_goes_again_then_in_the_standard_lane() -> None:
    provider, recorder = BatchProvider(), Recorder()
    provider.batches.end = "expired"
    provider.batches.result = lambda text, batch: f"batched: {text}" if f"b{text[1]}" == batch.id else None
    async with over(provider, observers=(recorder,)) as gateway:
        answers = await gateway.batch(rows(3))
    assert of_batches(provider) == [["q1", "q2", "q3"], ["q2", "q3"]]
    assert [told(answer) for answer in answers] == [
        ("batch", pytest.approx(BATCH_COST), 1),
        ("batch", pytest.approx(BATCH_COST), 2),
        ("standard", pytest.approx(STANDARD_COST), 3),
    ]
    assert called(provider) == ["q3"]
    kinds = [event.kind for event in recorder.events if isinstance(event, RetryScheduled)]
    assert kinds == ["unserved"] * 3


async def test_a_row_that_is_rejected_fails_alone_and_one_that_broke_is_sent_again() -> None:
    provider = BatchProvider()
    rejected = RequestRejectedError("no", provider="openai", model="m", status=400)
    seen: list[str] = []

    def result(text: str, batch: FakeBatch) -> Result:
        seen.append(text)
        if text == "q2":
            return rejected
        return unavailable() if text == "q3" and batch.id == "b1" else f"batched: {text}"

    provider.batches.result = result
    async with over(provider) as gateway:
        outcomes = await gateway.batch(rows(3), return_exceptions=True)
    assert outcomes[1] is rejected
    assert isinstance(outcomes[2], LLMResponse)
    assert told(outcomes[2])[2] == 2
    assert of_batches(provider) == [["q1", "q2", "q3"], ["q3"]]


async def test_a_rejected_row_may_fall_back_to_another_model() -> None:
    provider = BatchProvider()
    provider.batches.result = lambda _text, _batch: refused_key()
    other = {"other": {"provider": "openai", "model": "gpt-4o"}}
    async with over(provider, model={"fallbacks": ["other"]}, models=other) as gateway:
        response = await gateway.request(row("a"))
        assert gateway.get_stats()["provider_batches"]["m"]["batches"] == []
    assert (response.model, told(response)[0]) == ("other", "standard")


@pytest.mark.parametrize("error", [unavailable(), unavailable(retry_after=30.0)])
async def test_a_batch_that_was_not_made_is_made_again(error: ProviderError) -> None:
    provider = BatchProvider()
    provider.batches.fail = {"create": [not_made(error), not_made(error)]}
    async with over(provider) as gateway:
        assert told(await gateway.request(row("a"))) == ("batch", pytest.approx(BATCH_COST), 1)


async def test_where_no_batch_can_be_made_requests_go_in_the_standard_lane_or_fail_as_the_error_is() -> None:
    provider = BatchProvider()
    provider.batches.fail = {"create": [not_made(unavailable()) for _ in range(10)]}
    async with over(provider) as gateway:
        assert told(await gateway.request(row("a")))[0] == "standard"
    provider = BatchProvider()
    provider.batches.fail = {"create": [not_made(refused_key())]}
    async with over(provider) as gateway:
        outcomes = await gateway.batch(rows(2), return_exceptions=True)
    assert [type(each) for each in outcomes] == [AuthenticationError] * 2
    assert outcomes[0] is not outcomes[1]
    assert provider.ledger == []


@pytest.mark.parametrize("was_made", [True, False])
async def test_a_batch_that_may_have_been_made_is_looked_for(*, was_made: bool) -> None:
    provider = BatchProvider()
    doubt = not_made(unavailable(), doubtful=True)
    provider.batches.fail = {"created" if was_made else "create": [doubt], "find": [unavailable()]}
    provider.batches.found = [Found(may_come=True), Found(batch_id="b1")] if was_made else []
    async with over(provider) as gateway:
        response = await gateway.request(row("a"))
    assert response.content == "batched: a"
    assert len(provider.batches.made) == 1
    assert told(response)[2] == (1 if was_made else 2)


async def test_a_batch_refused_as_a_whole_tells_every_caller_why() -> None:
    provider = BatchProvider()
    provider.batches.code = lambda _batch: "invalid_json_line"
    async with over(provider) as gateway:
        outcomes = await gateway.batch(rows(2), return_exceptions=True)
    assert [type(each) for each in outcomes] == [RequestRejectedError] * 2
    assert "openai/gpt-4o-mini refused the batch that this request was in: no good;" in str(outcomes[0])


async def test_a_full_queue_of_tokens_makes_smaller_batches() -> None:
    provider = BatchProvider()
    provider.batches.code = lambda batch: "token_limit_exceeded" if len(batch.texts) > 2 else None
    async with over(provider) as gateway:
        answers = await gateway.batch(rows(6))
    assert {told(answer)[0] for answer in answers} == {"batch"}
    assert len(of_batches(provider)[0]) == 6
    assert max(map(len, of_batches(provider)[-3:])) <= 2


async def test_a_batch_that_the_provider_lost_may_have_cost_its_worst_case_and_is_asked_again() -> None:
    provider = BatchProvider()
    provider.batches.fail = {"look": [unavailable(), unknown_batch()]}
    async with over(provider, budgets={"total": 1.0}) as gateway:
        response = await gateway.request(row("a", max_tokens=10))
        spent = gateway.get_stats()["budgets"]["the gateway"]["spent"]
    assert told(response) == ("batch", pytest.approx(BATCH_COST), 2)
    assert spent > 2 * BATCH_COST


async def test_a_row_without_a_line_in_a_whole_batch_is_asked_again() -> None:
    provider = BatchProvider()
    provider.batches.result = only("q1", else_=SILENT)
    async with over(provider) as gateway:
        answers = await gateway.batch(rows(2))
    assert [told(answer)[2] for answer in answers] == [1, 2]


async def test_a_key_that_is_refused_meanwhile_ends_the_wait() -> None:
    provider = BatchProvider()
    provider.batches.fail = {"look": [refused_key()]}
    async with over(provider) as gateway:
        with pytest.raises(AuthenticationError):
            await gateway.request(row("a"))


async def test_results_that_break_off_are_read_again() -> None:
    provider = BatchProvider()
    provider.batches.fail = {"results": [unavailable()]}
    async with over(provider) as gateway:
        assert len(await gateway.batch(rows(3))) == 3
    assert len(provider.batches.made) == 1


async def test_an_answer_that_does_not_fit_its_format_is_asked_for_again() -> None:
    provider = BatchProvider(answer=lambda _: '{"label": "a"}')
    provider.batches.result = lambda _text, _batch: "no JSON"
    schema = {"type": "object", "required": ["label"]}
    async with over(provider) as gateway:
        response = await gateway.request(row("a", response_format=schema))
    assert response.parsed == {"label": "a"}
    assert told(response) == ("standard", pytest.approx(2 * BATCH_COST + STANDARD_COST), 3)


async def test_a_bug_reaches_the_callers_and_the_loop() -> None:
    provider = BatchProvider()
    provider.batches.fail = {"look": [ZeroDivisionError()]}
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["exception"]))
    async with over(provider) as gateway:
        with pytest.raises(ZeroDivisionError):
            await gateway.request(row("a"))
    assert [type(bug) for bug in heard] == [ZeroDivisionError]


# --- deadlines and callers who leave ------------------------------------------------------------------------------


async def test_what_is_unfinished_near_its_deadline_is_taken_from_its_batch_and_asked_in_the_standard_lane() -> None:
    provider = BatchProvider()
    provider.batches.takes = 30 * HOUR
    provider.batches.result = lambda text, batch: f"batched: {text}" if text == "q1" or not batch.cancelled else None
    async with over(provider) as gateway:
        patient = asyncio.create_task(gateway.request(row("patient")))
        answers = await gateway.batch(rows(2, deadline=4 * HOUR))
        assert 3 * HOUR < now() < 3.1 * HOUR
        await patient
    assert [told(answer)[0] for answer in answers] == ["batch", "standard"]
    assert called(provider) == ["q2"]
    assert of_batches(provider) == [["patient"], ["q1", "q2"]] or of_batches(provider) == [["q1", "q2"], ["patient"]]
    assert [batch.cancelled is not None for batch in provider.batches.made].count(True) == 1


async def test_others_of_a_batch_that_was_ended_for_a_deadline_go_in_the_next_one() -> None:
    provider = BatchProvider()
    provider.batches.takes = 5 * HOUR
    provider.batches.result = lambda text, batch: None if batch.cancelled else f"batched: {text}"
    async with over(provider) as gateway:
        asked = [row("short", deadline=4 * HOUR), row("long", deadline=20 * HOUR)]
        answers = await gateway.batch(asked)
    assert [told(answer) for answer in answers] == [
        ("standard", pytest.approx(STANDARD_COST), 2),
        ("batch", pytest.approx(BATCH_COST), 2),
    ]


async def test_a_batch_that_does_not_end_in_time_is_waited_for_no_longer() -> None:
    provider = BatchProvider()
    provider.batches.takes = provider.batches.ends_in = 30 * HOUR
    async with over(provider, drain_timeout=0) as gateway:
        response = await gateway.request(row("a", deadline=4 * HOUR))
        assert now() == pytest.approx(3.5 * HOUR, abs=60)
    assert told(response)[:2] == ("standard", pytest.approx(STANDARD_COST))


async def test_a_deadline_that_is_too_near_for_any_batch_is_kept_in_the_standard_lane_at_once() -> None:
    provider = BatchProvider()
    async with over(provider) as gateway:
        response = await gateway.request(row("a", deadline=60.0))
        assert now() == 1.0
    assert told(response)[0] == "standard"


async def test_what_still_waits_for_money_near_its_deadline_leaves_too() -> None:
    provider = BatchProvider()
    provider.batches.takes = 10 * HOUR
    worst = {"input": 0.0, "output": 1.0}
    async with over(provider, model={"price": worst}, budgets={"total": 150e-6}) as gateway:
        first = asyncio.create_task(gateway.request(row("first", max_tokens=200)))
        await asyncio.sleep(0)
        second = asyncio.create_task(gateway.request(row("second", max_tokens=140, deadline=HOUR)))
        await asyncio.sleep(0)
        assert gateway.get_stats()["provider_batches"]["m"]["gathering"] == 2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.8 * HOUR)
        assert gateway.get_stats()["queued"]["total"] == 1  # there, too, it waits for money
        first.cancel()
        assert told(await second)[0] == "standard"


async def test_a_caller_who_leaves_takes_its_row_along_and_the_last_one_ends_the_batch() -> None:
    provider = BatchProvider()
    async with over(provider, budgets={"total": 1.0}) as gateway:
        asking = [asyncio.create_task(gateway.request(row(f"q{n}", max_tokens=10))) for n in range(3)]
        await asyncio.sleep(1.0)
        asking[0].cancel()
        await asyncio.sleep(100.0)
        assert of_batches(provider) == [["q1", "q2"]]
        asking[1].cancel()
        await asyncio.sleep(1.0)
        assert provider.batches.made[0].cancelled is None
        asking[2].cancel()
        await asyncio.sleep(1.0)
        assert provider.batches.made[0].cancelled is not None
        await asyncio.sleep(600.0)
        budget = gateway.get_stats()["budgets"]["the gateway"]
        assert budget["spent"] == pytest.approx(2 * BATCH_COST)  # it had answered them
        assert budget["reserved"] == pytest.approx(0.0)
        assert gateway.get_stats()["provider_batches"]["m"]["batches"] == []


async def test_a_batch_that_everybody_left_before_it_went_is_never_made() -> None:
    provider = BatchProvider()
    async with over(provider) as gateway:
        asking = asyncio.create_task(gateway.batch(rows(3)))
        await asyncio.sleep(1.0)
        asking.cancel()
        await asyncio.sleep(1000.0)
        assert gateway.get_stats()["provider_batches"]["m"] == {"gathering": 0, "waiting": 0, "batches": []}
    assert provider.batches.made == []


async def test_identical_requests_share_a_row_but_never_with_one_that_is_in_a_hurry() -> None:
    provider = BatchProvider()
    async with over(provider, coalesce=True) as gateway:
        same = [ask(name, model="m", text="same", lane="batch") for name in ("a", "b")]
        hurried = ask("c", model="m", text="same", lane="standard")
        answers = await asyncio.gather(*(gateway.request(each) for each in [*same, hurried]))
    assert of_batches(provider) == [["same"]]
    assert [told(answer)[0] for answer in answers] == ["batch", "batch", "standard"]
    assert called(provider) == ["c"]


async def test_a_nested_request_in_a_batch_keeps_its_callers_slot_free() -> None:
    provider = BatchProvider()
    provider.batches.end = "expired"
    provider.batches.result = lambda _text, _batch: None
    gateway = over(provider, model={"max_concurrency": 1})

    async def work(request: LLMRequest) -> str | None:
        return (await gateway.request(row("inner"))).content if request.request_id == "outer" else None

    provider.work = work
    async with gateway:
        assert (await gateway.request(row("outer", "standard"))).content == "ok"
    assert called(provider) == ["outer", "inner"]


# --- budgets ------------------------------------------------------------------------------------------------------


async def test_a_row_holds_its_worst_case_at_the_batch_price_and_settles_at_what_it_cost() -> None:
    provider = BatchProvider()
    async with over(provider, model={"price": {"input": 0.0, "output": 2.0}}, budgets={"total": 1.0}) as gateway:
        asking = asyncio.create_task(gateway.request(row("a", max_tokens=100)))
        await asyncio.sleep(1.0)
        assert gateway.get_stats()["budgets"]["the gateway"]["reserved"] == pytest.approx(100e-6)
        await asking
        budget = gateway.get_stats()["budgets"]["the gateway"]
        assert (budget["spent"], budget["reserved"]) == (pytest.approx(5e-6), pytest.approx(0.0))


async def test_rows_wait_for_money_and_those_that_never_fit_are_refused() -> None:
    provider = BatchProvider()
    price = {"input": 0.0, "output": 2.0}
    async with over(provider, model={"price": price}, budgets={"total": 150e-6}) as gateway:
        with pytest.raises(BudgetExceededError):
            await gateway.request(row("much", max_tokens=151))
        answers = await gateway.batch(rows(3, max_tokens=100))
        spent = gateway.get_stats()["budgets"]["the gateway"]["spent"]
    assert of_batches(provider) == [["q1"], ["q2"], ["q3"]]
    assert {told(answer)[0] for answer in answers} == {"batch"}
    assert spent == pytest.approx(15e-6)


async def test_what_waits_for_money_is_refused_when_there_is_too_little_left() -> None:
    provider = BatchProvider()
    price = {"input": 0.0, "output": 2.0}
    async with over(provider, model={"price": price}, budgets={"total": 104e-6}) as gateway:
        outcomes = await gateway.batch(rows(3, max_tokens=100), return_exceptions=True)
    assert [type(each) for each in outcomes] == [LLMResponse, BudgetExceededError, BudgetExceededError]


# --- the end ------------------------------------------------------------------------------------------------------


async def test_shutdown_waits_for_batches_that_end_in_time() -> None:
    provider = BatchProvider()
    gateway = over(provider, drain_timeout=HOUR)
    asking = asyncio.create_task(gateway.request(row("a")))
    await asyncio.sleep(1.0)
    await gateway.shutdown()
    assert told(await asking)[0] == "batch"
    assert provider.batches.made[0].made == 2.0  # nobody waits for company any more


@pytest.mark.parametrize("after", [1.0, 60.5, 100.0])
async def test_after_the_drain_callers_are_told_and_the_providers_batch_is_cancelled(after: float) -> None:
    provider = BatchProvider()
    gateway = over(provider, budgets={"total": 1.0})
    asking = asyncio.create_task(gateway.batch(rows(2, max_tokens=10), return_exceptions=True))
    await asyncio.sleep(after)
    await gateway.shutdown(0.0)
    outcomes = await asking
    assert [type(each) for each in outcomes] == [GatewayClosedError] * 2
    assert "A bulk job, gateway.job(path), keeps its batches" in str(outcomes[0])
    assert [batch.cancelled is not None for batch in provider.batches.made] == [True]
    assert gateway.get_stats()["budgets"]["the gateway"]["reserved"] == pytest.approx(0.0)


@pytest.mark.parametrize("step", ["create", "cancel"])
async def test_a_provider_that_does_not_answer_holds_up_no_shutdown(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = BatchProvider()

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(type(provider.batches), step, hang)
    gateway = over(provider, provider_batches={"max_wait": 0})
    asking = asyncio.create_task(gateway.request(row("a")))
    await asyncio.sleep(5.0)
    await gateway.shutdown(0.0)
    with pytest.raises(GatewayClosedError):
        await asking
    assert now() <= 16.0


async def test_a_batch_that_everybody_left_is_not_waited_for_by_shutdown() -> None:
    provider = BatchProvider()
    gateway = over(provider)
    asking = asyncio.create_task(gateway.request(row("a")))
    await asyncio.sleep(100.0)
    asking.cancel()
    await asyncio.sleep(1.0)
    await gateway.shutdown(HOUR)
    assert now() < 110.0
    assert provider.batches.made[0].cancelled is not None


async def test_nobody_waits_for_room_in_a_gateway_that_closes() -> None:
    provider = BatchProvider()
    gateway = over(provider, provider_batches={"max_waiting": 1})
    asking = asyncio.create_task(gateway.batch(rows(2), return_exceptions=True))
    await asyncio.sleep(1.0)
    await gateway.shutdown(0.0)
    assert [type(each) for each in await asking] == [GatewayClosedError] * 2
