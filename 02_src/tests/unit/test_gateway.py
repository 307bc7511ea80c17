"""What callers of the gateway see: answers, errors, order, cancellation, shutdown."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Mapping

import pytest

from fakes.provider import (
    QUIET,
    FakeProvider,
    Recorder,
    ask,
    careful_gateway_over,
    gateway_over,
    rate_limited,
    unavailable,
)
from llm_gateway import (
    BatchError,
    DeadlineExceededError,
    GatewayClosedError,
    GatewayError,
    InvalidRequestError,
    LLMGateway,
    LLMResponse,
    ProviderUnavailableError,
    QueueFullError,
    RateLimitError,
    RequestPriority,
    RequestRejectedError,
    RequestTooLargeError,
    UnknownModelError,
)
from llm_gateway.config import load_config
from llm_gateway.events import BatchClosed, Event, RequestDone, ShutdownEnded
from llm_gateway.queue import RequestQueue
from llm_gateway.router import Deployments

HIGH, NORMAL, LOW = RequestPriority


def closings(seen: Recorder) -> list[tuple[int, str]]:
    """Size of each batch, and why it left."""
    return [(event.size, event.why) for event in seen.events if isinstance(event, BatchClosed)]


ONE_SLOT: Mapping[str, object] = {"gpt-4o-mini": {"max_concurrency": 1}}


async def test_a_request_is_answered_with_a_receipt() -> None:
    async with gateway_over(FakeProvider(latency=lambda _: 2.0)) as gateway:
        response = await gateway.request(ask("a"))
    assert (response.request_id, response.content, response.model) == ("a", "ok", "gpt-4o-mini")
    assert (response.tokens_used, response.finish_reason) == (15, "stop")
    receipt = response.receipt
    assert receipt is not None
    assert (receipt.attempts, receipt.provider_time, receipt.queue_wait) == (1, 2.0, 0.0)
    assert receipt.deployment == "openai/gpt-4o-mini"
    assert receipt.cost_usd == pytest.approx((10 * 0.15 + 5 * 0.60) / 1e6)


async def test_a_gather_of_agents_forms_one_batch_without_a_timer() -> None:
    seen = Recorder()
    async with gateway_over(FakeProvider(), observers=[seen]) as gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(20)))
    assert closings(seen) == [(20, "idle")]


async def test_a_busy_lane_sends_what_queued_when_slots_come_free() -> None:
    provider = FakeProvider()
    seen = Recorder()
    models = {"gpt-4o-mini": {"max_concurrency": 4}}
    async with gateway_over(provider, observers=[seen], models=models) as gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(10)))
    assert closings(seen) == [(4, "slots"), (4, "slots"), (2, "idle")]
    assert provider.most_under_way == 4
    assert provider.sent == [str(n) for n in range(10)]


async def test_a_batch_never_exceeds_its_size() -> None:
    seen = Recorder()
    async with gateway_over(FakeProvider(), observers=[seen], batching={"max_batch_size": 8}) as gateway:
        await gateway.batch([ask(str(n)) for n in range(20)])
    assert closings(seen) == [(8, "size"), (8, "size"), (4, "idle")]


async def test_the_first_request_waits_for_company_only_as_long_as_allowed() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, batching={"max_wait_ms": 200}) as gateway:
        first = asyncio.create_task(gateway.request(ask("first")))
        await asyncio.sleep(0.15)
        second = asyncio.create_task(gateway.request(ask("second")))
        await asyncio.gather(first, second)
    assert [entry.began for entry in provider.ledger] == [pytest.approx(0.2)] * 2


async def test_what_waited_for_a_slot_does_not_wait_for_company_again() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=ONE_SLOT, batching={"max_wait_ms": 500}) as gateway:
        await asyncio.gather(gateway.request(ask("first")), gateway.request(ask("second")))
    assert [entry.began for entry in provider.ledger] == [0.0, 1.0]  # two requests fill the only slot at once


async def test_a_user_who_waits_never_waits_for_company() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, batching={"max_wait_ms": 200}) as gateway:
        low = asyncio.create_task(gateway.request(ask("low", LOW)))
        await asyncio.sleep(0.05)
        await gateway.request(ask("high", HIGH))
        await low
    assert [entry.began for entry in provider.ledger] == [0.05, 0.05]
    assert provider.sent == ["high", "low"]


async def test_high_goes_before_normal_before_low() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=ONE_SLOT) as gateway:
        requests = [ask("l", LOW), ask("n1"), ask("h", HIGH), ask("n2")]
        await asyncio.gather(*(gateway.request(each) for each in requests))
    assert provider.sent == ["h", "n1", "n2", "l"]


async def test_a_slow_item_delays_no_neighbour() -> None:
    provider = FakeProvider(latency=lambda request: 10.0 if request.request_id == "0" else 0.1)
    ended: dict[str, float] = {}
    async with gateway_over(provider) as gateway:

        async def agent(name: str) -> None:
            await gateway.request(ask(name))
            ended[name] = asyncio.get_running_loop().time()

        await asyncio.gather(*(agent(str(n)) for n in range(32)))
    assert max(when for name, when in ended.items() if name != "0") == pytest.approx(0.1)


async def test_a_failing_item_fails_alone() -> None:
    rejected = RequestRejectedError("no", provider="fake", model="m", status=400)
    provider = FakeProvider(answer=lambda request: rejected if request.request_id == "bad" else None)
    async with gateway_over(provider) as gateway:
        with pytest.raises(BatchError, match="1 of 3 requests failed") as caught:
            await gateway.batch([ask("a"), ask("bad"), ask("c")])
    assert [type(outcome) for outcome in caught.value.outcomes] == [LLMResponse, RequestRejectedError, LLMResponse]
    assert caught.value.errors == [rejected]
    assert [response.request_id for response in caught.value.responses] == ["a", "c"]
    assert provider.sent == ["a", "bad", "c"]  # once each


async def test_batch_keeps_the_order_of_the_requests() -> None:
    provider = FakeProvider(latency=lambda request: 10.0 - int(request.request_id))
    async with gateway_over(provider) as gateway:
        responses = await gateway.batch([ask(str(n)) for n in range(10)])
    assert [response.request_id for response in responses] == [str(n) for n in range(10)]


async def test_batch_waits_for_room_where_a_request_is_turned_away() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=ONE_SLOT, batching={"max_queue_size": 4}) as gateway:
        flood = asyncio.create_task(gateway.batch([ask(str(n)) for n in range(9)]))
        await asyncio.sleep(1.5)
        single = [asyncio.create_task(gateway.request(ask(f"single {n}"))) for n in range(2)]
        await asyncio.sleep(0)  # the batch leaves half of the queue to them
        with pytest.raises(QueueFullError) as caught:
            await gateway.request(ask("one more"))
        assert (caught.value.depth, caught.value.limit) == (4, 4)
        assert caught.value.retry_after == pytest.approx(4.5)  # four wait, one is under way, and a call takes a second
        assert len(await flood) == 9
        await asyncio.gather(*single)
    assert sorted(provider.sent) == sorted([*map(str, range(9)), "single 0", "single 1"])


async def test_items_of_a_full_queue_hold_up_no_item_of_another() -> None:
    provider = FakeProvider()
    slow = [ask(str(n), LOW) for n in range(9)]
    others = [ask("high", HIGH), ask("elsewhere", model="claude-haiku")]
    async with gateway_over(provider, models=ONE_SLOT, batching={"max_queue_size": 2}) as gateway:
        await gateway.batch([*slow, *others])
    began = {entry.request.request_id: entry.began for entry in provider.ledger}
    assert began["elsewhere"] == 0.0
    assert began["high"] <= 1.0


async def test_a_deadline_counts_also_while_a_batch_waits_for_room() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=ONE_SLOT, batching={"max_queue_size": 2}) as gateway:
        requests = [ask(str(n), deadline=3.5) for n in range(9)]
        outcomes = await gateway.batch(requests, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LLMResponse] * 3 + [DeadlineExceededError] * 6
    assert provider.sent[:3] == ["0", "1", "2"]
    assert len(provider.sent) <= 4


async def test_a_flood_of_low_leaves_room_for_high() -> None:
    async with gateway_over(FakeProvider(), models=ONE_SLOT, batching={"max_queue_size": 2}) as gateway:
        flood = asyncio.create_task(gateway.batch([ask(str(n), LOW) for n in range(9)]))
        await asyncio.sleep(1.5)
        await gateway.request(ask("high", HIGH))
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)  # after the one under way
        await flood


async def test_bad_input_costs_no_provider_call() -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        with pytest.raises(UnknownModelError, match="'gpt-4o-mnii' is not configured; did you mean 'gpt-4o-mini'"):
            await gateway.request(ask("a", model="gpt-4o-mnii"))
        with pytest.raises(InvalidRequestError, match="'a' stands twice in this batch"):
            await gateway.batch([ask("a"), ask("b"), ask("a")])
        with pytest.raises(InvalidRequestError, match="expected an LLMRequest, got dict"):
            await gateway.request({"model": "x"})  # type: ignore[arg-type]
        assert provider.ledger == []
        outcomes = await gateway.batch([ask("a"), ask("a"), ask("b", model="nope")], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LLMResponse, InvalidRequestError, UnknownModelError]
    assert provider.sent == ["a"]


async def test_a_retry_waits_as_long_as_the_provider_asked_and_holds_nothing() -> None:
    provider = FakeProvider(script=[unavailable(retry_after=20.0)], latency=lambda _: 1.0)
    async with gateway_over(provider, models=ONE_SLOT) as gateway:
        limited = asyncio.create_task(gateway.request(ask("limited")))
        await asyncio.sleep(2.0)
        assert gateway.get_stats()["queued"]["normal"] == 1
        await gateway.request(ask("other"))  # the only slot is free meanwhile
        assert asyncio.get_running_loop().time() == 3.0
        response = await limited
    assert response.receipt is not None
    assert response.receipt.attempts == 2
    assert 21.0 <= provider.ledger[-1].began <= 22.0  # the hint, and a second of jitter at most
    assert response.receipt.provider_time == 2.0
    assert response.receipt.queue_wait == pytest.approx(provider.ledger[-1].began - 1.0)


async def test_a_rate_limit_shuts_the_gate_for_all_and_costs_no_attempt() -> None:
    provider = FakeProvider(script=[rate_limited(retry_after=20.0)] * 3)
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        limited = asyncio.create_task(gateway.request(ask("limited")))
        await asyncio.sleep(2.0)
        assert gateway.get_stats()["pace"]["gpt-4o-mini"]["gate"] == 19.0
        await asyncio.gather(limited, gateway.request(ask("other", HIGH)))
    assert all(entry.began == 0.0 or entry.began >= 21.0 for entry in provider.ledger)
    assert len(provider.ledger) == 5


async def test_a_rate_limit_that_never_ends_is_an_error_in_the_end() -> None:
    provider = FakeProvider(answer=lambda _: rate_limited())
    async with gateway_over(provider, retry={"max_throttles": 4}) as gateway:
        with pytest.raises(RateLimitError) as caught:
            await gateway.request(ask("a"))
    assert (caught.value.attempts, len(provider.ledger)) == (5, 5)


async def test_configured_limits_are_kept_and_the_receipt_says_what_was_reserved() -> None:
    provider = FakeProvider(latency=lambda _: 0.1)
    models = {"gpt-4o-mini": {"limits": {"rpm": 600, "safety": 1.0, "burst_seconds": 1.0}}}
    async with gateway_over(provider, models=models) as gateway:
        answers = await gateway.batch([ask(str(n)) for n in range(100)])
        pace = gateway.get_stats()["pace"]["gpt-4o-mini"]
    began = [entry.began for entry in provider.ledger]
    assert [round(began[n], 3) for n in (9, 10, 99)] == [0.0, 0.1, 9.0]  # a burst of a second, then 10 a second
    assert pace["limits"]["requests"]["used"] == 100.0
    assert all(answer.receipt and answer.receipt.reserved_tokens for answer in answers)


async def test_a_request_beyond_the_whole_limit_fails_at_once_and_is_not_sent() -> None:
    provider = FakeProvider()
    models = {"gpt-4o-mini": {"limits": {"tpm": 1000}}}
    async with gateway_over(provider, models=models) as gateway:
        with pytest.raises(RequestTooLargeError, match="model 'gpt-4o-mini' may use 1,000 a minute"):
            await gateway.request(ask("a", text="word " * 5000))
    assert provider.ledger == []


async def test_models_of_one_account_share_its_limits() -> None:
    provider = FakeProvider(latency=lambda _: 0.1)
    account = {"anthropic": {"limits": {"rpm": 60, "safety": 1.0, "burst_seconds": 1.0}}}
    async with gateway_over(provider, providers=account) as gateway:
        await gateway.batch([ask(str(n), model=f"claude-{'haiku' if n % 2 else 'opus'}") for n in range(10)])
    assert max(entry.began for entry in provider.ledger) == pytest.approx(9.0)


async def test_limits_that_the_provider_tells_are_kept() -> None:
    told = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
    provider = FakeProvider(latency=lambda _: 0.0, headers=told)
    async with gateway_over(provider) as gateway:
        for n in range(5):
            await gateway.request(ask(str(n)))
    began = [entry.began for entry in provider.ledger]
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(began))


async def test_an_unknown_limit_is_approached_slowly_where_that_is_asked_for() -> None:
    provider = FakeProvider(latency=lambda _: 0.0)
    async with gateway_over(provider, models={"gpt-4o-mini": {"limits": {}}}) as gateway:
        await gateway.batch([ask(str(n)) for n in range(20)])
    assert provider.ledger[-1].began > 3.0


async def test_callers_that_leave_give_back_the_permits_of_calls_that_were_not_made() -> None:
    provider = FakeProvider(latency=lambda _: 0.0)
    models = {"gpt-4o-mini": {"limits": {"rpm": 60, "safety": 1.0, "burst_seconds": 1.0}}}
    async with gateway_over(provider, models=models) as gateway:
        leaving = asyncio.create_task(gateway.request(ask("a")))
        await asyncio.sleep(0)  # submitted; its permits are taken before it is gone
        leaving.cancel()
        await asyncio.wait([leaving])
        await gateway.request(ask("b"))
        assert asyncio.get_running_loop().time() == 0.0
    assert provider.sent == ["b"]


@pytest.mark.parametrize("charge", ["actual", "admission_max"])
async def test_callers_that_leave_pay_the_permits_of_calls_that_were_made(charge: str) -> None:
    provider = FakeProvider(latency=lambda _: 5.0)
    models = {"gpt-4o-mini": {"limits": {"rpm": 60, "safety": 1.0, "burst_seconds": 1.0, "charge": charge}}}
    async with gateway_over(provider, models=models) as gateway:
        leaving = asyncio.create_task(gateway.request(ask("a")))
        while not provider.ledger:  # noqa: ASYNC110 - no time passes
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await gateway.request(ask("b"))
    assert [(entry.request.request_id, entry.began) for entry in provider.ledger] == [("a", 0.0), ("b", 1.0)]


async def test_a_tenth_of_the_slots_stays_free_for_high() -> None:
    provider = FakeProvider()
    models = {"gpt-4o-mini": {"max_concurrency": 20}}
    async with gateway_over(provider, models=models) as gateway:
        flood = asyncio.create_task(gateway.batch([ask(str(n), LOW) for n in range(40)]))
        await asyncio.sleep(0.5)
        assert provider.under_way == 18
        await gateway.request(ask("high", HIGH))
        assert asyncio.get_running_loop().time() == 1.5
        await flood


async def test_attempts_end_with_the_providers_error() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with gateway_over(provider, retry={"max_attempts": 3}) as gateway:
        with pytest.raises(ProviderUnavailableError) as caught:
            await gateway.request(ask("a"))
    assert caught.value.attempts == 3
    assert len(provider.ledger) == 3


async def test_retries_end_when_the_quota_of_the_deployment_is_used_up() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with gateway_over(provider, retry={"quota": 140, "max_attempts": 5}) as gateway:
        await gateway.batch([ask(str(n)) for n in range(100)], return_exceptions=True)
    assert len(provider.ledger) == 100 + 10  # a retry takes 14 of the 140 permits


async def test_a_leaving_caller_cancels_only_its_own_call() -> None:
    provider = FakeProvider(latency=lambda _: 5.0)
    async with gateway_over(provider) as gateway:
        callers = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(3)]
        await asyncio.sleep(1.0)
        callers[1].cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        stats = gateway.get_stats()
    assert [type(answer) for answer in answers] == [LLMResponse, asyncio.CancelledError, LLMResponse]
    assert [entry.outcome for entry in provider.ledger] == ["answered", "cancelled", "answered"]
    assert provider.ledger[1].ended == 1.0
    assert (stats["completed"], stats["cancelled"], stats["in_flight"]) == (2, 1, 0)


async def test_a_caller_who_leaves_the_queue_costs_no_provider_call() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=ONE_SLOT) as gateway:
        callers = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(3)]
        await asyncio.sleep(0.5)
        callers[1].cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    assert provider.sent == ["0", "2"]


async def test_high_leaves_in_the_turn_that_it_comes_in_and_others_of_that_turn_share_a_batch() -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        users = [asyncio.create_task(gateway.request(ask(str(n), RequestPriority.HIGH))) for n in range(5)]
        agents = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(5, 8)]
        await asyncio.sleep(0)
        assert gateway.get_stats()["batches"]["sizes"] == {"1": 1}
        await asyncio.gather(*users, *agents)
        assert gateway.get_stats()["batches"]["sizes"] == {"1": 1, "7": 1}


async def test_a_caller_who_leaves_before_the_tick_is_over_is_not_sent() -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        leaving = asyncio.create_task(gateway.request(ask("a")))
        await asyncio.sleep(0)  # submitted; the batch leaves, and its call is about to begin, before it is gone
        leaving.cancel()
        await asyncio.wait([leaving])
        assert (await gateway.request(ask("b"))).content == "ok"
        assert gateway.get_stats()["in_flight"] == 0
    assert provider.sent == ["b"]


async def test_a_cancelled_batch_leaves_nothing_under_way() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 4}}) as gateway:
        many = asyncio.create_task(gateway.batch([ask(str(n)) for n in range(40)]))
        await asyncio.sleep(1.5)
        many.cancel()
        await asyncio.wait([many])
        await asyncio.sleep(0)
        stats = gateway.get_stats()
        assert (stats["in_flight"], sum(stats["queued"].values())) == (0, 0)
    assert [entry.outcome for entry in provider.ledger] == ["answered"] * 4 + ["cancelled"] * 4


async def test_a_deadline_in_the_queue_costs_no_call_and_says_what_it_waited_for() -> None:
    provider = FakeProvider(latency=lambda _: 10.0)
    async with gateway_over(provider, models=ONE_SLOT) as gateway:
        first = asyncio.create_task(gateway.request(ask("first")))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError, match="within the deadline of 3 s; the request was waiting in the q"):
            await gateway.request(ask("second", deadline=3.0))
        assert asyncio.get_running_loop().time() == 3.0
        await first
    assert provider.sent == ["first"]


async def test_a_deadline_cancels_the_call_under_way_and_the_pause_before_a_retry() -> None:
    provider = FakeProvider(latency=lambda _: 10.0)
    async with gateway_over(provider) as gateway:
        with pytest.raises(DeadlineExceededError, match="in the provider's hands, attempt 1"):
            await gateway.request(ask("slow", deadline=3.0))
        provider.script.append(rate_limited(retry_after=60.0))
        with pytest.raises(DeadlineExceededError, match="pausing before attempt 2"):
            await gateway.request(ask("limited", deadline=15.0))
    assert [entry.outcome for entry in provider.ledger] == ["cancelled", "RateLimitError"]


async def test_shutdown_answers_what_was_accepted() -> None:
    provider = FakeProvider(script=[unavailable()])
    gateway = gateway_over(provider, models=ONE_SLOT)
    callers = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    await gateway.shutdown()
    answers = await asyncio.gather(*callers)
    assert [answer.content for answer in answers] == ["ok"] * 3
    assert provider.closed > 0
    with pytest.raises(GatewayClosedError, match="shut down; build a new LLMGateway"):
        await gateway.request(ask("late"))


async def test_shutdown_cancels_what_is_left_after_its_timeout() -> None:
    provider = FakeProvider(latency=lambda _: 100.0)
    seen = Recorder()
    gateway = gateway_over(provider, observers=[seen], models=ONE_SLOT)
    callers = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    await gateway.shutdown(timeout=5.0)
    assert asyncio.get_running_loop().time() == 5.0
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [GatewayClosedError] * 3
    assert "under way" in str(errors[0])
    assert "before this request was sent" in str(errors[1])
    assert provider.under_way == 0
    assert seen.events[-1] == ShutdownEnded(cancelled=3, drained=0)


async def test_shutdown_before_a_batch_has_begun_its_calls_settles_every_caller() -> None:
    provider = FakeProvider()
    gateway = gateway_over(provider)
    callers = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    await gateway.shutdown(timeout=0)
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [GatewayClosedError] * 3


async def test_shutdown_can_be_called_twice_at_the_same_time_and_after() -> None:
    gateway = gateway_over(FakeProvider())
    caller = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0)
    await asyncio.gather(gateway.shutdown(), gateway.shutdown())
    await gateway.shutdown()
    assert (await caller).content == "ok"


async def test_a_cancelled_shutdown_cancels_what_is_left_at_once() -> None:
    gateway = gateway_over(FakeProvider(latency=lambda _: 100.0))
    caller = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gateway.shutdown())
    await asyncio.sleep(1.0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(GatewayClosedError):
        await caller


async def test_a_batch_that_waits_for_room_hears_of_the_shutdown() -> None:
    gateway = gateway_over(FakeProvider(), models=ONE_SLOT, batching={"max_queue_size": 2})
    many = asyncio.create_task(gateway.batch([ask(str(n)) for n in range(5)]))
    await asyncio.sleep(0.5)
    await gateway.shutdown()
    with pytest.raises(BatchError) as caught:
        await many
    assert [type(outcome) for outcome in caught.value.outcomes] == [LLMResponse] * 2 + [GatewayClosedError] * 3


async def test_leaving_the_block_with_an_error_does_not_wait_for_answers() -> None:
    gateway = gateway_over(FakeProvider(latency=lambda _: 100.0))
    caller = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0)

    async def failing_block() -> None:
        async with gateway:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing_block()
    with pytest.raises(GatewayClosedError):
        await caller
    assert asyncio.get_running_loop().time() == 0.0


async def test_stats_are_plain_json() -> None:
    provider = FakeProvider(script=[rate_limited()])
    async with gateway_over(provider) as gateway:
        await gateway.batch([ask(str(n), RequestPriority(n % 3 + 1)) for n in range(6)])
        stats = json.loads(json.dumps(gateway.get_stats()))
    assert (stats["submitted"], stats["completed"], stats["attempts"], stats["retries"]) == (6, 6, 7, 1)


def test_a_gateway_constructs_with_no_loop_no_key_and_no_file(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert LLMGateway({}).get_stats()["submitted"] == 0
    assert LLMGateway().log_path is None


async def test_a_batch_cancelled_before_its_first_step_settles_its_callers() -> None:
    for ticks in range(8):
        provider = FakeProvider(script=[unavailable()])
        gateway = gateway_over(provider, retry={"base_delay": 0.0})
        caller = asyncio.create_task(gateway.request(ask("a")))
        for _ in range(ticks):
            await asyncio.sleep(0)
        await gateway.shutdown(timeout=0.0)
        (outcome,) = await asyncio.gather(caller, return_exceptions=True)
        assert isinstance(outcome, GatewayClosedError)


async def test_a_bug_in_handing_on_an_answer_reaches_the_caller_and_the_loop() -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    provider = FakeProvider(
        answer=lambda request: TypeError("a bug") if request.request_id == "bad" else None,
        latency=lambda request: 0.0 if request.request_id == "bad" else 50.0,
    )
    gateway = gateway_over(provider)
    bad, good = (asyncio.create_task(gateway.request(ask(name))) for name in ("bad", "good"))
    with pytest.raises(TypeError, match="a bug"):
        await bad
    await gateway.shutdown(timeout=1.0)  # its neighbour is cancelled in time all the same
    assert asyncio.get_running_loop().time() == 1.0
    with pytest.raises(GatewayClosedError):
        await good
    assert gateway.get_stats()["failures"] == {"TypeError": 1, "closed": 1}


async def test_an_observer_that_fails_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def observe(self, event: Event, /) -> None:
            raise ZeroDivisionError(event.name)

    seen = Recorder()
    provider = FakeProvider(script=[unavailable()])
    async with gateway_over(provider, observers=[Broken(), seen]) as gateway:
        assert (await gateway.request(ask("a"))).content == "ok"
    assert {event.name for event in seen.events} >= {"request_queued", "batch_closed", "error", "item_done"}
    assert "Broken failed to take note of batch_closed" in caplog.text


async def test_a_connection_that_cannot_be_closed_keeps_the_shutdown_from_nothing() -> None:
    class Stubborn(FakeProvider):
        async def aclose(self) -> None:
            raise OSError("no")

    seen = Recorder()
    gateway = gateway_over(Stubborn(), observers=[seen])
    await gateway.request(ask("a"))
    await gateway.shutdown()
    assert seen.events[-1].name == "shutdown"


async def test_times_are_whole_wherever_a_request_ended() -> None:
    seen = Recorder()
    async with gateway_over(FakeProvider(latency=lambda _: 10.0), observers=[seen], models=ONE_SLOT) as gateway:
        outcomes = await asyncio.gather(
            gateway.request(ask("in flight", deadline=4.0)),
            gateway.request(ask("in the queue", deadline=3.0)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError] * 2
    times = {
        each.request_id: (each.queue_wait, each.provider_time) for each in seen.events if isinstance(each, RequestDone)
    }
    assert times == {"in flight": (0.0, 4.0), "in the queue": (3.0, 0.0)}


async def test_the_last_attempts_error_is_the_cause_of_a_deadline_and_of_a_shutdown() -> None:
    limited = rate_limited(retry_after=60.0)
    gateway = gateway_over(FakeProvider(answer=lambda _: limited))
    callers = [
        asyncio.create_task(gateway.request(ask("a", deadline=5.0))),
        asyncio.create_task(gateway.request(ask("b"))),
    ]
    await asyncio.wait(callers[:1])
    await gateway.shutdown(timeout=0.0)
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [DeadlineExceededError, GatewayClosedError]
    assert [error.__cause__ for error in errors if isinstance(error, BaseException)] == [limited, limited]
    assert "paused before another attempt" in str(errors[1])


def test_a_gateway_of_another_open_loop_says_so_and_one_of_a_closed_loop_goes_on() -> None:
    gateway = gateway_over(FakeProvider(latency=lambda _: 0.0))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(gateway.request(ask("a")))
    with pytest.raises(GatewayError, match="serves another event loop"):
        asyncio.run(gateway.request(ask("b")))
    with pytest.raises(GatewayError, match="serves another event loop"):
        asyncio.run(gateway.shutdown())
    loop.close()
    assert asyncio.run(gateway.request(ask("c"))).content == "ok"
    asyncio.run(gateway.shutdown())
    asyncio.run(gateway.shutdown())


async def test_a_key_that_is_set_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = Deployments(load_config({}))
    assert deployments["gpt-4o-mini"][0].endpoint.api_key is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-later")
    assert deployments["gpt-4o-mini"][0].endpoint.api_key is not None


async def test_a_public_provider_without_known_limits_is_asked_slowly_until_it_tells_them() -> None:
    provider = FakeProvider(headers={"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599"})
    async with careful_gateway_over(provider)(QUIET) as gateway:
        tasks = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(50)]
        await asyncio.sleep(0.9)
        assert len(provider.ledger) <= 4
        await asyncio.gather(*tasks)
        assert gateway.get_stats()["pace"]["gpt-4o-mini"]["limits"]["requests"]["limit"] == 600
    assert provider.ledger[-1].began < 10


@pytest.mark.parametrize(
    "config",
    [
        {"models": {"gpt-4o-mini": {"limits": False}}},
        {"providers": {"openai": {"base_url": "http://127.0.0.1:8000/v1"}}},
        {"providers": {"openai": {"limits": {"rpm": 60_000}}}},
    ],
)
async def test_known_limits_a_server_of_ones_own_and_false_mean_no_slow_beginning(config: dict[str, object]) -> None:
    provider = FakeProvider()
    async with careful_gateway_over(provider)({**QUIET, **config}) as gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(50)))
    assert {entry.began for entry in provider.ledger} == {0.0}


@pytest.mark.parametrize("asked_for", [True, False])
async def test_the_collector_is_spared_what_is_loaded_only_where_that_is_asked_for(
    asked_for: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("froze"))
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    async with gateway_over(FakeProvider(), freeze=asked_for) as gateway:
        assert frozen == []  # not before the libraries of a model are loaded
        await gateway.batch([ask("a"), ask("b")])
    assert frozen == (["froze"] if asked_for else [])


async def test_a_bug_of_the_pump_is_told_to_the_loop_and_not_to_the_user_whose_request_met_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def release(_: RequestQueue, now: float) -> float | None:
        monkeypatch.setattr(RequestQueue, "release_due", whole)
        raise ZeroDivisionError(f"a bug, at {now}")

    whole = RequestQueue.release_due
    async with gateway_over(FakeProvider()) as gateway:
        monkeypatch.setattr(RequestQueue, "release_due", release)
        answer = await gateway.request(ask("a", RequestPriority.HIGH))
    assert answer.content == "ok"
    assert "the pump of the gateway met a bug" in caplog.text
