"""Prometheus: counters and histograms of a gateway's events, and gauges of where it stands when it is scraped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from threading import Thread
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIServer

from llm_gateway.errors import ConfigurationError, MissingDependencyError
from llm_gateway.events import (
    AttemptBegan,
    AttemptFailed,
    BatchClosed,
    Event,
    RequestDone,
    RequestQueued,
    RetryScheduled,
)
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import RequestPriority

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    from llm_gateway.integrations.tallies import Spreads, Sums, Tallies
except ImportError:
    raise MissingDependencyError("pip install 'llm-gateway[prometheus]'") from None

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_BUDGETS = 200  # that have series; each agent may have one
PRIORITIES = {priority: priority.name.lower() for priority in RequestPriority}
OTHER = "other"  # the agents beyond those that have series of their own
_DeploymentStanding = tuple[tuple[str, str], Mapping[str, Any]]
PATIENCE = 1.0  # seconds that a scrape waits for a busy event loop to say where its limits stand


class GatewayMetrics:
    """An observer that counts for Prometheus, in a registry of its own or in a given one.

    After `watch(gateway)` the registry also tells what waits, what is under way and where the limits stand.

    The first `max_agents` agents have series of their own, and all others share those of agent "other". Models,
    deployments and kinds of error are as many as the configuration and the code have.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, max_agents: int = 100) -> None:
        """Register all metrics. Raises ValueError if the registry has them already."""
        self.registry = CollectorRegistry() if registry is None else registry
        self._max_agents = max_agents
        self._agents: set[str] = set()
        self.registry.register(self._make())
        self._standing = _Standing()
        self.registry.register(self._standing)
        self._count: Mapping[type[Event], Callable[[Any], None]] = {
            RequestQueued: self._queued,
            BatchClosed: self._closed,
            AttemptBegan: self._began,
            AttemptFailed: self._failed,
            RetryScheduled: self._retried,
            RequestDone: self._done,
        }

    def _make(self) -> Tallies:
        seconds = "llm_gateway_queue_wait_seconds", "Time of a request in the queue and between its attempts."
        self._waits = Spreads(*seconds, ("model", "priority"), SECONDS)
        seconds = "llm_gateway_provider_seconds", "Time of a request in provider calls, all its attempts together."
        self._provider = Spreads(*seconds, ("model",), SECONDS)
        self._first = Spreads(
            "llm_gateway_time_to_first_token_seconds",
            "From the beginning of a streamed request's last call to its first piece of content.",
            ("model",),
            SECONDS,
        )
        sizes = "llm_gateway_batch_size", "Requests that left for the provider together."
        self._sizes = Spreads(*sizes, ("model",), SIZES)
        self._requests = Sums(
            "llm_gateway_requests",
            'Requests that ended. The outcome is "ok", "cancelled" or the kind of the error.',
            ("model", "priority", "outcome"),
        )
        self._attempts = Sums("llm_gateway_attempts", "Provider calls that began.", ("model", "deployment"))
        self._errors = Sums(
            "llm_gateway_attempt_errors",
            'Provider calls that failed, by kind of error; a 429 is "rate_limit".',
            ("model", "deployment", "kind"),
        )
        self._retries = Sums("llm_gateway_retries", "Repetitions that were decided on.", ("model", "kind"))
        self._tokens = Sums(
            "llm_gateway_tokens",
            "Tokens as the provider counted them; cache_read and cache_write are parts of input.",
            ("model", "agent", "type"),
        )
        self._cost = Sums("llm_gateway_cost_dollars", "Sum of the known costs in US dollars.", ("model", "agent"))
        self._cached = Sums("llm_gateway_cached_requests", "Requests answered from the cache.", ("model",))
        self._saved = Sums(
            "llm_gateway_saved_dollars",
            "What the answers from the cache cost when they were made.",
            ("model", "agent"),
        )
        return Tallies([each for each in vars(self).values() if isinstance(each, Sums | Spreads)])

    def watch(self, gateway: LLMGateway) -> None:
        """Ask `gateway` at each scrape where it stands; in place of another one, if there was one."""
        self._standing.gateway = gateway

    def serve(self, port: int = 9464, *, host: str = "127.0.0.1") -> MetricsServer:
        """Serve the registry at http://host:port/metrics from a thread until it is closed; port 0 takes a free one.

        Raises ConfigurationError if the address cannot be used.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            reason = f"Metrics cannot be served at {host}:{port}: {error.strerror}; give another host or port."
            raise ConfigurationError(reason) from None
        return MetricsServer(server, thread)

    def observe(self, event: Event, /) -> None:
        """Count one event."""
        count = self._count.get(type(event))
        if count is not None:
            count(event)

    # --- events -------------------------------------------------------------------------------------------------

    def _queued(self, _event: RequestQueued) -> None:
        self._standing.loop = asyncio.get_running_loop()

    def _closed(self, event: BatchClosed) -> None:
        self._sizes[event.model,].add(event.size)

    def _began(self, event: AttemptBegan) -> None:
        self._attempts[event.model, event.deployment] += 1

    def _failed(self, event: AttemptFailed) -> None:
        self._errors[event.model, event.deployment, event.kind] += 1

    def _retried(self, event: RetryScheduled) -> None:
        self._retries[event.model, event.kind] += 1

    def _done(self, event: RequestDone) -> None:
        model, priority = event.model, PRIORITIES[event.priority]
        self._requests[model, priority, event.outcome] += 1
        self._waits[model, priority].add(event.queue_wait)
        if event.attempt and event.price_lane != "batch":  # which takes hours, and says nothing of the provider
            self._provider[model,].add(event.provider_time)
        if event.time_to_first_token is not None:
            self._first[model,].add(event.time_to_first_token)
        agent = self._agent(event.agent)
        if event.cost_usd is not None:
            self._cost[model, agent] += event.cost_usd
        if event.cached:
            self._cached[model,] += 1
            self._saved[model, agent] += event.saved_usd or 0.0
        usage = event.usage
        if usage is None:
            return
        tokens = self._tokens
        tokens[model, agent, "input"] += usage.input_tokens
        tokens[model, agent, "output"] += usage.output_tokens
        if usage.cache_read_tokens:
            tokens[model, agent, "cache_read"] += usage.cache_read_tokens
        if usage.cache_write_tokens:
            tokens[model, agent, "cache_write"] += usage.cache_write_tokens

    def _agent(self, agent: str | None) -> str:
        """Return the label of an agent: its name, "other" if there are too many, "" where none is named."""
        if agent is None or agent in self._agents:
            return agent or ""
        if len(self._agents) == self._max_agents:
            return OTHER
        self._agents.add(agent)
        return agent


class MetricsServer:
    """The HTTP endpoint of a registry. Closing it, or leaving its `with` block, frees the port."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class _Standing(Collector):
    """Where a gateway stands at the moment of a scrape."""

    def __init__(self) -> None:
        self.gateway: LLMGateway | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # that the gateway's limits live in
        self._used: dict[tuple[str, ...], float] = {}

    def describe(self) -> Iterator[Metric]:
        """Name nothing in advance: registering must not ask the gateway."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, and how much of each limit was used."""
        if self.gateway is None:
            return
        stats = self._stats(self.gateway)
        queued = GaugeMetricFamily(
            "llm_gateway_queued_requests",
            "Requests that wait, for their first attempt or a retry.",
            labels=["priority"],
        )
        for priority in ("high", "normal", "low"):
            queued.add_metric([priority], stats["queued"][priority])
        yield queued
        yield GaugeMetricFamily(
            "llm_gateway_in_flight_requests", "Requests in the provider's hands.", value=stats["in_flight"]
        )
        if "cache" in stats:
            yield _cache_metric(stats["cache"])
        standings = list(_by_deployment(self.gateway, stats.get("pace", {})))
        yield from self._budgets(stats.get("budgets", {}))
        yield from self._openness(standings)
        yield from self._limits(standings)

    def _budgets(self, accounts: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
        """Yield what became of every budget that was touched."""
        spent = GaugeMetricFamily("llm_gateway_budget_spent_dollars", "US dollars that were spent.", labels=["budget"])
        reserved = GaugeMetricFamily(
            "llm_gateway_budget_reserved_dollars",
            "US dollars that the calls under way may cost at worst.",
            labels=["budget"],
        )
        left = GaugeMetricFamily(
            "llm_gateway_budget_left_dollars",
            "US dollars that may still be spent, beside those that are reserved.",
            labels=["budget"],
        )
        for name in islice(accounts, MOST_BUDGETS):
            for family, figure in ((spent, "spent"), (reserved, "reserved"), (left, "left")):
                family.add_metric([name], accounts[name][figure])
        yield from (spent, reserved, left)

    def _openness(self, standings: Sequence[_DeploymentStanding]) -> Iterator[Metric]:
        """Yield what keeps calls from beginning at all."""
        names = ["model", "deployment"]
        gate = GaugeMetricFamily(
            "llm_gateway_gate_shut_seconds", "Seconds until calls may begin again after a 429.", labels=names
        )
        breaker = GaugeMetricFamily(
            "llm_gateway_breaker_state", "1 for the state that the breaker is in.", labels=[*names, "state"]
        )
        for where, standing in standings:
            gate.add_metric(where, standing["gate"])
            for state in ("closed", "open", "half-open"):
                breaker.add_metric([*where, state], standing["breaker"] == state)
        yield from (gate, breaker)

    def _limits(self, standings: Sequence[_DeploymentStanding]) -> Iterator[Metric]:
        """Yield the metrics of every limit; those of an account are called `account_…`."""
        names = ["model", "deployment", "limit"]
        rate = GaugeMetricFamily("llm_gateway_limit_permits_per_second", "Permits that come back.", labels=names)
        level = GaugeMetricFamily(
            "llm_gateway_limit_permits", "Permits that are there now; negative: a debt.", labels=names
        )
        used = CounterMetricFamily("llm_gateway_limit_used_permits", "Permits that calls used up.", labels=names)
        waits = CounterMetricFamily("llm_gateway_limit_waits", "How often a call had to wait for it.", labels=names)
        for where, standing in standings:
            for name, limit in standing["limits"].items():
                labels = (*where, name)
                rate.add_metric(labels, limit["per_second"])
                level.add_metric(labels, limit["level"])
                # What is reserved may come back; what a call was charged in the end does not.
                used.add_metric(labels, self._settled(labels, limit["used"] - limit["reserved"]))
                waits.add_metric(labels, limit["waits"])
        yield from (rate, level, used, waits)

    def _settled(self, labels: tuple[str, ...], used: float) -> float:
        """Return `used` without the rounding that would let a counter fall; it falls where the count began anew."""
        before = self._used.get(labels, 0.0)
        now = self._used[labels] = used if used < before - 1 else max(used, before)
        return now

    def _stats(self, gateway: LLMGateway) -> dict[str, Any]:
        """Ask the gateway on its own loop, which alone knows the limits; without them if the loop is busy or gone."""
        loop = self.loop
        if loop is None or not loop.is_running() or loop is _loop_of_this_thread():
            return gateway.get_stats()
        told: Future[dict[str, Any]] = Future()
        try:
            loop.call_soon_threadsafe(lambda: told.set_result(gateway.get_stats()))
            return told.result(PATIENCE)
        except (RuntimeError, TimeoutError):  # closed at this very moment, or somebody blocks it
            return gateway.get_stats()


def _cache_metric(figures: Mapping[str, int]) -> Metric:
    """Return what came of looking into the cache and keeping answers there."""
    metric = CounterMetricFamily(
        "llm_gateway_cache", "Answers looked for in the cache, and kept there or not, by outcome.", labels=["outcome"]
    )
    for outcome, times in figures.items():
        metric.add_metric([outcome], times)
    return metric


def _by_deployment(gateway: LLMGateway, paces: Mapping[str, Mapping[str, Any]]) -> Iterator[_DeploymentStanding]:
    """Yield where each deployment of each model stands, with the values of the labels model and deployment."""
    for model, own in paces.items():
        settings = gateway.config.model(model)
        yield (model, f"{settings.provider}/{settings.model}"), own
        for label, further in own.get("deployments", {}).items():
            yield (model, label), further


def _loop_of_this_thread() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
