from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, unavailable
from llm_gateway import (
    DeadlineExceededError,
    LLMGateway,
    LLMMessage,
    LLMRequest,
    LLMToolCall,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RequestPriority,
)
from llm_gateway.events import AttemptBegan, AttemptFailed, Event, RequestDone, RequestQueued, RetryScheduled
from llm_gateway.integrations.opentelemetry import GatewayTelemetry

WITH_TEXT = {"dir": False, "text": True}


@dataclass
class Watched:
    """What an application that watches its gateway has."""

    telemetry: GatewayTelemetry
    tracer: trace.Tracer
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @classmethod
    def make(cls, *, with_text: bool = False, sampler: Sampler = ALWAYS_ON) -> Watched:
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        spans = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        meters = MeterProvider([reader], shutdown_on_exit=False)
        spans.add_span_processor(SimpleSpanProcessor(exporter))
        telemetry = GatewayTelemetry(tracer_provider=spans, meter_provider=meters, with_text=with_text)
        return cls(telemetry, spans.get_tracer("application"), exporter, reader)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that ended, in the order of their beginning."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def only(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def watched() -> Watched:
    return Watched.make()


def told(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


async def test_a_request_is_one_span_below_the_callers_and_an_attempt_one_below_it(watched: Watched) -> None:
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        with watched.tracer.start_as_current_span("agent"):
            await gateway.request(ask("a"))
    agent, request, attempt = watched.spans
    assert [agent.name, request.name, attempt.name] == ["agent", "chat gpt-4o-mini", "attempt"]
    assert [parent_of(request), parent_of(attempt)] == [id_of(agent), id_of(request)]
    assert request.kind is SpanKind.CLIENT
    assert request.status.status_code is StatusCode.UNSET
    assert dict(told(request)) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "llm_gateway.attempts": 1,
        "llm_gateway.cost_usd": pytest.approx(10 * 0.15e-6 + 5 * 0.6e-6),
        "llm_gateway.deployment": "openai/gpt-4o-mini",
        "llm_gateway.queue.wait": 0.0,
        "llm_gateway.request.id": "a",
        "llm_gateway.request.priority": "normal",
    }
    assert told(attempt)["llm_gateway.attempt"] == 1
    assert not any(name.startswith("gen_ai.") for name in told(attempt))


async def test_each_of_a_batch_belongs_to_the_span_of_the_caller_that_submitted_it(watched: Watched) -> None:
    async def agent(name: str) -> None:
        with watched.tracer.start_as_current_span(name):
            await gateway.request(ask(name))

    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        await asyncio.gather(agent("one"), agent("two"))
        with watched.tracer.start_as_current_span("three"):
            await gateway.batch([ask("three")])
    requests = [span for span in watched.spans if span.name.startswith("chat")]
    parents = {told(span)["llm_gateway.request.id"]: parent_of(span) for span in requests}
    assert parents == {name: id_of(watched.only(name)) for name in ("one", "two", "three")}


async def test_a_retry_is_a_second_attempt_below_the_same_request(watched: Watched) -> None:
    provider = FakeProvider(script=[rate_limited(retry_after=20.0), "ok"])
    async with gateway_over(provider, observers=[watched.telemetry]) as gateway:
        await gateway.request(ask("a"))
    request, first, second = watched.spans
    assert [parent_of(first), parent_of(second)] == [id_of(request)] * 2
    assert (told(first)["error.type"], told(first)["http.response.status_code"]) == ("rate_limit", 429)
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, None)
    assert second.status.status_code is StatusCode.UNSET
    assert request.status.status_code is StatusCode.UNSET
    left, retry, left_again = request.events
    assert [left.name, retry.name, left_again.name] == [
        "llm_gateway.queue.left",
        "llm_gateway.retry.scheduled",
        "llm_gateway.queue.left",
    ]
    assert dict(left.attributes or {}) == {"llm_gateway.queue.wait": 0.0}
    assert (retry.attributes or {})["llm_gateway.retry.wait"] >= 20.0  # type: ignore[operator]
    assert (left_again.attributes or {})["llm_gateway.queue.wait"] >= 20.0  # type: ignore[operator]


