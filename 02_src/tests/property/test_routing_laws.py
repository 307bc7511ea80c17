"""Laws of repetition and routing: outages, breakers, pauses, spreading, and callers that leave at any moment."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.provider import (
    FakeProvider,
    Outcome,
    Recorder,
    ask,
    gateway_over,
    rate_limited,
    refused_key,
    unavailable,
)
from fakes.virtual_time import run_virtual
from llm_gateway import DeadlineExceededError, GatewayError, LLMGateway, LLMRequest, LLMResponse, RequestPriority
from llm_gateway.events import RequestDone, RequestQueued

PRIORITIES = list(RequestPriority)
DEPLOYMENTS = {"gpt-4o-mini": {"deployments": [{"provider": "ollama"}, {"provider": "anthropic"}]}}
FALLBACKS = {"gpt-4o-mini": {"fallbacks": ["claude-haiku", "local-llama"]}}


def held(gateway: LLMGateway) -> tuple[int, int, float]:
    """Slots, reservations of permits, and dollars that are held now."""
    running = gateway._running
    upstreams = [upstream for lane in running.lanes.values() for upstream in lane.upstreams] if running else []
    permits = sum(pace.limiter.open for upstream in upstreams for pace in upstream.pace.paces)
    dollars = sum(each["reserved"] for each in gateway.get_stats().get("budgets", {}).values())
    return sum(upstream.in_flight for upstream in upstreams), permits, dollars


# --- outages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_second", [0.3, 4.0])
@pytest.mark.parametrize("models", [{}, DEPLOYMENTS, FALLBACKS], ids=["one", "deployments", "fallbacks"])
def test_a_total_outage_costs_hardly_more_calls_than_requests(models: dict[str, Any], per_second: float) -> None:
    provider = FakeProvider(answer=lambda _: unavailable(), latency=lambda _: 0.2)
    offered, warm = int(per_second * 900), 300.0

    async def caller(gateway: LLMGateway, name: int) -> None:
        await asyncio.sleep(name / per_second)
        with suppress(GatewayError):
            await gateway.request(ask(str(name), deadline=30.0))

    async def main() -> None:
        async with gateway_over(provider, models=models) as gateway:
            await asyncio.gather(*(caller(gateway, n) for n in range(offered)))

    run_virtual(main())
    steady = [entry for entry in provider.ledger if entry.began >= warm]
    most = Counter(entry.deployment for entry in steady).most_common(1)[0][1]
    assert most <= 1.1 * offered * (900 - warm) / 900  # of each deployment that could answer


@given(
    outage=st.floats(5.0, 400.0), latency=st.floats(0.05, 5.0), callers=st.integers(1, 12), seed=st.integers(0, 1000)
)
@settings(max_examples=25)
def test_one_probe_at_a_time_is_made_and_recovery_takes_no_longer_than_the_rest(
    outage: float, latency: float, callers: int, seed: int
) -> None:
    """Callers ask again and again, and some leave while the probe is theirs."""
    rng = Random(seed)
    provider = FakeProvider(latency=lambda _: latency)
    answered: list[float] = []

    async def caller(gateway: LLMGateway, name: int) -> None:
        loop = asyncio.get_running_loop()
        n = 0
        while loop.time() < outage + 400.0 and not (answered and loop.time() > outage):
            n += 1
            with suppress(GatewayError):
                await gateway.request(ask(f"{name} {n}", deadline=rng.choice([None, rng.uniform(0.5, 30)])))
                if loop.time() > outage:
                    answered.append(loop.time())
            await asyncio.sleep(rng.uniform(0.0, 0.1))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        provider.answer = lambda _: unavailable() if loop.time() < outage else None
        async with gateway_over(provider, retry={"max_attempts": 1}) as gateway:
            await asyncio.gather(*(gateway.request(ask(f"trip {n}")) for n in range(20)), return_exceptions=True)
            await asyncio.gather(*(caller(gateway, n) for n in range(callers)))

    run_virtual(main(), seed=seed)
    probes = [entry for entry in provider.ledger[20:] if entry.began < outage]
    ends = [entry.ended for entry in probes]
    assert all(end is not None and end <= probe.began + 1e-9 for end, probe in zip(ends, probes[1:], strict=False))
    failed = [entry for entry in probes if entry.outcome != "cancelled"]
    for before, after in itertools.pairwise(failed):
        assert after.began - (before.ended or 0.0) >= 30.0 - 1e-9
    # The rests double: 15 s, then 30, 60, … up to 300, each ended by a probe that a caller may cut short.
    rest = min(300.0, 15.0 * 2.0 ** len(failed))
    if latency < 0.4:  # nobody's deadline cuts a probe short
        assert answered[0] <= outage + rest + 2 * latency + 1.0


# --- pauses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [unavailable(20.0), rate_limited(20.0)], ids=["unavailable", "rate-limit"])
@pytest.mark.parametrize("stage", ["one", "nested"])
def test_a_request_that_pauses_before_a_retry_holds_nothing(error: Exception, stage: str) -> None:
    priced = {"price": {"input": 0, "output": 1_000_000}, "max_tokens": 10, "limits": {"tpm": 60_000, "rpm": 600}}
    models = {"gpt-4o-mini": {"max_concurrency": 1, **priced}}

    async def work(request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await gateway.request(ask("inner"))
        return None

    provider = FakeProvider(work=work, latency=lambda _: 1.0)
    provider.answer = lambda request: error if request.request_id != "outer" and len(provider.ledger) <= 4 else None
    gateway = gateway_over(provider, models=models, budgets={"total": 1000})

    async def main() -> None:
        names = ["outer"] if stage == "nested" else ["a", "b"]
        tasks = [asyncio.create_task(gateway.request(ask(name))) for name in names]
        outer = 1 if stage == "nested" else 0
        await asyncio.sleep(4.5)
        assert held(gateway) == (outer, outer, 10.0 * outer)  # the caller's own call goes on
        if stage == "one":
            assert gateway.get_stats()["queued"]["normal"] == 2
        await asyncio.gather(*tasks)
        assert held(gateway) == (0, 0, 0.0)
        await gateway.shutdown()

    run_virtual(main())


# --- spreading --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0]), min_size=2, max_size=4))
@settings(max_examples=25)
def test_calls_spread_by_weight_at_any_time(weights: list[float]) -> None:
    providers = ["openai", "ollama", "anthropic", "llamacpp"]
    section, *further = [{"provider": name, "weight": weight} for name, weight in zip(providers, weights, strict=False)]
    provider = FakeProvider(latency=lambda _: 0.0)

    async def main() -> None:
        models = {"gpt-4o-mini": {**section, "deployments": further}}
        async with gateway_over(provider, models=models) as gateway:
            for n in range(120):
                await gateway.request(ask(str(n)))

    run_virtual(main())
    for most in (30, 60, 120):
        asked = Counter(label.split("/")[0] for label in provider.asked[:most])
        for name, weight in zip(providers, weights, strict=False):
            assert asked[name] == pytest.approx(most * weight / sum(weights), abs=3.0)  # each begins with one


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 60))
@settings(max_examples=25)
def test_no_slot_is_idle_while_a_request_waits(slots: list[int], count: int) -> None:
    providers = ["openai", "ollama", "anthropic", "llamacpp"]
    section, *further = [
        {"provider": name, "max_concurrency": most} for name, most in zip(providers, slots, strict=False)
    ]
    provider = FakeProvider()

    async def main() -> float:
        models = {"gpt-4o-mini": {**section, "deployments": further}}
        async with gateway_over(provider, models=models) as gateway:
            await gateway.batch([ask(str(n)) for n in range(count)])
            return asyncio.get_running_loop().time()

    assert run_virtual(main()) == -(-count // sum(slots))
    assert provider.most_under_way == min(count, sum(slots))


# --- callers that leave at any moment ---------------------------------------------------------------------------------


ONE: dict[str, Any] = {"max_concurrency": 1, "limits": {"rpm": 600}}
PRICED: dict[str, Any] = {"price": {"input": 0, "output": 1_000_000}, "max_tokens": 10}
SCENES: dict[str, dict[str, Any]] = {
    "deployments": {"models": {"gpt-4o-mini": ONE | {"deployments": [{"provider": "ollama"}]}}},
    "fallback": {"models": {"gpt-4o-mini": ONE | {"fallbacks": ["claude-haiku"]}}},
    "budget": {"models": {"gpt-4o-mini": ONE | PRICED}, "budgets": {"total": 25}},
    "coalesce": {"models": {"gpt-4o-mini": ONE}, "coalesce": True},
    "open-breaker": {"models": {"gpt-4o-mini": ONE}},
}


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_caller_that_leaves_at_any_turn_of_the_loop_leaves_nothing_behind(scene: str, how: str) -> None:
    for turn in range(60):
        try:
            run_virtual(interrupted(scene, how, turn))
        except BaseException as error:
            error.add_note(f"left at turn {turn}")
            raise


async def interrupted(scene: str, how: str, turn: int) -> None:
    seen = Recorder()

    async def work(request: LLMRequest) -> Outcome | None:
        if request.request_id == "outer":
            await gateway.request(ask("inner"))
        return None

    failures = iter([unavailable(), refused_key(), rate_limited()])
    provider = FakeProvider(work=work, latency=lambda _: 0.0)
    provider.answer = lambda request: next(failures, None) if request.request_id != "outer" else None
    gateway = gateway_over(provider, observers=[seen], **SCENES[scene])
    if scene == "open-breaker":
        gateway.eta(ask("opens the lane"))
        running = gateway._running
        assert running is not None
        running.lanes["gpt-4o-mini"].upstreams[0].breaker.opens_at = 0.0  # the next call is the probe
    names = ["a", "outer", "b", "c"]
    tasks = [asyncio.create_task(gateway.request(ask(name, deadline=300.0))) for name in names]
    for _ in range(turn):
        await asyncio.sleep(0)
    if how == "cancel":
        tasks[1].cancel()
        tasks[2].cancel()
        left, stayed = {tasks[1], tasks[2]}, {tasks[0], tasks[3]}
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.done() for task in left)
        outcomes = [task.exception() or task.result() for task in stayed]
        assert all(isinstance(each, LLMResponse | GatewayError) for each in outcomes)
        assert not any(isinstance(each, DeadlineExceededError) for each in outcomes)
        for _ in range(3):
            await asyncio.sleep(0)
        slots, permits, dollars = held(gateway)
        assert (slots, permits, dollars, set(gateway.get_stats()["queued"].values())) == (0, 0, 0, {0})
    await gateway.shutdown(timeout=0.0)
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
    queued = [event.request_id for event in seen.events if isinstance(event, RequestQueued)]
    done = [event for event in seen.events if isinstance(event, RequestDone)]
    assert sorted(queued) == sorted(event.request_id for event in done)
    assert sum(event.attempt for event in done) == len(provider.ledger)
    assert provider.under_way == 0
