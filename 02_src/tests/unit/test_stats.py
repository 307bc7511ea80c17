"""What get_stats() tells of the events that the gateway reported."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from llm_gateway.events import AttemptFailed, BatchClosed, CloseReason, RequestDone, RequestQueued, RetryScheduled
from llm_gateway.events import ShutdownBegan as NotCounted
from llm_gateway.models import RequestPriority, TokenUsage
from llm_gateway.stats import Durations, Stats

NOTHING_QUEUED = {"high": 0, "normal": 0, "low": 0}


def snapshot(stats: Stats) -> dict[str, Any]:
    return stats.snapshot(queued=NOTHING_QUEUED, in_flight=0)


def queued(model: str = "a") -> RequestQueued:
    return RequestQueued(request_id="r", model=model, priority=RequestPriority.NORMAL)


def batch(size: int, why: CloseReason = "idle", model: str = "a") -> BatchClosed:
    return BatchClosed(
        batch_id="b", model=model, deployment="p/m", size=size, why=why, classes={RequestPriority.NORMAL: size}
    )


def failed(kind: str) -> AttemptFailed:
    return AttemptFailed(
        request_id="r",
        batch_id="b",
        model="a",
        deployment="p/m",
        attempt=1,
        kind=kind,
        status=503,
        message="no",
        provider_time=0.1,
    )


def retry() -> RetryScheduled:
    return RetryScheduled(request_id="r", model="a", attempt=1, wait=0.5, kind="unavailable")


def done(outcome: str = "ok", *, model: str = "a", attempt: int = 1, **fields: Any) -> RequestDone:
    given: dict[str, Any] = {
        "request_id": "r",
        "batch_id": "b",
        "deployment": "p/m",
        "priority": RequestPriority.NORMAL,
        "queue_wait": 0.0,
        "provider_time": 0.0,
    }
    return RequestDone(**(given | fields), outcome=outcome, model=model, attempt=attempt)


def told(*events: Any) -> Stats:
    stats = Stats()
    for event in events:
        stats.observe(event)
    return stats


def test_requests_are_counted_by_how_they_ended() -> None:
    seen = snapshot(told(*[queued()] * 4, done(), done("rejected"), done("cancelled", attempt=0), done("deadline")))
    assert {name: seen[name] for name in ("submitted", "completed", "failed", "cancelled")} == {
        "submitted": 4,
        "completed": 1,
        "failed": 2,
        "cancelled": 1,
    }
    assert seen["failures"] == {"rejected": 1, "deadline": 1}


def test_errors_count_attempts_and_failures_count_requests() -> None:
    seen = snapshot(
        told(failed("unavailable"), retry(), failed("rate_limit"), retry(), failed("unavailable"), done(attempt=4))
    )
    assert seen["errors"] == {"unavailable": 2, "rate_limit": 1}
    assert seen["failures"] == {}
    assert (seen["attempts"], seen["retries"]) == (4, 2)


def test_tokens_and_known_costs_add_up_and_unknown_ones_are_counted() -> None:
    usage = TokenUsage(input_tokens=10, output_tokens=3, cache_read_tokens=4, cache_write_tokens=2)
    seen = snapshot(told(done(usage=usage, cost_usd=0.25), done(usage=usage, cost_usd=0.5), done(usage=usage)))
    assert seen["tokens"] == {"input": 30, "output": 9, "cache_read": 12, "cache_write": 6, "total": 39}
    assert (seen["cost_usd"], seen["unpriced"]) == (0.75, 1)


def test_a_cost_of_which_nothing_is_known_is_none_and_not_zero() -> None:
    assert snapshot(told(done(), done()))["cost_usd"] is None
    assert snapshot(told(done(cost_usd=0.0)))["cost_usd"] == 0.0
    assert snapshot(told())["cost_usd"] == 0.0


def test_batches_are_counted_by_size_and_by_why_they_closed() -> None:
    seen = snapshot(told(batch(1), batch(32, "size"), batch(32, "size"), batch(3, "slots")))["batches"]
    assert seen == {
        "count": 4,
        "mean_size": 17.0,
        "max_size": 32,
        "sizes": {"1": 1, "3": 1, "32": 2},
        "closed": {"idle": 1, "size": 2, "slots": 1},
    }


def test_waits_are_told_by_priority_and_together() -> None:
    high = [done(priority=RequestPriority.HIGH, queue_wait=0.1)] * 3
    low = [done(priority=RequestPriority.LOW, queue_wait=9.0)]
    waits = snapshot(told(*high, *low))["queue_wait"]
    assert waits["count"] == 4
    assert waits["max"] == 9.0
    assert waits["p50"] == pytest.approx(0.1, rel=0.02)
    assert waits["by_priority"]["low"]["p50"] == pytest.approx(9.0, rel=0.02)
    assert waits["by_priority"]["high"]["mean"] == pytest.approx(0.1)
    assert waits["by_priority"]["normal"] == dict.fromkeys(("mean", "p50", "p90", "p99", "max")) | {"count": 0}


def test_a_request_that_was_never_sent_took_no_provider_time() -> None:
    seen = snapshot(told(done("cancelled", attempt=0, queue_wait=2.0), done(provider_time=0.5)))
    assert seen["provider_time"]["count"] == 1
    assert seen["queue_wait"]["count"] == 2


def test_each_model_has_its_figures_and_the_gateway_their_sum() -> None:
    seen = snapshot(
        told(queued("a"), queued("b"), done(model="a", cost_usd=1.0), done("timeout", model="b"), batch(2, model="b"))
    )
    assert set(seen["by_model"]) == {"a", "b"}
    assert seen["by_model"]["a"]["completed"] == 1
    assert seen["by_model"]["b"]["failures"] == {"timeout": 1}
    assert seen["by_model"]["b"]["batches"]["count"] == seen["batches"]["count"] == 1
    assert seen["submitted"] == 2
    assert seen["cost_usd"] == 1.0


def test_gauges_are_handed_in() -> None:
    seen = Stats().snapshot(queued={"high": 1, "normal": 2, "low": 4}, in_flight=8)
    assert seen["queued"] == {"high": 1, "normal": 2, "low": 4, "total": 7}
    assert seen["in_flight"] == 8


def test_a_snapshot_survives_json_unchanged() -> None:
    for stats in (told(), told(queued(), batch(3), failed("timeout"), retry(), done(usage=TokenUsage(input_tokens=1)))):
        seen = snapshot(stats)
        assert json.loads(json.dumps(seen, allow_nan=False)) == seen


def test_a_snapshot_does_not_change_what_is_counted() -> None:
    stats = told(queued(), done(queue_wait=1.0))
    assert snapshot(stats) == snapshot(stats)


def test_events_that_count_nothing_are_left_alone() -> None:
    assert snapshot(told(NotCounted(queued=1, in_flight=1))) == snapshot(told())


def test_memory_stays_bounded_however_many_durations_are_counted() -> None:
    durations, rng = Durations(), Random(7)
    for _ in range(50_000):
        durations.add(10 ** rng.uniform(-12, 12))
    assert len(durations.buckets) <= 1383


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    durations = Durations()
    durations.add(-5.0)
    assert durations.summary() == {"count": 1, "mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