async def test_the_attempts_span_is_the_current_one_in_its_call_and_in_no_other(watched: Watched) -> None:
    seen: dict[str, int] = {}

    def look(request: LLMRequest) -> str:
        seen[request.request_id] = trace.get_current_span().get_span_context().span_id
        return "ok"

    async with gateway_over(FakeProvider(answer=look), observers=[watched.telemetry]) as gateway:
        await gateway.batch([ask("a"), ask("b")])
        assert trace.get_current_span() is trace.INVALID_SPAN
    by_id = {id_of(span): told(span).get("llm_gateway.request.id") for span in watched.spans}
    parents = {id_of(span): parent_of(span) for span in watched.spans if span.name == "attempt"}
    assert {name: by_id[parents[span] or 0] for name, span in seen.items()} == {"a": "a", "b": "b"}


def test_an_attempt_in_the_callers_own_task_leaves_the_callers_span_current(watched: Watched) -> None:
    names: dict[str, Any] = {"request_id": "a", "model": "m"}
    call = {**names, "batch_id": "b", "deployment": "p/m"}
    began = AttemptBegan(**call, provider="p", attempt=1, queue_wait=0.0)
    with watched.tracer.start_as_current_span("agent") as agent:
        watched.telemetry.observe(RequestQueued(**names, priority=RequestPriority.HIGH))
        watched.telemetry.observe(began)
        attempt = trace.get_current_span()
        assert attempt is not agent
        watched.telemetry.observe(
            AttemptFailed(**call, attempt=1, kind="timeout", status=None, message="", provider_time=1.0)
        )
        assert trace.get_current_span() is agent
    assert watched.only("attempt").get_span_context() == attempt.get_span_context()


async def test_a_trace_that_is_not_sampled_reaches_the_call_and_is_measured_all_the_same() -> None:
    watched = Watched.make(sampler=ParentBased(ALWAYS_OFF))
    seen: list[int] = []

    def look(_: LLMRequest) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    provider = FakeProvider(script=[rate_limited(), "ok", unavailable()], answer=look)
    async with gateway_over(provider, observers=[watched.telemetry]) as gateway:
        with watched.tracer.start_as_current_span("agent") as agent:
            await gateway.batch([ask("a"), ask("b")])
            assert trace.get_current_span() is agent
    assert set(seen) == {agent.get_span_context().trace_id}
    assert not watched.spans
    (duration,) = watched.points("gen_ai.client.operation.duration")
    assert (duration.count, duration.exemplars) == (2, [])


async def test_a_measurement_points_to_its_sampled_trace(watched: Watched) -> None:
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        await gateway.request(ask("a"))
    (duration,) = watched.points("gen_ai.client.operation.duration")
    (example,) = duration.exemplars
    assert example.span_id == id_of(watched.only("chat gpt-4o-mini"))


async def test_where_nobody_collects_a_bounded_number_of_requests_waits_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm_gateway.integrations.otel_measures.MOST_AT_FIRST", 3)
    monkeypatch.setattr("llm_gateway.integrations.otel_measures.MOST", 5)
    watched = Watched.make()
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        for round_ in (1, 2):
            for number in range(20):
                await gateway.request(ask(f"{round_} {number}"))
            for _ in range(2):  # a second collection records nothing twice
                assert [point.count for point in watched.points("gen_ai.client.operation.duration")] == [20 * round_]
                (cost,) = watched.points("llm_gateway.cost")
                assert cost.value == pytest.approx(20 * round_ * (10 * 0.15e-6 + 5 * 0.6e-6))


