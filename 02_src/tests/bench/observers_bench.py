"""What observers cost: CPU a request, beside that of the whole gateway with a real client.

`python 02_src/tests/bench/observers_bench.py` prints a table. Observers are called between the awaits of the gateway:
the events of one run are kept and handed to each observer anew, and that is all they cost, without a network's noise.
The least of several rounds counts. What an observer leaves for the thread that collects it stands in a column of its
own: that thread takes it from the same interpreter, but no request waits for it. The provider is the tests' emulator in
a thread of its own; the time of the main thread alone is counted.
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
from prometheus_client import generate_latest

from fakes.emulator_thread import emulator_in_a_thread
from fakes.provider import Recorder
from llm_gateway import LLMGateway, LLMMessage, LLMRequest
from llm_gateway.events import Event, Observer
from llm_gateway.integrations.logging import GatewayLog
from llm_gateway.integrations.opentelemetry import GatewayTelemetry
from llm_gateway.integrations.prometheus import GatewayMetrics

REQUESTS = 400
ROUNDS = 7


class Nowhere(SpanExporter):
    """Takes every span and keeps none."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


Collect = Callable[[], object]


def metrics() -> tuple[Observer, Collect]:
    """Metrics for Prometheus, and a scrape."""
    observer = GatewayMetrics()
    return observer, lambda: generate_latest(observer.registry)


def telemetry(sampler: Sampler) -> tuple[Observer, Collect]:
    """Spans that a background thread exports, and metrics, as an application would have them."""
    spans = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(Nowhere()))
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    return GatewayTelemetry(tracer_provider=spans, meter_provider=meters), reader.collect


SUBJECTS: dict[str, Callable[[], tuple[Observer, Collect]]] = {
    "GatewayMetrics": metrics,
    "GatewayLog, level WARNING": lambda: (GatewayLog(), lambda: None),
    "GatewayTelemetry without an SDK": lambda: (GatewayTelemetry(), lambda: None),
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


async def cpu_of(subject: tuple[Observer, Collect], events: Sequence[Event]) -> tuple[float, float]:
    """Return microseconds of this thread's CPU a request: where it is told, and where it is collected."""
    observer, collect = subject
    gc.collect()
    began = time.thread_time()
    for event in events:
        observer.observe(event)
    told = time.thread_time()
    collect()
    return (told - began) / REQUESTS * 1e6, (time.thread_time() - told) / REQUESTS * 1e6


def main() -> None:
    """Measure and print."""
    recorder = Recorder()
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in SUBJECTS}
    whole: list[float] = []
    with emulator_in_a_thread() as emulator:
        for _ in range(ROUNDS):  # one after the other, so that a busy machine is busy for all of them
            whole.append(asyncio.run(cpu_of_the_gateway(emulator.url, recorder)))
            for name, make in SUBJECTS.items():
                took[name].append(asyncio.run(cpu_of(make(), recorder.events)))
    print(f"{'a request, client included':38} {min(whole):7.0f} us")  # noqa: T201
    for name, rounds in took.items():
        told, collected = (min(column) for column in zip(*rounds, strict=True))
        share = 100 * told / min(whole)
        print(f"{name:38} {told:7.1f} us   {share:4.1f} %   and {collected:5.1f} us where it is collected")  # noqa: T201


if __name__ == "__main__":
    main()
