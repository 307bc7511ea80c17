"""Texts to vectors: many callers, one call, and each gets its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fakes.provider import FakeProvider, Recorder, ask, gateway_over, rate_limited, unavailable, vector_of
from llm_gateway import (
    BudgetExceededError,
    ConfigurationError,
    DeadlineExceededError,
    EmbeddingError,
    EmbeddingResponse,
    GatewayClosedError,
    InvalidRequestError,
    LLMGateway,
    LLMRequest,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RequestPriority,
    RequestRejectedError,
    TokenUsage,
)
from llm_gateway.batching.together import split
from llm_gateway.config import load_config
from llm_gateway.events import AttemptFailed, BatchClosed, RequestDone, RetryScheduled
from llm_gateway.models import EmbeddingRequest

HIGH, NORMAL, LOW = RequestPriority
MODEL: Mapping[str, Any] = {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}


def texts_of(request: LLMRequest) -> list[str]:
    assert isinstance(request, EmbeddingRequest)
    return request.texts


def counted(request: LLMRequest) -> TokenUsage:
    """A token for each character."""
    return TokenUsage(input_tokens=sum(map(len, texts_of(request))))


def provider_of(**fields: Any) -> FakeProvider:
    return FakeProvider(**{"usage": counted, **fields})


def calls_of(provider: FakeProvider) -> list[list[str]]:
    return [texts_of(entry.request) for entry in provider.ledger]


def gateway_of(
    provider: FakeProvider, *, observers: Any = (), config: Mapping[str, Any] | None = None, **model: Any
) -> LLMGateway:
    return gateway_over(provider, observers=observers, models={"e": {**MODEL, **model}}, **(config or {}))


def refusing(*bad: str) -> Callable[[LLMRequest], Exception | None]:
    """Reject every call that has one of these texts in it."""

    def answer(request: LLMRequest) -> Exception | None:
        if set(bad) & set(texts_of(request)):
            return RequestRejectedError("no", provider="fake", model="m", status=400)
        return None

    return answer


def check_answer(response: EmbeddingResponse, *texts: str) -> None:
    assert response.vectors == [vector_of(text) for text in texts]


async def test_texts_of_many_callers_go_in_one_call_and_each_gets_its_own_vectors_in_order() -> None:
    provider = provider_of()
    async with gateway_of(provider) as gateway:
        answers = await asyncio.gather(*(gateway.embed([f"a{n}", "b" * n + "c"], model="e") for n in range(20)))
        stats = gateway.get_stats()
    assert len(provider.ledger) == 1
    for n, answer in enumerate(answers):
        check_answer(answer, f"a{n}", "b" * n + "c")
    assert stats["by_model"]["e"]["batches"]["sizes"] == {"20": 1}


async def test_usage_and_cost_are_split_to_the_token() -> None:
    provider = provider_of(usage=lambda _: TokenUsage(input_tokens=1001))
    async with gateway_of(provider, price={"input": 1.0, "output": 0.0}) as gateway:
        answers = await asyncio.gather(*(gateway.embed(["word " * (n + 1)], model="e") for n in range(7)))
        stats = gateway.get_stats()
    used = [answer.tokens_used or 0 for answer in answers]
    assert sum(used) == 1001
    assert used == sorted(used)
    assert used[0] > 0
    assert sum(answer.receipt.cost_usd or 0.0 for answer in answers if answer.receipt) == pytest.approx(1001 / 1e6)
    assert stats["tokens"]["input"] == 1001


def test_a_usage_that_nobody_told_is_unknown_to_all() -> None:
    assert split(None, [1, 2]) == [None, None]
    assert [each.input_tokens for each in split(TokenUsage(input_tokens=3), [1, 1, 1, 1]) if each] == [0, 1, 1, 1]


async def test_a_list_is_cut_by_count_and_a_call_is_never_larger() -> None:
    provider = provider_of()
    texts = [f"text {n}" for n in range(25)]
    async with gateway_of(provider, embedding={"max_inputs": 10}) as gateway:
        answer = await gateway.embed(texts, model="e")
    check_answer(answer, *texts)
    assert [len(call) for call in calls_of(provider)] == [10, 10, 5]
    assert answer.receipt is not None
    assert answer.receipt.attempts == 3
    assert answer.tokens_used == sum(map(len, texts))


async def test_a_list_is_cut_by_tokens_and_a_text_beyond_them_goes_alone() -> None:
    provider = provider_of()
    texts = ["word " * 100, "word " * 100, "word " * 1000, "short"]
    async with gateway_of(provider, embedding={"max_tokens": 400}) as gateway:
        check_answer(await gateway.embed(texts, model="e"), *texts)
    assert calls_of(provider) == [texts[:2], [texts[2]], [texts[3]]]


async def test_callers_that_do_not_fit_into_one_call_go_in_the_next_in_order() -> None:
    provider = provider_of()
    async with gateway_of(provider, embedding={"max_inputs": 3}) as gateway:
        await asyncio.gather(*(gateway.embed([f"{n}a", f"{n}b"], model="e") for n in range(3)))
    assert calls_of(provider) == [["0a", "0b"], ["1a", "1b"], ["2a", "2b"]]


async def test_one_call_takes_one_slot_and_one_permit_of_a_request() -> None:
    provider = provider_of()
    limits = {"rpm": 120, "burst_seconds": 0.5, "safety": 1.0}  # one at once, the next after half a second
    async with gateway_of(provider, max_concurrency=1, limits=limits) as gateway:
        await asyncio.gather(*(gateway.embed([str(n)], model="e") for n in range(50)))
        level = gateway.get_stats()["pace"]["e"]["limits"]["requests"]
    assert len(provider.ledger) == 1
    assert (level["used"], level["reserved"]) == (1.0, 0.0)


async def test_tokens_are_reserved_for_every_text_and_settled_by_the_usage() -> None:
    provider = provider_of()
    async with gateway_of(provider, limits={"tpm": 60_000, "burst_seconds": 60.0}) as gateway:
        answers = await asyncio.gather(*(gateway.embed(["word " * 10], model="e") for n in range(4)))
        level = gateway.get_stats()["pace"]["e"]["limits"]["tokens"]
    assert level["reserved"] == 0.0
    assert level["used"] >= 4 * 8
    assert all(answer.receipt is not None and answer.receipt.reserved_tokens for answer in answers)


async def test_texts_that_a_limit_holds_back_go_in_a_later_call() -> None:
    provider = provider_of(latency=lambda _: 0.0)
    limits = {"tpm": 6000, "burst_seconds": 1.0, "safety": 1.0, "charge": "actual"}  # 100 a second
    async with gateway_of(provider, limits=limits) as gateway:
        await asyncio.gather(*(gateway.embed(["word " * 40], model="e") for n in range(6)))
    assert 2 <= len(provider.ledger) <= 6
    assert provider.ledger[-1].began > 1.0


async def test_high_goes_before_low_also_where_they_share_calls() -> None:
    provider = provider_of()
    async with gateway_of(provider, max_concurrency=1, embedding={"max_inputs": 2}) as gateway:
        first = asyncio.create_task(gateway.embed(["first"], model="e"))
        await asyncio.sleep(0.5)
        asked = [("low", LOW), ("low", LOW), ("high", HIGH), ("normal", NORMAL)]
        await asyncio.gather(*(gateway.embed([text], model="e", priority=priority) for text, priority in asked))
        await first
    assert calls_of(provider) == [["first"], ["high", "normal"], ["low", "low"]]


async def test_agents_take_turns_and_a_flood_of_one_does_not_keep_another_waiting() -> None:
    provider = provider_of()
    async with gateway_of(provider, max_concurrency=1, embedding={"max_inputs": 2}) as gateway:
        first = asyncio.create_task(gateway.embed(["first"], model="e"))
        await asyncio.sleep(0.5)
        flood = [gateway.embed([f"flood {n}"], model="e", agent="a") for n in range(8)]
        await asyncio.gather(*flood, gateway.embed(["other"], model="e", agent="b"), first)
    assert "other" in calls_of(provider)[1]


async def test_a_call_asked_on_behalf_of_a_request_inherits_its_class_and_its_agent() -> None:
    seen = Recorder()
    async with gateway_of(provider_of(), observers=[seen]) as gateway:
        with gateway.on_behalf_of(ask("x", HIGH, agent="boss")):
            await gateway.embed(["a"], model="e")
            await gateway.embed(["a"], model="e", priority=LOW, agent="own")
    done = [(event.priority, event.agent) for event in seen.events if isinstance(event, RequestDone)]
    assert done == [(HIGH, "boss"), (LOW, "own")]


async def test_one_bad_text_fails_alone_among_the_callers() -> None:
    provider = provider_of(answer=refusing("bad"))
    async with gateway_of(provider) as gateway:
        asked = [gateway.embed([f"good {n}" if n != 5 else "bad"], model="e") for n in range(16)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(outcomes.pop(5), RequestRejectedError)
    assert all(isinstance(outcome, EmbeddingResponse) for outcome in outcomes)
    assert len(provider.ledger) == 1 + 2 * 4  # halves, down to one


async def test_one_bad_text_of_a_list_is_found_and_the_other_vectors_are_kept() -> None:
    provider = provider_of(answer=refusing("bad"))
    texts = [*(f"good {n}" for n in range(9)), "bad"]
    async with gateway_of(provider) as gateway:
        with pytest.raises(
            EmbeddingError, match=r"^1 of 10 texts failed; the first, texts\[9\], with Request"
        ) as caught:
            await gateway.embed(texts, model="e")
    error = caught.value
    assert error.vectors == [*map(vector_of, texts[:9]), None]
    assert isinstance(error.errors[9], RequestRejectedError)
    assert error.receipt.usage is not None
    assert error.receipt.usage.input_tokens == sum(map(len, texts[:9]))


async def test_where_every_text_fails_the_error_itself_is_raised() -> None:
    def broke(_: LLMRequest) -> Exception:
        return QuotaExhaustedError("no", provider="fake", model="m", status=429)

    async with gateway_of(provider_of(answer=broke)) as gateway:
        with pytest.raises(QuotaExhaustedError):
            await gateway.embed(["a", "b"], model="e")


async def test_a_transient_failure_is_retried_and_counts_once_for_the_deployment() -> None:
    seen = Recorder()
    provider = provider_of(script=[unavailable()])
    config = {"retry": {"quota": 14}}  # enough for one retry
    async with gateway_of(provider, observers=[seen], config=config) as gateway:
        answers = await asyncio.gather(*(gateway.embed([str(n)], model="e") for n in range(30)))
        stats = gateway.get_stats()
    assert len(answers) == 30
    assert all(answer.receipt is not None and answer.receipt.attempts == 2 for answer in answers)
    assert stats["pace"]["e"]["breaker"] == "closed"
    assert len([event for event in seen.events if isinstance(event, AttemptFailed | RetryScheduled)]) == 60


async def test_a_throttled_call_costs_no_attempt_and_shuts_the_gate_once() -> None:
    provider = provider_of(script=[rate_limited(retry_after=7.0)])
    async with gateway_of(provider, limits={"rpm": 6000}) as gateway:
        await asyncio.gather(*(gateway.embed([str(n)], model="e") for n in range(5)))
    assert provider.ledger[1].began >= 7.0
    assert sorted(text for call in calls_of(provider)[1:] for text in call) == ["0", "1", "2", "3", "4"]


async def test_errors_of_neighbours_are_told_apart() -> None:
    provider = provider_of(script=[unavailable()] * 2)
    async with gateway_of(provider, config={"retry": {"max_attempts": 1}}) as gateway:
        outcomes = await asyncio.gather(
            *(gateway.embed([text], model="e") for text in ("a", "b")), return_exceptions=True
        )
    first, second = outcomes
    assert isinstance(first, ProviderUnavailableError)
    assert isinstance(second, ProviderUnavailableError)
    assert first is not second
    assert str(first) == str(second)


async def test_a_caller_that_leaves_keeps_nobody_else_from_his_vectors() -> None:
    provider = provider_of()
    async with gateway_of(provider, max_concurrency=1) as gateway:
        leaving, *others = (asyncio.create_task(gateway.embed([str(n)], model="e")) for n in range(4))
        await asyncio.sleep(0.5)
        leaving.cancel()
        answers = await asyncio.gather(*others)
        assert leaving.cancelled()
        check_answer(answers[0], "1")
        check_answer(await gateway.embed(["later"], model="e"), "later")
    assert [entry.outcome for entry in provider.ledger] == ["answered", "answered"]


async def test_when_the_last_caller_leaves_the_call_is_cancelled_and_its_slot_is_free() -> None:
    provider = provider_of(latency=lambda _: 60.0)
    async with gateway_of(provider, max_concurrency=1) as gateway:
        tasks = [asyncio.create_task(gateway.embed([str(n)], model="e")) for n in range(3)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert gateway.get_stats()["in_flight"] == 0
    assert [entry.outcome for entry in provider.ledger] == ["cancelled"]


async def test_a_caller_that_leaves_before_the_call_begins_is_not_in_it() -> None:
    provider = provider_of()
    async with gateway_of(provider, max_concurrency=1) as gateway:
        first = asyncio.create_task(gateway.embed(["first"], model="e"))
        await asyncio.sleep(0.5)
        leaving, staying = (asyncio.create_task(gateway.embed([text], model="e")) for text in ("leaving", "staying"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(first, staying)
    assert calls_of(provider) == [["first"], ["staying"]]


async def test_a_deadline_ends_the_wait_of_its_caller_alone() -> None:
    provider = provider_of(latency=lambda _: 5.0)
    async with gateway_of(provider) as gateway:
        hurried, patient = await asyncio.gather(
            gateway.embed(["a"], model="e", deadline=1.0), gateway.embed(["b"], model="e"), return_exceptions=True
        )
    assert isinstance(hurried, DeadlineExceededError)
    assert isinstance(patient, EmbeddingResponse)


async def test_shutdown_finishes_what_was_accepted_and_cancels_what_takes_too_long() -> None:
    provider = provider_of(latency=lambda _: 60.0)
    gateway = gateway_of(provider)
    asked = [asyncio.create_task(gateway.embed([str(n)], model="e")) for n in range(3)]
    await asyncio.sleep(0.5)
    await gateway.shutdown(timeout=1.0)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [GatewayClosedError] * 3
    assert provider.ledger[0].outcome == "cancelled"


async def test_a_part_that_a_limit_never_lets_through_is_cut_smaller() -> None:
    provider = provider_of(latency=lambda _: 0.0)
    async with gateway_of(provider, limits={"tpm": 60}) as gateway:
        texts = ["word " * 10] * 8
        check_answer(await gateway.embed(texts, model="e"), *texts)
    assert len(provider.ledger) > 1


async def test_money_is_held_for_each_caller_and_a_budget_ends_it() -> None:
    provider = provider_of()
    config = {"budgets": {"agents": {"poor": 0.000001}, "total": 1.0}}
    async with gateway_of(provider, price={"input": 1.0, "output": 0.0}, config=config) as gateway:
        rich = await gateway.embed(["a text"], model="e")
        with pytest.raises(BudgetExceededError, match="agent 'poor'"):
            await gateway.embed(["a text"], model="e", agent="poor")
        spent = gateway.get_stats()["budgets"]["the gateway"]
    assert rich.receipt is not None
    assert (spent["spent"], spent["reserved"]) == (rich.receipt.cost_usd, 0.0)


async def test_a_batch_of_vectors_says_why_it_left() -> None:
    seen = Recorder()
    async with gateway_of(provider_of(), observers=[seen], embedding={"max_inputs": 2}) as gateway:
        await asyncio.gather(*(gateway.embed([str(n)], model="e") for n in range(5)))
    closed = [(event.size, event.why) for event in seen.events if isinstance(event, BatchClosed)]
    assert closed == [(2, "size"), (2, "size"), (1, "idle")]


async def test_several_hosts_of_one_model_share_the_texts() -> None:
    provider = provider_of()
    async with gateway_of(provider, deployments=[{"provider": "ollama"}], max_concurrency=1) as gateway:
        answers = await asyncio.gather(*(gateway.embed([str(n)], model="e") for n in range(8)))
    assert sorted(set(provider.asked)) == ["ollama/text-embedding-3-small", "openai/text-embedding-3-small"]
    for n, answer in enumerate(answers):
        check_answer(answer, str(n))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("one", r"^embed.texts: one text; give a list, \[text\]\.$"),
        (None, r"^embed.texts: NoneType is no list of texts\.$"),
        ([], "^embed.texts: empty; give at least one text"),
        (["a", ""], r"^embed.texts\[1\]: empty; no model makes a vector of it"),
        (["a", 5], r"^embed.texts\[1\]: int is no text"),
        (["\ud800"], r"^embed.texts\[0\]: holds a lone surrogate at character 0"),
    ],
)
async def test_what_is_no_list_of_texts_is_refused_by_its_place(texts: Any, says: str) -> None:
    provider = provider_of()
    async with gateway_of(provider) as gateway:
        with pytest.raises(InvalidRequestError, match=says):
            await gateway.embed(texts, model="e")
    assert not provider.ledger


async def test_a_chat_model_makes_no_vectors() -> None:
    async with gateway_of(provider_of()) as gateway:
        with pytest.raises(
            InvalidRequestError, match=r"^embed.model: 'gpt-4o-mini' answers requests; ask a model that"
        ):
            await gateway.embed(["a"], model="gpt-4o-mini")


def test_a_model_of_vectors_has_no_stand_in() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Configuration key models.e.fallbacks: the vectors of two embedding"
    ):
        load_config({"models": {"e": {**MODEL, "fallbacks": ["gpt-4o-mini"]}}})


@pytest.mark.parametrize("wrong", ["yes", 1, {"max_input": 3}, {"max_inputs": 0}])
def test_a_mark_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Configuration key models\.e\.embedding"):
        load_config({"models": {"e": {**MODEL, "embedding": wrong}}})
