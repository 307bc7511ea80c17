"""Several deployments of a model, breakers between them, and fallbacks to other models."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from fakes.provider import (
    Answer,
    Connected,
    FakeProvider,
    Outcome,
    Recorder,
    ask,
    gateway_over,
    rate_limited,
    refused_key,
    unavailable,
)
from llm_gateway import (
    AuthenticationError,
    DeadlineExceededError,
    GatewayClosedError,
    InvalidRequestError,
    LLMGateway,
    LLMRequest,
    ProviderUnavailableError,
    RateLimitError,
    RequestPriority,
    RequestRejectedError,
    RequestTooLargeError,
)
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.errors import ContextLengthError, MissingApiKeyError
from llm_gateway.events import AttemptFailed, BatchClosed, RequestDone

HIGH, NORMAL, LOW = RequestPriority
OPENAI, OLLAMA, HAIKU = "openai/gpt-4o-mini", "ollama/gpt-4o-mini", "anthropic/claude-haiku-5-5"


def spread(*, weight: float = 1.0, **further: object) -> dict[str, object]:
    """One model at two deployments."""
    return {"gpt-4o-mini": {"deployments": [{"provider": "ollama", "weight": weight, **further}]}}


def falling_back(fallbacks: object = ("claude-haiku",), **section: object) -> dict[str, object]:
    """One model that another stands in for."""
    return {"gpt-4o-mini": {"fallbacks": list(fallbacks) if isinstance(fallbacks, tuple) else fallbacks, **section}}


def once(*outcomes: Outcome) -> Answer:
    """These in turn, then as the provider answers else."""
    left = list(outcomes)
    return lambda _: left.pop(0) if left else None


async def tripped(gateway: LLMGateway, provider: FakeProvider, label: str = OPENAI) -> None:
    """Let so many calls of a deployment fail that its breaker opens."""
    before = provider.by.get(label)
    provider.by[label] = unavailable()
    await asyncio.gather(*(gateway.request(ask(f"trip {n}")) for n in range(20)), return_exceptions=True)
    if before is None:
        del provider.by[label]
    else:
        provider.by[label] = before


# --- several deployments ----------------------------------------------------------------------------------------------


async def test_calls_spread_over_the_deployments_by_weight_and_the_receipt_names_each() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=spread(weight=3)) as gateway:
        responses = [await gateway.request(ask(str(n))) for n in range(8)]
    assert Counter(provider.asked) == {OLLAMA: 6, OPENAI: 2}
    receipts = [response.receipt for response in responses]
    assert [receipt.deployment for receipt in receipts if receipt] == provider.asked
    assert {response.model for response in responses} == {"gpt-4o-mini"}


async def test_a_full_deployment_leaves_the_rest_to_the_other() -> None:
    provider = FakeProvider()
    models = {"gpt-4o-mini": {"max_concurrency": 2, "deployments": [{"provider": "ollama", "max_concurrency": 5}]}}
    async with gateway_over(provider, models=models) as gateway:
        await gateway.batch([ask(str(n)) for n in range(7)])
    assert Counter(provider.asked) == {OPENAI: 2, OLLAMA: 5}
    assert {entry.began for entry in provider.ledger} == {0.0}


async def test_fewer_calls_go_to_a_deployment_whose_permits_run_out() -> None:
    provider = FakeProvider(latency=lambda _: 0.0)
    limits = {"rpm": 600, "burst_seconds": 3, "safety": 1}
    async with gateway_over(provider, models=spread(limits=limits)) as gateway:
        for n in range(60):
            await gateway.request(ask(str(n)))
    asked = Counter(provider.asked)
    assert asked[OLLAMA] < 25
    assert asked[OPENAI] > 35


async def test_a_batch_holds_the_requests_of_one_deployment() -> None:
    seen = Recorder()
    async with gateway_over(FakeProvider(), observers=[seen], models=spread()) as gateway:
        await gateway.batch([ask(str(n)) for n in range(10)])
    closed = [event for event in seen.events if isinstance(event, BatchClosed)]
    assert {(event.deployment, event.size) for event in closed} == {(OPENAI, 5), (OLLAMA, 5)}
    assert len({event.batch_id for event in closed}) == 2


async def test_a_retry_goes_to_the_other_deployment() -> None:
    provider = FakeProvider(by={OPENAI: unavailable()})
    async with gateway_over(provider, models=spread()) as gateway:
        response = await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, OLLAMA]
    assert response.receipt is not None
    assert (response.receipt.deployment, response.receipt.attempts) == (OLLAMA, 2)


async def test_a_deployment_that_refuses_the_key_is_not_asked_again_and_the_other_answers_at_once() -> None:
    provider = FakeProvider(by={OPENAI: refused_key()})
    async with gateway_over(provider, models=spread()) as gateway:
        await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, OLLAMA]
    assert provider.ledger[1].began == 1.0  # no pause: this has nothing to do with load


async def test_a_request_that_every_deployment_bars_ends_with_the_last_ones_error() -> None:
    provider = FakeProvider(answer=lambda _: refused_key())
    async with gateway_over(provider, models=spread()) as gateway:
        with pytest.raises(AuthenticationError) as caught:
            await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, OLLAMA]
    assert caught.value.attempts == 2


async def test_what_one_deployment_has_no_permits_for_goes_to_the_other_without_a_pause() -> None:
    provider = FakeProvider(by={OPENAI: rate_limited(retry_after=60.0)})
    async with gateway_over(provider, models=spread()) as gateway:
        response = await gateway.request(ask("a"))
        assert asyncio.get_running_loop().time() == 2.0
        await gateway.request(ask("b"))
    assert provider.asked == [OPENAI, OLLAMA, OLLAMA]
    assert response.receipt is not None
    assert response.receipt.deployment == OLLAMA


async def test_where_every_deployment_is_out_of_permits_the_first_gate_that_opens_counts() -> None:
    provider = FakeProvider(by={OPENAI: once(rate_limited(60.0)), OLLAMA: once(rate_limited(20.0))})
    async with gateway_over(provider, models=spread()) as gateway:
        await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, OLLAMA, OLLAMA]
    assert 22.0 <= provider.ledger[2].began <= 25.0


async def test_a_rate_limit_everywhere_that_never_ends_is_an_error_in_the_end() -> None:
    provider = FakeProvider(answer=lambda _: rate_limited(1.0))
    async with gateway_over(provider, models=spread(), retry={"max_throttles": 3}) as gateway:
        with pytest.raises(RateLimitError):
            await gateway.request(ask("a"))
    assert len(provider.ledger) == 4


async def test_a_request_that_is_too_large_for_one_deployment_goes_to_the_other() -> None:
    provider = FakeProvider()
    models = spread(limits={"tpm": 100_000, "charge": "admission_max"})
    models["gpt-4o-mini"] |= {"limits": {"tpm": 100}}  # type: ignore[operator]
    async with gateway_over(provider, models=models) as gateway:
        await gateway.batch([ask(str(n), max_tokens=5000) for n in range(3)])
        with pytest.raises(RequestTooLargeError):
            await gateway.request(ask("too large", max_tokens=200_000))
    assert provider.asked == [OLLAMA] * 3


async def test_what_is_reserved_is_estimated_for_the_deployment_that_is_asked() -> None:
    models = spread(max_tokens=2000, limits={"tpm": 100_000, "charge": "admission_max"})
    models["gpt-4o-mini"] |= {"max_tokens": 500, "limits": {"tpm": 100_000}}  # type: ignore[operator]
    async with gateway_over(FakeProvider(), models=models) as gateway:
        responses = await gateway.batch([ask(str(n)) for n in range(2)])
    reserved = {each.receipt.deployment: each.receipt.reserved_tokens for each in responses if each.receipt}
    assert reserved == {OPENAI: 500, OLLAMA: 2000}


async def test_what_one_deployment_refuses_beforehand_is_asked_of_the_model_all_the_same() -> None:
    class Picky(FakeProvider):
        def connect(self, deployment: Deployment, /) -> Connected:
            return Checking(self, deployment.label)

    class Checking(Connected):
        def check(self, request: LLMRequest, /) -> None:
            if self.deployment == OPENAI or request.request_id == "bad":
                raise InvalidRequestError("no.", field="tools")

    async with gateway_over(Picky(), models=spread()) as gateway:
        assert (await gateway.request(ask("a"))).content == "ok"
        with pytest.raises(InvalidRequestError):
            await gateway.request(ask("bad"))


async def test_statistics_tell_of_each_deployment() -> None:
    provider = FakeProvider(by={OLLAMA: unavailable()})
    async with gateway_over(provider, models=spread()) as gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(60)))
        pace = gateway.get_stats()["pace"]["gpt-4o-mini"]
    assert pace["breaker"] == "closed"
    assert pace["deployments"][OLLAMA]["breaker"] == "open"


# --- the breaker ------------------------------------------------------------------------------------------------------


async def test_an_open_breaker_stops_the_calls_and_one_probe_opens_the_way_again() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        waiting = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(5)]
        await asyncio.gather(*waiting)
    began = [entry.began for entry in provider.ledger[20:]]
    assert began == [16.0] + [17.0] * 4  # it opened at 1 s for 15 s, and the probe took a second


async def test_a_failed_probe_is_the_only_call_until_the_next_one() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        provider.by[OPENAI] = once(unavailable(), unavailable())
        waiting = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(5)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    began = [entry.began for entry in provider.ledger[20:]]
    assert began == [16.0, 47.0, 108.0, 109.0, 109.0]
    assert [isinstance(each, ProviderUnavailableError) for each in outcomes] == [True, True, False, False, False]


@pytest.mark.parametrize("leaves_after", [15.2, 15.0, 14.0])
async def test_a_probe_whose_caller_leaves_lets_another_be_made(leaves_after: float) -> None:
    provider = FakeProvider()
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        first = asyncio.create_task(gateway.request(ask("first")))
        second = asyncio.create_task(gateway.request(ask("second")))
        await asyncio.sleep(leaves_after)
        first.cancel()
        assert (await second).content == "ok"
        assert gateway.get_stats()["pace"]["gpt-4o-mini"]["breaker"] == "closed"
    assert provider.ledger[-1].began == 1.0 + max(15.0, leaves_after)


async def test_a_deadline_of_the_probes_caller_lets_another_be_made() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        first = asyncio.create_task(gateway.request(ask("first", deadline=15.5)))
        second = asyncio.create_task(gateway.request(ask("second")))
        with pytest.raises(DeadlineExceededError, match="provider's hands"):
            await first
        assert (await second).content == "ok"


async def test_a_probe_that_meets_a_rate_limit_shows_that_the_deployment_is_well() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        provider.by[OPENAI] = once(rate_limited(5.0))
        await gateway.batch([ask("a"), ask("b")])
    assert len(provider.ledger) == 23


async def test_while_one_deployment_rests_the_other_serves() -> None:
    provider = FakeProvider(by={OPENAI: unavailable()})
    async with gateway_over(provider, models=spread()) as gateway:
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(60)))
        before = len(provider.ledger)
        await asyncio.gather(*(gateway.request(ask(f"later {n}")) for n in range(20)))
    assert set(provider.asked[before:]) == {OLLAMA}


# --- fallbacks --------------------------------------------------------------------------------------------------------


async def test_a_fallback_answers_when_the_attempts_are_used_up() -> None:
    provider = FakeProvider(by={OPENAI: unavailable()})
    seen = Recorder()
    async with gateway_over(provider, observers=[seen], models=falling_back(), retry={"max_attempts": 2}) as gateway:
        response = await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, OPENAI, HAIKU]
    assert (response.model, response.request_id) == ("claude-haiku", "a")
    assert response.receipt is not None
    assert (response.receipt.deployment, response.receipt.attempts) == (HAIKU, 3)
    assert response.receipt.provider_time == 3.0
    done = [event for event in seen.events if isinstance(event, RequestDone)]
    assert [(event.model, event.deployment, event.outcome) for event in done] == [("claude-haiku", HAIKU, "ok")]
    assert [event.deployment for event in seen.events if isinstance(event, AttemptFailed)] == [OPENAI] * 2


async def test_a_refused_key_and_a_prompt_that_is_too_long_fall_back_at_once() -> None:
    too_long = ContextLengthError("long", provider="fake", model="m", status=400)
    provider = FakeProvider(by={OPENAI: once(refused_key(), too_long)})
    async with gateway_over(provider, models=falling_back()) as gateway:
        await gateway.request(ask("a"))
        await gateway.request(ask("b"))
    assert provider.asked == [OPENAI, HAIKU, OPENAI, HAIKU]


async def test_a_prompt_that_is_at_fault_falls_back_only_where_that_is_asked_for() -> None:
    rejected = RequestRejectedError("no", provider="fake", model="m", status=400)
    provider = FakeProvider(by={OPENAI: rejected})
    async with gateway_over(provider, models=falling_back()) as gateway:
        with pytest.raises(RequestRejectedError):
            await gateway.request(ask("a"))
    async with gateway_over(provider, models=falling_back({"rejected": ["claude-haiku"]})) as gateway:
        assert (await gateway.request(ask("b"))).model == "claude-haiku"


async def test_each_kind_of_error_has_its_own_fallbacks() -> None:
    provider = FakeProvider(by={OPENAI: once(refused_key(), unavailable(), rate_limited(400.0))})
    by_kind = {"authentication": ["claude-opus"], "unavailable": [], "default": ["claude-haiku"]}
    async with gateway_over(provider, models=falling_back(by_kind), retry={"max_attempts": 1}) as gateway:
        assert (await gateway.request(ask("a"))).model == "claude-opus"
        with pytest.raises(ProviderUnavailableError):
            await gateway.request(ask("b"))
        assert (await gateway.request(ask("c"))).model == "claude-haiku"


async def test_fallbacks_are_tried_in_turn_and_the_last_error_is_the_callers() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    models = falling_back(("claude-haiku", "local-llama"))
    async with gateway_over(provider, models=models, retry={"max_attempts": 1}) as gateway:
        with pytest.raises(ProviderUnavailableError) as caught:
            await gateway.request(ask("a"))
    assert provider.asked == [OPENAI, HAIKU, "ollama/llama3.2"]
    assert caught.value.attempts == 3


async def test_models_that_stand_in_for_each_other_are_asked_once_each() -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    models = falling_back() | {"claude-haiku": {"fallbacks": ["gpt-4o-mini"]}}
    async with gateway_over(provider, models=models, retry={"max_attempts": 1}) as gateway:
        await asyncio.gather(
            gateway.request(ask("a")), gateway.request(ask("b", model="claude-haiku")), return_exceptions=True
        )
    assert Counter(provider.asked) == {OPENAI: 2, HAIKU: 2}


async def test_while_the_breaker_is_open_the_fallback_answers_at_once() -> None:
    provider = FakeProvider(by={HAIKU: "from haiku"})
    async with gateway_over(provider, models=falling_back(), retry={"max_attempts": 1}) as gateway:
        await tripped(gateway, provider)
        began = asyncio.get_running_loop().time()
        responses = await gateway.batch([ask(str(n)) for n in range(5)])
        assert asyncio.get_running_loop().time() == began + 1.0
        await asyncio.sleep(20.0)
        assert (await gateway.request(ask("later"))).model == "gpt-4o-mini"  # the probe
    assert {(each.model, each.content) for each in responses} == {("claude-haiku", "from haiku")}


async def test_without_a_fallback_that_is_well_a_request_waits_for_its_own_model() -> None:
    provider = FakeProvider()
    async with gateway_over(provider, models=falling_back(), retry={"max_attempts": 1}) as gateway:
        provider.by[HAIKU] = unavailable()
        await tripped(gateway, provider)  # and the fallback's with it
        del provider.by[HAIKU]
        response = await gateway.request(ask("a"))
    assert response.model == "gpt-4o-mini"
    assert provider.ledger[-1].began >= 16.0


async def test_a_fallback_without_a_key_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    class Keyless(FakeProvider):
        def connect(self, deployment: Deployment, /) -> Connected:
            if deployment.label == HAIKU:
                raise MissingApiKeyError("no key sk-canary-1")
            return super().connect(deployment)

    provider = Keyless(by={OPENAI: unavailable()})
    models = falling_back(("claude-haiku", "local-llama"))
    with caplog.at_level(logging.WARNING, "llm_gateway"):
        async with gateway_over(provider, models=models, retry={"max_attempts": 1}) as gateway:
            assert (await gateway.request(ask("a"))).model == "local-llama"
    assert "model 'claude-haiku' cannot stand in for 'gpt-4o-mini': MissingApiKeyError" in caplog.text
    assert "canary" not in caplog.text


async def test_a_fallback_takes_over_although_its_queue_is_full() -> None:
    provider = FakeProvider(by={OPENAI: refused_key()})
    models = falling_back() | {"claude-haiku": {"max_concurrency": 1}}
    async with gateway_over(provider, models=models, batching={"max_queue_size": 4}) as gateway:
        theirs = [asyncio.create_task(gateway.request(ask(f"h{n}", model="claude-haiku"))) for n in range(4)]
        ours = [asyncio.create_task(gateway.request(ask(f"o{n}"))) for n in range(4)]
        responses = await asyncio.gather(*theirs, *ours)
    assert {each.model for each in responses} == {"claude-haiku"}


async def test_a_deadline_rings_also_in_the_queue_of_a_fallback() -> None:
    provider = FakeProvider(by={OPENAI: refused_key()}, latency=lambda _: 2.0)
    models = falling_back() | {"claude-haiku": {"max_concurrency": 1}}
    async with gateway_over(provider, models=models) as gateway:
        busy = asyncio.create_task(gateway.batch([ask(str(n), model="claude-haiku") for n in range(3)]))
        with pytest.raises(DeadlineExceededError, match="waiting in the queue") as caught:
            await gateway.request(ask("a", deadline=3.0))
        assert isinstance(caught.value.__cause__, AuthenticationError)
        await busy
        assert set(gateway.get_stats()["queued"].values()) == {0}
        assert asyncio.get_running_loop().time() == 6.0


async def test_a_caller_that_leaves_the_queue_of_a_fallback_leaves_nothing_behind() -> None:
    provider = FakeProvider(by={OPENAI: refused_key()})
    models = falling_back() | {"claude-haiku": {"max_concurrency": 1}}
    async with gateway_over(provider, models=models) as gateway:
        busy = asyncio.create_task(gateway.batch([ask(str(n), model="claude-haiku") for n in range(3)]))
        leaving = asyncio.create_task(gateway.request(ask("a")))
        await asyncio.sleep(1.5)
        leaving.cancel()
        await busy
        assert set(gateway.get_stats()["queued"].values()) == {0}
    assert "a" not in {entry.request.request_id for entry in provider.ledger if entry.deployment == HAIKU}


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["open", "not-open"])
async def test_what_was_accepted_may_still_fall_back_while_the_gateway_drains(*, warm: bool) -> None:
    provider = FakeProvider(by={OPENAI: refused_key()}, latency=lambda _: 2.0)
    gateway = gateway_over(provider, models=falling_back())
    if warm:
        await gateway.request(ask("warm", model="claude-haiku"))
    asked = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0.5)
    await gateway.shutdown()
    assert (await asked).model == "claude-haiku"
    assert provider.under_way == 0


async def test_a_fallback_opened_while_the_gateway_drains_is_cut_off_when_patience_ends() -> None:
    provider = FakeProvider(by={OPENAI: refused_key()}, latency=lambda _: 2.0)
    gateway = gateway_over(provider, models=falling_back())
    asked = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0.5)
    await gateway.shutdown(timeout=2.0)
    with pytest.raises(GatewayClosedError):
        await asked
    assert (provider.under_way, provider.ledger[-1].outcome) == (0, "cancelled")


@pytest.mark.parametrize("models", [{}, spread(), falling_back()], ids=["retry", "elsewhere", "fallback"])
async def test_nothing_begins_after_a_cancel_that_a_client_turns_into_an_error(models: dict[str, object]) -> None:
    class Stubborn(FakeProvider):
        async def generate(self, request: LLMRequest, /, deployment: str = "fake/m") -> Completion:
            try:
                return await super().generate(request, deployment)
            except asyncio.CancelledError:
                raise unavailable() from None

    provider = Stubborn(latency=lambda _: 10.0)
    gateway = gateway_over(provider, models=models)
    asked = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(1.0)
    await gateway.shutdown(timeout=0.0)
    with pytest.raises(GatewayClosedError):
        await asked
    assert len(provider.ledger) == 1


async def test_a_model_of_which_one_deployment_has_no_key_leaves_nothing_behind() -> None:
    class Keyless(FakeProvider):
        def connect(self, deployment: Deployment, /) -> Connected:
            if deployment.label == OLLAMA:
                raise MissingApiKeyError("no key")
            return super().connect(deployment)

    limits = {"openai": {"limits": {"rpm": 60}}}
    async with gateway_over(Keyless(), models=spread(), providers=limits) as gateway:
        for n in range(3):
            with pytest.raises(MissingApiKeyError):
                await gateway.request(ask(str(n)))
        await gateway.request(ask("a", model="local-llama"))
        assert set(gateway.get_stats()["pace"]) == {"local-llama"}
