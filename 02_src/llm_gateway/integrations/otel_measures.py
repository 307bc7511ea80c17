"""The metrics of OpenTelemetry, recorded when somebody collects them.

An SDK cleans, sorts and hashes all attributes at each measurement, four or five of them a request: more than all else
that is told of it. So a request only leaves its figures here, and the thread that collects records them first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from opentelemetry import context as contexts
from opentelemetry import metrics, trace

DURATION_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_BOUNDS = tuple(4**power for power in range(14))

MOST = 10_000  # requests that wait to be recorded; about 4 MB
MOST_AT_FIRST = 1000  # before the first collection, since there may never be one
BREATH = 16  # requests that are recorded before other threads get their turn

EMPTY = contexts.Context()

_numbers = count(1)


class Kind(NamedTuple):
    """What requests have in common whose figures belong to the same series."""

    operation: str
    provider: str
    model: str
    answered: str  # the model that did
    priority: str
    error: str | None


class Figures(NamedTuple):
    """What is measured of a request. Durations in seconds."""

    kind: Kind
    duration: float
    wait: float
    first: float | None
    tokens: tuple[int, int] | None  # input, output
    cost: float | None
    span: trace.SpanContext | None  # None: its trace is not sampled, so it serves as no example


class _Series:
    """The attributes of one kind of request, made once."""

    __slots__ = ("input", "output", "request", "result", "wait")

    def __init__(self, kind: Kind) -> None:
        # Ours has few: an SDK cleans and hashes all of them at every measurement.
        self.wait = {"gen_ai.request.model": kind.model, "llm_gateway.request.priority": kind.priority}
        self.request = {
            "gen_ai.operation.name": kind.operation,
            "gen_ai.provider.name": kind.provider,
            "gen_ai.request.model": kind.model,
            "gen_ai.response.model": kind.answered,
        }
        self.input = self.request | {"gen_ai.token.type": "input"}
        self.output = self.request | {"gen_ai.token.type": "output"}
        self.result = self.request if kind.error is None else self.request | {"error.type": kind.error}


class Measures:
    """The instruments of a gateway, and what they have not been told yet.

    Nothing is missing from a collection: it begins with recording what waits. Where nobody collects, or too seldom,
    `MOST` requests wait, or `MOST_AT_FIRST`, and each further one has the oldest recorded.
    """

    def __init__(self, meter: metrics.Meter) -> None:
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="From the submission of a request to its end, waiting and retries included.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of a request, as the provider counted them.",
            explicit_bucket_boundaries_advisory=TOKEN_BOUNDS,
        )
        self._wait = meter.create_histogram(
            "llm_gateway.queue.wait",
            unit="s",
            description="Time of a request in the queue and between its attempts.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._first = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="From the beginning of a streamed request's last call to its first piece of content.",
            explicit_bucket_boundaries_advisory=FIRST_BOUNDS,
        )
        self._cost = meter.create_counter(
            "llm_gateway.cost", unit="{USD}", description="Sum of the known costs in US dollars."
        )
        # It observes nothing and is never exported: a collection asks its callback before it looks at the others. Its
        # name is its own, since a meter gives a second gateway the instrument of the first, without the callback.
        meter.create_observable_counter(f"llm_gateway.collection.{next(_numbers)}", callbacks=[self._collected])
        self._waiting: deque[Figures] = deque()
        self._most = MOST_AT_FIRST
        self._series: dict[Kind, _Series] = {}

    def add(self, figures: Figures) -> None:
        """Keep what was measured of a request until somebody collects."""
        self._waiting.append(figures)
        if len(self._waiting) > self._most:
            self._record(1)

    def _collected(self, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        """Record all that waits now."""
        self._most = MOST
        left = len(self._waiting)
        while left > 0:
            self._record(min(left, BREATH))
            left -= BREATH
            time.sleep(0)  # whoever waits for the interpreter would wait for all of this
        return iter(())

    def _record(self, most: int) -> None:
        """Record the oldest requests; what can be summed is told once."""
        costs: dict[str, float] = {}
        for _ in range(most):
            try:
                figures = self._waiting.popleft()
            except IndexError:  # another thread recorded it
                break
            self._record_one(figures)
            if figures.cost is not None:
                costs[figures.kind.model] = costs.get(figures.kind.model, 0.0) + figures.cost
        for model, cost in costs.items():
            self._cost.add(cost, {"gen_ai.request.model": model})

    def _record_one(self, figures: Figures) -> None:
        kind, duration, wait, first, tokens, _, span = figures
        # Nothing but the span's ids: what waits must not keep whole spans, with their texts, in memory.
        context = None if span is None else trace.set_span_in_context(trace.NonRecordingSpan(span), EMPTY)
        series = self._series.get(kind) or self._series.setdefault(kind, _Series(kind))
        if tokens is not None:
            self._tokens.record(tokens[0], series.input, context)
            self._tokens.record(tokens[1], series.output, context)
        if first is not None:
            self._first.record(first, series.request, context)
        self._wait.record(wait, series.wait, context)
        self._duration.record(duration, series.result, context)
