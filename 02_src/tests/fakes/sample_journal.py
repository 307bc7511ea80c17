"""A journal of an hour that could have been: seeded, so that every run reads the same.

`python sample_journal.py FOLDER` writes one to look at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from llm_gateway.config import LogSettings
from llm_gateway.events import (
    AttemptFailed,
    BatchClosed,
    BatchOpened,
    CloseReason,
    Event,
    RequestDone,
    RetryScheduled,
    ShutdownBegan,
    ShutdownEnded,
)
from llm_gateway.journal import Journal
from llm_gateway.models import RequestPriority, TokenUsage

START = datetime(2026, 11, 22, 9, 0, 0, 120_000, tzinfo=UTC)
HOUR = 3600.0
OUTAGE = (1500.0, 1680.0)  # seconds after the start, during which Anthropic is overloaded
PRIORITIES = tuple(RequestPriority)
LIMITS = (("rate_limit", 429), ("timeout", None), ("unavailable", 502))
REASONS: Sequence[CloseReason] = ("idle", "slots", "size", "wait")


@dataclass(frozen=True, slots=True)
class Model:
    """How one model of the sample behaves. Dollars for a million tokens; None where nobody knows."""

    name: str
    deployment: str
    share: float
    seconds: float
    input_price: float | None
    output_price: float | None


MODELS = (
    Model("gpt-4o-mini", "openai/gpt-4o-mini", 0.50, 0.9, 0.15, 0.60),
    Model("claude-sonnet", "anthropic/claude-sonnet-5-5", 0.25, 2.8, 3.0, 15.0),
    Model("claude-haiku", "anthropic/claude-haiku-5-5", 0.18, 0.7, 1.0, 5.0),
    Model("local-llama", "ollama/llama3.2", 0.07, 6.0, None, None),
)


@dataclass(slots=True)
class Sample:
    """Draws the batches of an hour, more of them in the middle, and what became of each request."""

    rng: Random
    models: Sequence[Model] = MODELS
    requests: int = 0
    ids: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def events(self, items: int) -> list[tuple[float, Event]]:
        """Return (seconds after the start, event) in the order of time, for at least `items` requests."""
        found: list[tuple[float, Event]] = []
        while self.requests < items:
            found.extend(self._batch(self.rng.triangular(0.0, HOUR, HOUR * 0.6)))
        return sorted(found, key=lambda each: each[0])

    def _batch(self, at: float) -> Iterator[tuple[float, Event]]:
        rng = self.rng
        model = rng.choices(self.models, [each.share for each in self.models])[0]
        why = rng.choices(REASONS, (6, 5, 2, 1))[0]
        size = 32 if why == "size" else min(31, 1 + int(rng.expovariate(1 / (3 if why == "idle" else 9))))
        batch_id = f"b{next(self.ids):06}"
        priorities = rng.choices(PRIORITIES, (2, 5, 3), k=size)
        classes = {priority: priorities.count(priority) for priority in PRIORITIES if priority in priorities}
        where = {"batch_id": batch_id, "model": model.name, "deployment": model.deployment}
        yield at - 0.001, BatchOpened(**where)
        yield at, BatchClosed(size=size, why=why, classes=classes, **where)
        for priority in priorities:
            self.requests += 1
            yield from self._request(at, batch_id, model, priority)

    def _request(
        self, at: float, batch_id: str, model: Model, priority: RequestPriority
    ) -> Iterator[tuple[float, Event]]:
        rng = self.rng
        request_id = f"r{next(self.ids):08}"
        wait = rng.expovariate(1 / (0.02, 0.4, 9.0)[PRIORITIES.index(priority)]) if rng.random() < 0.8 else 0.0
        spent = 0.0
        for attempt in range(1, 5):
            took = rng.lognormvariate(0.0, 0.5) * model.seconds
            at, spent = at + took, spent + took
            kind, status = self._failure(at, model)
            if kind is None:
                break
            where = {"request_id": request_id, "model": model.name}
            yield (
                at,
                AttemptFailed(
                    batch_id=batch_id,
                    deployment=model.deployment,
                    attempt=attempt,
                    kind=kind,
                    status=status,
                    message=f"{model.deployment} says: {kind}",
                    provider_time=took,
                    **where,
                ),
            )
            if kind == "rejected" or attempt == 4:
                break
            pause = rng.random() * 0.5 * 2**attempt
            yield at, RetryScheduled(attempt=attempt, wait=pause, kind=kind, **where)
            at, wait = at + pause, wait + pause
        outcome = kind or ("ok" if rng.random() > 0.005 else "cancelled")
        usage, cost = self._usage(model) if outcome == "ok" else (None, None)
        yield (
            at,
            RequestDone(
                request_id=request_id,
                batch_id=batch_id,
                model=model.name,
                deployment=model.deployment,
                priority=priority,
                outcome=outcome,
                attempt=attempt,
                queue_wait=wait,
                provider_time=spent,
                agent=rng.choice(("planner", "critic", "indexer")),
                usage=usage,
                cost_usd=cost,
                finish_reason="stop" if usage else None,
            ),
        )

    def _failure(self, at: float, model: Model) -> tuple[str | None, int | None]:
        if model.deployment.startswith("anthropic") and OUTAGE[0] < at < OUTAGE[1] and self.rng.random() < 0.7:
            return "overloaded", 529
        draw = self.rng.random()
        if draw < 0.03:
            return self.rng.choice(LIMITS)
        return ("rejected", 400) if draw < 0.034 else (None, None)

    def _usage(self, model: Model) -> tuple[TokenUsage, float | None]:
        """Draw the tokens of an answer, and work out their price."""
        asked, answered = int(self.rng.lognormvariate(6.0, 0.8)), int(self.rng.lognormvariate(5.0, 0.7))
        usage = TokenUsage(input_tokens=asked, output_tokens=answered)
        if model.input_price is None or model.output_price is None:
            return usage, None
        return usage, (asked * model.input_price + answered * model.output_price) / 1e6


def write(folder: Path, events: Sequence[tuple[float, Event]], *, start: datetime = START) -> Path:
    """Write a journal of (seconds after the start, event) into `folder`, and return its last file."""
    now = [start]
    journal = Journal(LogSettings(dir=folder), wall=lambda: now[0])
    for number, (at, event) in enumerate(events):
        now[0] = start + timedelta(seconds=at)
        journal.observe(event)
        if number % 5000 == 0:
            journal.flush()  # this is faster than any gateway
    journal.close()
    path = journal.log_path
    if path is None:
        raise ValueError("a journal without events has no file")
    return path


def write_hour(folder: Path, *, items: int = 4000, seed: int = 1, models: Sequence[Model] = MODELS) -> Path:
    """Write an hour of `items` requests or a few more, then the shutdown."""
    events = Sample(Random(seed), models).events(items)
    end = events[-1][0]
    events += [(end, ShutdownBegan(queued=0, in_flight=0)), (end + 0.1, ShutdownEnded(cancelled=0))]
    return write(folder, events)


if __name__ == "__main__":
    write_hour(Path(sys.argv[1]))
