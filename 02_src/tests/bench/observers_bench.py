"""What observers cost: CPU a request, beside that of the whole gateway with a real client.

`python 02_src/tests/bench/observers_bench.py` prints a table. Observers are called between the awaits of the gateway:
the events of one run are kept and handed to each observer anew, and that is all they cost, without a network's noise.
The least of several rounds counts. The provider is the tests' emulator in a thread of its own; the time of the main
thread alone is counted.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased

from fakes.emulator_thread import emulator_in_a_thread
from fakes.provider import Recorder
from llm_gateway import LLMGateway, LLMMessage, LLMRequest
from llm_gateway.events import Event, Observer
from llm_gateway.integrations.logging import GatewayLog
from llm_gateway.integrations.opentelemetry import GatewayTelemetry
from llm_gateway.integrations.prometheus import GatewayMetrics

REQUESTS = 400
ROUNDS = 5


class Nowhere(SpanExporter):
    """Takes every span and keeps none."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


def telemetry(sampler: Sampler) -> GatewayTelemetry:
    """Spans that a background thread exports, and metrics, as an application would have them."""
    spans = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return GatewayTelemetry(tracer_provider=spans, meter_provider=meters)


SUBJECTS: dict[str, Callable[[], Observer]] = {
    "GatewayMetrics": GatewayMetrics,
    "GatewayLog, level WARNING": GatewayLog,
    "GatewayTelemetry without an SDK": GatewayTelemetry,
    "GatewayTelemetry, 1 % of the traces": lambda: telemetry(TraceIdRatioBased(0.01)),
    "GatewayTelemetry, all traces": lambda: telemetry(ALWAYS_ON),
}


async def cpu_of_the_gateway(url: str, recorder: Recorder) -> float:
    """Return microseconds of this thread's CPU a request; the recorder has the events of the last run."""
    provider = {"base_url": f"{url}/v1", "api_key": "sk-of-the-emulator"}
    messages = [LLMMessage(role="user", content="hello")]
    requests = [LLMRequest(model="gpt-4o-mini", messages=messages, agent="a") for _ in range(REQUESTS)]
    config = {"providers": {"openai": provider}, "logs": {"dir": False}}
    async with LLMGateway(config, observers=[recorder]) as gateway:
        await gateway.batch([LLMRequest(model="gpt-4o-mini", messages=messages) for _ in range(20)])
        recorder.events.clear()
        gc.collect()
        began = time.thread_time()
        await gateway.batch(requests)
        return (time.thread_time() - began) / REQUESTS * 1e6


async def cpu_of(observer: Observer, events: Sequence[Event]) -> float:
    """Return microseconds of this thread's CPU a request."""
    gc.collect()
    began = time.thread_time()
    for event in events:
        observer.observe(event)
    return (time.thread_time() - began) / REQUESTS * 1e6


def main() -> None:
    """Measure and print."""
    recorder = Recorder()
    with emulator_in_a_thread() as emulator:
        whole = min(asyncio.run(cpu_of_the_gateway(emulator.url, recorder)) for _ in range(ROUNDS))
    print(f"{'a request, client included':38} {whole:7.0f} us")  # noqa: T201
    for name, make in SUBJECTS.items():
        took = min(asyncio.run(cpu_of(make(), recorder.events)) for _ in range(ROUNDS))
        print(f"{name:38} {took:7.1f} us   {100 * took / whole:4.1f} %")  # noqa: T201


if __name__ == "__main__":
    main()