async def test_what_waits_to_be_recorded_keeps_no_span_in_memory() -> None:
    spans = TracerProvider(shutdown_on_exit=False)
    kept: list[weakref.ref[trace.Span]] = []

    def look(_: LLMRequest) -> None:
        kept.append(weakref.ref(trace.get_current_span()))

    telemetry = GatewayTelemetry(tracer_provider=spans, meter_provider=MeterProvider(shutdown_on_exit=False))
    async with gateway_over(FakeProvider(answer=look), observers=[telemetry]) as gateway:
        await gateway.batch([ask("a"), ask("b")])
    gc.collect()
    assert [span() for span in kept] == [None, None]


async def test_collections_in_another_thread_lose_nothing_and_count_nothing_twice(watched: Watched) -> None:
    ended = threading.Event()

    def collect() -> None:
        while not ended.wait(0.001):
            watched.reader.get_metrics_data()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        await gateway.batch([ask(str(number)) for number in range(300)])
    ended.set()
    collecting.join()
    (wait,) = watched.points("llm_gateway.queue.wait")
    assert wait.count == 300


async def test_two_observers_of_one_meter_provider_are_both_collected() -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    watched = Watched.make()
    watched.reader = reader
    for name in ("one", "two"):
        async with gateway_over(FakeProvider(), observers=[GatewayTelemetry(meter_provider=meters)]) as gateway:
            await gateway.request(ask(name))
    (wait,) = watched.points("llm_gateway.queue.wait")
    assert wait.count == 2


def test_only_the_metrics_of_the_page_are_exported(watched: Watched) -> None:
    watched.telemetry.observe(RequestQueued(request_id="a", model="m", priority=RequestPriority.HIGH))
    assert watched.reader.get_metrics_data() is None


async def test_a_request_that_failed_is_a_span_with_its_error(watched: Watched) -> None:
    provider = FakeProvider(answer=lambda _: unavailable())
    async with gateway_over(provider, observers=[watched.telemetry], retry={"max_attempts": 1}) as gateway:
        with pytest.raises(ProviderUnavailableError):
            await gateway.request(ask("a"))
    request = watched.only("chat gpt-4o-mini")
    assert told(request)["error.type"] == "unavailable"
    assert request.status.status_code is StatusCode.ERROR
    assert "gen_ai.response.model" not in told(request)
    (duration,) = watched.points("gen_ai.client.operation.duration")
    assert duration.attributes["error.type"] == "unavailable"


async def test_an_attempt_without_an_http_answer_has_no_status_code(watched: Watched) -> None:
    timeout = ProviderTimeoutError("slow", provider="openai", model="m")
    async with gateway_over(FakeProvider(script=[timeout, "ok"]), observers=[watched.telemetry]) as gateway:
        await gateway.request(ask("a"))
    failed = watched.spans[1]
    assert told(failed)["error.type"] == "timeout"
    assert "http.response.status_code" not in told(failed)


async def test_an_attempt_that_a_deadline_cuts_off_ends_with_its_request(watched: Watched) -> None:
    async with gateway_over(FakeProvider(latency=lambda _: 9.0), observers=[watched.telemetry]) as gateway:
        with pytest.raises(DeadlineExceededError):
            await gateway.request(ask("a", deadline=2.0))
    assert [told(span)["error.type"] for span in watched.spans] == ["deadline", "deadline"]


async def test_a_caller_that_leaves_is_no_failure(watched: Watched) -> None:
    async with gateway_over(FakeProvider(latency=lambda _: 9.0), observers=[watched.telemetry]) as gateway:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gateway.request(ask("a")), 2.0)
    request, attempt = watched.spans
    assert [told(span)["error.type"] for span in (request, attempt)] == ["cancelled", "cancelled"]
    assert [span.status.status_code for span in (request, attempt)] == [StatusCode.UNSET, StatusCode.UNSET]


