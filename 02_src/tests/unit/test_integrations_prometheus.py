from __future__ import annotations

import asyncio
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, unavailable
from llm_gateway import (
    ConfigurationError,
    DeadlineExceededError,
    LLMRequest,
    ProviderUnavailableError,
    RequestPriority,
)
from llm_gateway.config import load_config
from llm_gateway.events import RequestDone
from llm_gateway.integrations.prometheus import GatewayMetrics
from llm_gateway.models import TokenUsage

PAGE = Path(__file__).parents[3] / "00_docs" / "how-to" / "observability.md"
LIMITS = {"gpt-4o-mini": {"limits": {"rpm": 6000, "tpm": 60_000, "charge": "actual"}}}
WHERE = ("openai/gpt-4o-mini",)  # the label deployment
FREQUENT = {"base_delay": 0.0, "max_attempts": 3}


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics()


def series(metrics: GatewayMetrics, name: str) -> Mapping[tuple[str, ...], float]:
    """The values of a metric by its labels' values, in the order of the labels' names."""
    found = [sample for metric in metrics.registry.collect() for sample in metric.samples if sample.name == name]
    return {tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value for sample in found}


def by(request_id: str, agent: str | None) -> LLMRequest:
    return ask(request_id).model_copy(update={"agent": agent})


def done(**fields: Any) -> RequestDone:
    return RequestDone(
        request_id="a",
        batch_id="b",
        model="m",
        deployment="p/m",
        priority=RequestPriority.HIGH,
        outcome="ok",
        attempt=1,
        queue_wait=0.0,
        provider_time=1.0,
        **fields,
    )


async def test_requests_are_counted_by_model_class_and_outcome(metrics: GatewayMetrics) -> None:
    provider = FakeProvider(answer=lambda request: unavailable() if request.request_id == "bad" else None)
    async with gateway_over(provider, observers=[metrics], retry={"max_attempts": 1}) as gateway:
        await gateway.batch([ask("a"), ask("b"), ask("c", RequestPriority.HIGH)])
        with pytest.raises(ProviderUnavailableError):
            await gateway.request(ask("bad"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gateway.request(ask("left", RequestPriority.LOW)), 0.5)
    assert series(metrics, "llm_gateway_requests_total") == {
        ("gpt-4o-mini", "ok", "normal"): 2,
        ("gpt-4o-mini", "ok", "high"): 1,
        ("gpt-4o-mini", "unavailable", "normal"): 1,
        ("gpt-4o-mini", "cancelled", "low"): 1,
    }
    assert series(metrics, "llm_gateway_queue_wait_seconds_count")["gpt-4o-mini", "normal"] == 3
    assert series(metrics, "llm_gateway_provider_seconds_sum") == {("gpt-4o-mini",): 4.5}
    assert series(metrics, "llm_gateway_batch_size_sum") == {("gpt-4o-mini",): 5}


async def test_attempts_their_errors_and_retries_are_counted(metrics: GatewayMetrics) -> None:
    provider = FakeProvider(script=[rate_limited(), unavailable(), "ok"])
    async with gateway_over(provider, observers=[metrics], retry=FREQUENT) as gateway:
        await gateway.request(ask("a"))
    assert series(metrics, "llm_gateway_attempts_total") == {(*WHERE, "gpt-4o-mini"): 3}
    assert series(metrics, "llm_gateway_attempt_errors_total") == {
        (*WHERE, "rate_limit", "gpt-4o-mini"): 1,
        (*WHERE, "unavailable", "gpt-4o-mini"): 1,
    }
    assert series(metrics, "llm_gateway_retries_total") == {
        ("rate_limit", "gpt-4o-mini"): 1,
        ("unavailable", "gpt-4o-mini"): 1,
    }


async def test_tokens_and_cost_are_counted_by_model_and_agent(metrics: GatewayMetrics) -> None:
    async with gateway_over(FakeProvider(), observers=[metrics]) as gateway:
        await gateway.batch([by("1", "writer"), by("2", "writer"), by("3", None)])
    assert series(metrics, "llm_gateway_tokens_total") == {
        ("writer", "gpt-4o-mini", "input"): 20,
        ("writer", "gpt-4o-mini", "output"): 10,
        ("", "gpt-4o-mini", "input"): 10,
        ("", "gpt-4o-mini", "output"): 5,
    }
    assert series(metrics, "llm_gateway_cost_dollars_total")["writer", "gpt-4o-mini"] == pytest.approx(9e-6)


def test_cached_tokens_are_counted_as_parts_of_the_input(metrics: GatewayMetrics) -> None:
    usage = TokenUsage(input_tokens=10, output_tokens=5, cache_read_tokens=6, cache_write_tokens=3)
    metrics.observe(done(usage=usage))
    tokens = series(metrics, "llm_gateway_tokens_total")
    assert {kind: value for (_, _, kind), value in tokens.items()} == {
        "input": 10,
        "output": 5,
        "cache_read": 6,
        "cache_write": 3,
    }
    assert not series(metrics, "llm_gateway_cost_dollars_total")  # its price is not known


def test_the_hours_of_a_providers_batch_are_no_time_of_a_call(metrics: GatewayMetrics) -> None:
    for lane in ("flex", "batch", None):
        metrics.observe(done(cost_usd=1.0, price_lane=lane))
    assert series(metrics, "llm_gateway_provider_seconds_count") == {("m",): 2}
    assert series(metrics, "llm_gateway_requests_total")["m", "ok", "high"] == 3


async def test_a_request_that_was_never_sent_has_no_time_in_a_provider(metrics: GatewayMetrics) -> None:
    models = {"gpt-4o-mini": {"max_concurrency": 1}}
    async with gateway_over(FakeProvider(), observers=[metrics], models=models) as gateway:
        first = asyncio.create_task(gateway.request(ask("first")))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceededError):
            await gateway.request(ask("late", deadline=0.5))
        await first
    assert series(metrics, "llm_gateway_provider_seconds_count") == {("gpt-4o-mini",): 1}
    assert series(metrics, "llm_gateway_requests_total")["gpt-4o-mini", "deadline", "normal"] == 1


