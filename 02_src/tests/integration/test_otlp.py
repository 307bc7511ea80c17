"""What reaches a collector of OpenTelemetry over HTTP, through the SDK's own exporters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from fakes.emulator import Emulator, Reply
from fakes.otlp import Collector, collecting
from llm_gateway import LLMGateway, LLMMessage, LLMRequest
from llm_gateway.integrations.opentelemetry import GatewayTelemetry

KEY = "sk-canary-0f9a7e21"
PROMPT = "the canary prompt 8086"
ANSWER = "the canary answer 4004"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def told(span: Span) -> Mapping[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


async def watched(collector: Collector, emulator: Emulator, *, text: bool) -> None:
    """Ask twice inside an agent's span, the first call failing once; return when all is exported."""
    collector.bodies.clear()
    spans = TracerProvider(shutdown_on_exit=False)
    spans.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{collector.url}/v1/traces", compression=Compression.Gzip))
    )
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{collector.url}/v1/metrics"), 3_600_000)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    telemetry = GatewayTelemetry(tracer_provider=spans, meter_provider=meters, with_text=text)
    emulator.script(
        Reply(status=500, error={"message": f"never with {PROMPT} and {KEY}"}), Reply(text=ANSWER), Reply(text=ANSWER)
    )
    config = {
        "providers": {"openai": {"base_url": f"{emulator.url}/v1", "api_key": KEY}},
        "models": {"gpt-4o-mini": {"max_concurrency": 1}},
        "logs": {"dir": False, "text": text},
        "retry": {"base_delay": 0.0},
    }
    asked = [
        LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content=PROMPT)], request_id=name, agent="a")
        for name in ("first", "second")
    ]
    async with LLMGateway(config, observers=[telemetry]) as gateway:
        with spans.get_tracer("application").start_as_current_span("agent"):
            await gateway.batch(asked)
    await asyncio.to_thread(spans.shutdown)
    await asyncio.to_thread(meters.shutdown)


async def test_a_collector_gets_the_tree_of_spans_and_the_metrics_without_a_key_or_a_text(
    collector: Collector, emulator: Emulator
) -> None:
    await watched(collector, emulator, text=False)
    spans = collector.spans
    (agent,) = [span for span in spans.values() if span.name == "agent"]
    requests = {
        told(span)["llm_gateway.request.id"]: span for span in spans.values() if span.parent_span_id == agent.span_id
    }
    assert {span.name for span in requests.values()} == {"chat gpt-4o-mini"}
    below = {
        name: [span for span in spans.values() if span.parent_span_id == request.span_id]
        for name, request in requests.items()
    }
    assert {name: [span.name for span in found] for name, found in below.items()} == {
        "first": ["attempt", "attempt"],
        "second": ["attempt"],
    }
    assert len(spans) == 6
    assert {span.trace_id for span in spans.values()} == {agent.trace_id}
    assert told(below["first"][0])["http.response.status_code"] == 500
    assert told(requests["first"])["llm_gateway.attempts"] == 2
    assert [event.name for event in requests["first"].events] == [
        "llm_gateway.queue.left",
        "llm_gateway.retry.scheduled",
        "llm_gateway.queue.left",
    ]
    assert set(collector.metrics) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.token.usage",
        "llm_gateway.cost",
        "llm_gateway.queue.wait",
    }
    (durations,) = collector.metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert durations.count == 2
    for _, body in collector.bodies:
        for planted in (KEY, PROMPT, ANSWER):
            assert planted.encode() not in body


async def test_a_collector_gets_the_texts_where_they_are_asked_for_and_keys_never(
    collector: Collector, emulator: Emulator
) -> None:
    await watched(collector, emulator, text=True)
    sent = b"".join(body for path, body in collector.bodies if path == "/v1/traces")
    measured = b"".join(body for path, body in collector.bodies if path == "/v1/metrics")
    assert PROMPT.encode() in sent
    assert ANSWER.encode() in sent
    assert PROMPT.encode() not in measured
    assert KEY.encode() not in sent + measured