async def test_a_request_that_never_left_the_queue_has_no_attempt(watched: Watched) -> None:
    models = {"gpt-4o-mini": {"max_concurrency": 1}}
    provider = FakeProvider(latency=lambda _: 9.0)
    async with gateway_over(provider, observers=[watched.telemetry], models=models) as gateway:
        first = asyncio.create_task(gateway.request(ask("first")))
        await asyncio.sleep(1.0)
        with pytest.raises(DeadlineExceededError):
            await gateway.request(ask("late", deadline=2.0))
        await first
    late = next(span for span in watched.spans if told(span).get("llm_gateway.request.id") == "late")
    assert told(late)["gen_ai.provider.name"] == "openai"
    assert told(late)["llm_gateway.queue.wait"] == 2.0
    assert id_of(late) not in {parent_of(span) for span in watched.spans}


async def test_the_metrics_are_those_of_the_conventions_and_two_of_ours(watched: Watched) -> None:
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        await gateway.request(ask("a").model_copy(update={"agent": "indexer"}))
    labels = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini",
    }
    (duration,) = watched.points("gen_ai.client.operation.duration")
    assert isinstance(duration, HistogramDataPoint)
    assert (duration.sum, duration.attributes) == (1.0, labels)
    assert duration.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    tokens = {point.attributes["gen_ai.token.type"]: point for point in watched.points("gen_ai.client.token.usage")}
    assert {kind: point.sum for kind, point in tokens.items()} == {"input": 10, "output": 5}
    assert tokens["input"].explicit_bounds[-1] == 67108864
    (wait,) = watched.points("llm_gateway.queue.wait")
    assert wait.sum == 0.0
    (cost,) = watched.points("llm_gateway.cost")
    assert isinstance(cost, NumberDataPoint)
    assert cost.value == pytest.approx(10 * 0.15e-6 + 5 * 0.6e-6)
    assert told(watched.only("chat gpt-4o-mini"))["gen_ai.agent.name"] == "indexer"


def test_the_time_to_the_first_token_of_a_stream_is_in_its_span_and_measured(watched: Watched) -> None:
    watched.telemetry.observe(RequestQueued(request_id="a", model="m", priority=RequestPriority.HIGH))
    watched.telemetry.observe(
        RequestDone(
            request_id="a",
            model="m",
            batch_id="b",
            deployment="p/m",
            priority=RequestPriority.HIGH,
            outcome="ok",
            attempt=1,
            queue_wait=0.0,
            provider_time=2.0,
            time_to_first_token=0.5,
        )
    )
    assert told(watched.only("chat m"))["gen_ai.response.time_to_first_chunk"] == 0.5
    assert told(watched.only("chat m"))["gen_ai.request.stream"] is True
    (first,) = watched.points("gen_ai.client.operation.time_to_first_chunk")
    assert first.sum == 0.5


async def test_a_kind_of_provider_bears_the_conventions_name(watched: Watched) -> None:
    sections = {"eu": {"kind": "azure_openai", "base_url": "http://127.0.0.1:9"}}
    models = {"mine": {"provider": "eu", "model": "my-deployment"}}
    async with gateway_over(
        FakeProvider(), observers=[watched.telemetry], providers=sections, models=models
    ) as gateway:
        await gateway.request(ask("a", model="mine"))
    request = watched.only("chat mine")
    assert told(request)["gen_ai.provider.name"] == "azure.ai.openai"
    assert told(request)["gen_ai.response.model"] == "my-deployment"


CONVERSATION = LLMRequest(
    model="gpt-4o-mini",
    messages=[
        LLMMessage(
            role="user", content=[{"type": "text", "text": "the canary prompt"}, {"type": "image", "data": b"1"}]
        ),
        LLMMessage(role="assistant", tool_calls=[LLMToolCall(id="1", name="look", arguments={"at": "canary"})]),
        LLMMessage(role="tool", content="the canary result", tool_call_id="1"),
    ],
)