async def test_agents_beyond_the_bound_share_one_series() -> None:
    metrics = GatewayMetrics(max_agents=2)
    async with gateway_over(FakeProvider(), observers=[metrics]) as gateway:
        for number in range(20):
            await gateway.request(by(str(number), f"agent {number}"))
        await gateway.request(by("again", "agent 1"))
    tokens = series(metrics, "llm_gateway_tokens_total")
    assert {agent: value for (agent, _, kind), value in tokens.items() if kind == "output"} == {
        "agent 0": 5,
        "agent 1": 10,
        "other": 90,
    }


async def test_a_scrape_tells_what_waits_and_what_is_under_way(metrics: GatewayMetrics) -> None:
    models = {"gpt-4o-mini": {"max_concurrency": 2}}
    async with gateway_over(FakeProvider(), observers=[metrics], models=models) as gateway:
        metrics.watch(gateway)
        low = [ask(f"low {number}", RequestPriority.LOW) for number in range(3)]
        tasks = [asyncio.create_task(gateway.request(each)) for each in [*low, ask("n"), ask("m")]]
        await asyncio.sleep(0.5)
        assert series(metrics, "llm_gateway_in_flight_requests") == {(): 2}
        assert series(metrics, "llm_gateway_queued_requests") == {("high",): 0, ("normal",): 0, ("low",): 3}
        await asyncio.gather(*tasks)