async def test_texts_are_in_spans_only_where_they_are_asked_for(watched: Watched) -> None:
    asked = Watched.make(with_text=True)
    observers = [watched.telemetry, asked.telemetry]
    provider = FakeProvider(script=[unavailable(), "the canary answer"])
    async with gateway_over(provider, observers=observers, logs=WITH_TEXT) as gateway:
        await gateway.request(CONVERSATION)
    assert "canary" not in "".join(span.to_json() for span in watched.spans)
    assert watched.spans[1].status.description is None
    assert asked.spans[1].status.description == "down"
    request = told(asked.only("chat gpt-4o-mini"))
    assert json.loads(request["gen_ai.input.messages"]) == [
        {
            "role": "user",
            "parts": [{"type": "text", "content": "the canary prompt"}, {"type": "image", "data": "[1 bytes]"}],
        },
        {
            "role": "assistant",
            "parts": [
                {"type": "text", "content": ""},
                {"type": "tool_call", "id": "1", "name": "look", "arguments": {"at": "canary"}},
            ],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": "the canary result"}]},
    ]
    assert json.loads(request["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "the canary answer"}],
            "finish_reason": "stop",
        }
    ]


async def test_no_text_is_there_to_be_told_where_the_gateway_hands_none_out() -> None:
    asked = Watched.make(with_text=True)
    async with gateway_over(FakeProvider(), observers=[asked.telemetry]) as gateway:
        await gateway.request(CONVERSATION)
    assert "canary" not in "".join(span.to_json() for span in asked.spans)


async def test_two_requests_of_one_id_share_a_span_and_are_both_measured(watched: Watched) -> None:
    async with gateway_over(FakeProvider(), observers=[watched.telemetry]) as gateway:
        await asyncio.gather(gateway.request(ask("same")), gateway.request(ask("same")))
    assert len([span for span in watched.spans if span.name.startswith("chat")]) == 1
    (duration,) = watched.points("gen_ai.client.operation.duration")
    assert duration.count == 2


@pytest.mark.parametrize(
    "late",
    [
        AttemptFailed(
            request_id="gone",
            batch_id="b",
            model="m",
            deployment="p/m",
            attempt=1,
            kind="timeout",
            status=None,
            message="",
            provider_time=1.0,
        ),
        RetryScheduled(request_id="gone", model="m", attempt=1, wait=1.0, kind="timeout"),
        AttemptBegan(
            request_id="gone",
            batch_id="b",
            model="m",
            deployment="p/m",
            provider="p",
            attempt=2,
            queue_wait=1.0,
        ),
    ],
    ids=lambda event: event.name,
)
def test_what_is_told_of_a_request_after_its_end_makes_no_span(watched: Watched, late: Event) -> None:
    watched.telemetry.observe(late)
    assert not watched.spans


async def test_without_a_configured_sdk_nothing_is_recorded_and_nothing_fails() -> None:
    async with gateway_over(FakeProvider(), observers=[GatewayTelemetry(with_text=True)], logs=WITH_TEXT) as gateway:
        assert (await gateway.request(ask("a"))).content == "ok"


async def test_texts_of_two_callers_in_one_call_are_a_span_of_each_in_its_own_trace(watched: Watched) -> None:
    models = {"e": {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}}

    async def embed(gateway: LLMGateway, agent: str) -> None:
        with watched.tracer.start_as_current_span(agent):
            await gateway.embed(["a text"], model="e", agent=agent)

    provider = FakeProvider()
    async with gateway_over(provider, observers=[watched.telemetry], models=models) as gateway:
        await asyncio.gather(embed(gateway, "one"), embed(gateway, "two"))
    assert len(provider.ledger) == 1
    found = [span for span in watched.spans if span.name == "embeddings e"]
    assert [parent_of(span) for span in found] == [id_of(watched.only("one")), id_of(watched.only("two"))]
    assert {told(span)["gen_ai.operation.name"] for span in found} == {"embeddings"}
    assert {point.attributes["gen_ai.operation.name"] for point in watched.points("gen_ai.client.token.usage")} == {
        "embeddings"
    }
    attempts = [span for span in watched.spans if span.name == "attempt"]
    assert [parent_of(span) for span in attempts] == [id_of(span) for span in found]
    assert len({told(span)["llm_gateway.batch.id"] for span in attempts}) == 1