async def test_a_scrape_tells_where_each_limit_stands(metrics: GatewayMetrics) -> None:
    async with gateway_over(FakeProvider(), observers=[metrics], models=LIMITS) as gateway:
        metrics.watch(gateway)
        task = asyncio.create_task(gateway.request(ask("a")))
        await asyncio.sleep(0.5)
        used = series(metrics, "llm_gateway_limit_used_permits_total")
        assert used == {
            (*WHERE, "requests", "gpt-4o-mini"): 0,
            (*WHERE, "tokens", "gpt-4o-mini"): 0,
        }  # reserved is not yet used
        await task
        used = series(metrics, "llm_gateway_limit_used_permits_total")
        assert used == {(*WHERE, "requests", "gpt-4o-mini"): 1, (*WHERE, "tokens", "gpt-4o-mini"): 15}
        assert series(metrics, "llm_gateway_limit_permits_per_second") == {
            (*WHERE, "requests", "gpt-4o-mini"): 99,
            (*WHERE, "tokens", "gpt-4o-mini"): 970,
        }
        assert series(metrics, "llm_gateway_limit_permits")[*WHERE, "requests", "gpt-4o-mini"] == 99 * 0.75
        assert series(metrics, "llm_gateway_limit_waits_total")[*WHERE, "requests", "gpt-4o-mini"] == 0


async def test_a_scrape_tells_what_became_of_each_budget(metrics: GatewayMetrics) -> None:
    budgets = {"total": 1.0, "agents": {"guide": 0.5}}
    models = {"gpt-4o-mini": {"price": {"input": 1000.0, "output": 1000.0}, "max_tokens": 10}}
    async with gateway_over(FakeProvider(), observers=[metrics], budgets=budgets, models=models) as gateway:
        metrics.watch(gateway)
        await gateway.request(ask("a", agent="guide"))
        under_way = asyncio.create_task(gateway.request(ask("b")))
        await asyncio.sleep(0.5)
        spent = series(metrics, "llm_gateway_budget_spent_dollars")
        reserved = series(metrics, "llm_gateway_budget_reserved_dollars")
        left = series(metrics, "llm_gateway_budget_left_dollars")
        await under_way
    assert spent == {("the gateway",): pytest.approx(0.015), ("agent 'guide'",): pytest.approx(0.015)}
    assert reserved["agent 'guide'",] == 0.0
    assert reserved["the gateway",] > 0.0
    assert left["the gateway",] == pytest.approx(1.0 - spent["the gateway",] - reserved["the gateway",])


async def test_a_scrape_tells_for_how_long_a_gate_is_shut(metrics: GatewayMetrics) -> None:
    provider = FakeProvider(script=[rate_limited(retry_after=20.0), "ok"], latency=lambda _: 0.0)
    async with gateway_over(provider, observers=[metrics]) as gateway:
        metrics.watch(gateway)
        task = asyncio.create_task(gateway.request(ask("a")))
        await asyncio.sleep(5.0)
        assert series(metrics, "llm_gateway_gate_shut_seconds")[*WHERE, "gpt-4o-mini"] >= 15.0
        await task
        assert series(metrics, "llm_gateway_gate_shut_seconds") == {(*WHERE, "gpt-4o-mini"): 0.0}


async def test_a_scrape_tells_the_state_of_each_deployments_breaker(metrics: GatewayMetrics) -> None:
    further = {"provider": "azure", "model": "mini"}
    models = {"gpt-4o-mini": {"deployments": [further], "max_concurrency": 50}}
    azure = {"kind": "azure_openai", "base_url": "http://127.0.0.1:9"}
    provider = FakeProvider(answer=lambda _: unavailable())
    sections: dict[str, Mapping[str, Any]] = {"providers": {"azure": azure}, "retry": {"max_attempts": 1}}
    async with gateway_over(provider, observers=[metrics], models=models, **sections) as gateway:
        metrics.watch(gateway)
        await gateway.batch([ask("first")], return_exceptions=True)
        closed = {(where, "gpt-4o-mini", "closed"): 1 for where in ("openai/gpt-4o-mini", "azure/mini")}
        states = series(metrics, "llm_gateway_breaker_state")
        assert len(states) == 6
        assert {each: value for each, value in states.items() if value} == closed
        await gateway.batch([ask(str(number)) for number in range(100)], return_exceptions=True)
        states = series(metrics, "llm_gateway_breaker_state")
        assert {state for (_, _, state), value in states.items() if value} == {"open"}


async def test_the_time_to_the_first_token_of_a_stream_is_counted(metrics: GatewayMetrics) -> None:
    metrics.observe(done(time_to_first_token=0.5))
    assert series(metrics, "llm_gateway_time_to_first_token_seconds_sum") == {("m",): 0.5}


async def test_another_thread_asks_the_gateways_loop_for_its_limits(metrics: GatewayMetrics) -> None:
    async with gateway_over(FakeProvider(), observers=[metrics], models=LIMITS) as gateway:
        metrics.watch(gateway)
        await gateway.request(ask("a"))
        used = await asyncio.to_thread(series, metrics, "llm_gateway_limit_used_permits_total")
    assert used[*WHERE, "requests", "gpt-4o-mini"] == 1


async def test_a_scrape_does_without_the_limits_where_the_loop_is_busy(
    metrics: GatewayMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_gateway.integrations.prometheus.PATIENCE", 0.01)
    async with gateway_over(FakeProvider(), observers=[metrics], models=LIMITS) as gateway:
        metrics.watch(gateway)
        await gateway.request(ask("a"))
        found: list[Any] = []
        scrape = threading.Thread(target=lambda: found.append(generate_latest(metrics.registry).decode()))
        scrape.start()
        scrape.join()  # this blocks the loop
    assert "llm_gateway_in_flight_requests 0.0" in found[0]
    assert "llm_gateway_limit_used_permits_total{" not in found[0]


def test_a_scrape_after_the_loop_has_ended_tells_what_is_left(metrics: GatewayMetrics) -> None:
    gateway = gateway_over(FakeProvider(latency=lambda _: 0.0), observers=[metrics])
    metrics.watch(gateway)
    asyncio.run(gateway.request(ask("a")))
    assert series(metrics, "llm_gateway_in_flight_requests") == {(): 0}


async def test_a_counter_of_used_permits_never_falls_by_a_rounding_and_begins_anew_with_its_gateway(
    metrics: GatewayMetrics,
) -> None:
    class Told:
        used = 0.0
        config = load_config({})

        def get_stats(self) -> dict[str, Any]:
            standing = {"per_second": 1.0, "level": 1.0, "used": self.used, "reserved": 0.0, "waits": 0}
            pace = {"gate": 0.0, "breaker": "closed", "limits": {"tokens": standing}}
            return {"queued": {"high": 0, "normal": 0, "low": 0}, "in_flight": 0, "pace": {"gpt-4o-mini": pace}}

    gateway = Told()
    metrics.watch(gateway)  # type: ignore[arg-type]
    told: list[float] = []
    for gateway.used in (100.0, 100.0 - 1e-9, 150.0, 3.0):
        told += series(metrics, "llm_gateway_limit_used_permits_total").values()
    assert told == [100.0, 100.0, 150.0, 3.0]


def test_without_a_gateway_to_watch_there_are_no_gauges(metrics: GatewayMetrics) -> None:
    assert "llm_gateway_in_flight_requests" not in {each.name for each in metrics.registry.collect()}


@pytest.fixture
def served(metrics: GatewayMetrics) -> Iterator[int]:
    with metrics.serve(0) as server:
        yield server.port


def test_the_endpoint_serves_the_registry(served: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served}/metrics") as answer:
        assert b"# TYPE llm_gateway_requests_total counter" in answer.read()


def test_a_port_that_is_taken_is_one_sentence(served: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GatewayMetrics().serve(served)
    assert str(caught.value) == (
        f"Metrics cannot be served at 127.0.0.1:{served}: Address already in use; give another host or port."
    )


def test_the_registry_may_be_the_applications_own() -> None:
    registry = CollectorRegistry()
    assert GatewayMetrics(registry).registry is registry
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        GatewayMetrics(registry)


async def test_the_page_lists_every_metric(metrics: GatewayMetrics) -> None:
    async with gateway_over(FakeProvider(), observers=[metrics], cache={"store": "memory"}) as gateway:
        metrics.watch(gateway)
        names = {
            f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics.registry.collect()
        }
    listed = re.findall(r"^\| `(llm_gateway_\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(names)
