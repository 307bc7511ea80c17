"""Figures of a running gateway: an observer that counts, and quantiles in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llm_gateway.events import AttemptFailed, BatchClosed, Event, RequestDone, RequestQueued, RetryScheduled
from llm_gateway.models import RequestPriority

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
SMALLEST, LARGEST = 1e-6, 1e6  # seconds; what lies outside counts as the nearer of them, the small as nothing
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
TOKEN_KINDS = ("input", "output", "cache_read", "cache_write")

_PER_LOG = 1 / math.log(GAMMA)
_MIDDLE = 2 / (GAMMA + 1)


class Durations:
    """Quantiles of any number of durations, each within 1 % of the exact one.

    DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch", VLDB 2019, arXiv 1908.10693):
    bucket i counts the values in (g^(i-1), g^i], with g = (1 + a) / (1 - a), and 2 g^i / (g + 1) is within a · x of
    each x in it. Here a is 0.01, and the range takes at most 1383 buckets. A value costs O(1); sketches add up without
    loss.
    """

    __slots__ = ("buckets", "count", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.smallest = math.inf
        self.largest = 0.0
        self.buckets: dict[int | None, int] = {}  # None: below SMALLEST

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one, of a clock that was set back, as none at all."""
        # Comparisons where min() and max() would do at three times the cost: this runs twice a request.
        bucket = None
        if seconds > SMALLEST:
            bucket = math.ceil(math.log(min(seconds, LARGEST)) * _PER_LOG)
        elif seconds < 0:
            seconds = 0.0
        self.count += 1
        self.total += seconds
        if seconds < self.smallest:  # noqa: PLR1730
            self.smallest = seconds
        if seconds > self.largest:  # noqa: PLR1730
            self.largest = seconds
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def merge(self, other: Durations) -> None:
        """Count everything that `other` counted."""
        self.count += other.count
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def quantile(self, share: float) -> float | None:
        """Return the value of rank ⌊1 + share · (count - 1)⌋ in ascending order; None if nothing was counted."""
        rank = math.floor(1 + share * (self.count - 1))
        for bucket in sorted(self.buckets, key=lambda each: -math.inf if each is None else each):
            rank -= self.buckets[bucket]
            if rank <= 0:
                value = 0.0 if bucket is None else GAMMA**bucket * _MIDDLE
                return min(max(value, self.smallest), self.largest)
        return None

    def summary(self) -> dict[str, float | int | None]:
        """Return count, mean, the quantiles and the maximum, in seconds; None where nothing was counted."""
        seen = self.count > 0
        quantiles = {name: self.quantile(share) for name, share in QUANTILES.items()}
        return {
            "count": self.count,
            "mean": self.total / self.count if seen else None,
            **quantiles,
            "max": self.largest if seen else None,
        }


def _sum(parts: Iterable[Durations]) -> Durations:
    whole = Durations()
    for part in parts:
        whole.merge(part)
    return whole


class Figures:
    """The counters of one model; several add up to those of the gateway."""

    def __init__(self) -> None:
        # submitted, completed, failed, cancelled, attempts, retries; and answers by whether their price was known
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.closed: Counter[str] = Counter()
        self.cost = 0.0
        self.saved = 0.0  # what answers from the cache cost when they were made
        self.waits = {priority: Durations() for priority in RequestPriority}
        self.provider_time = Durations()
        self.time_to_first_token = Durations()  # of the answers that were streamed

    def merge(self, other: Figures) -> None:
        """Add everything that `other` counted."""
        for mine, its in (
            (self.counts, other.counts),
            (self.errors, other.errors),
            (self.failures, other.failures),
            (self.tokens, other.tokens),
            (self.closed, other.closed),
        ):
            mine.update(dict(its))  # a copy, since another thread may look while the loop counts
        self.sizes.update(dict(other.sizes))
        self.cost += other.cost
        self.saved += other.saved
        for priority, waits in self.waits.items():
            waits.merge(other.waits[priority])
        self.provider_time.merge(other.provider_time)
        self.time_to_first_token.merge(other.time_to_first_token)

    def done(self, event: RequestDone) -> None:
        """Count a request that ended."""
        counts = self.counts
        counts["attempts"] += event.attempt
        self.waits[event.priority].add(event.queue_wait)
        if event.attempt and event.price_lane != "batch":  # which takes hours, and says nothing of the provider
            self.provider_time.add(event.provider_time)
        if event.time_to_first_token is not None:
            self.time_to_first_token.add(event.time_to_first_token)
        if event.outcome == "ok":
            counts["completed"] += 1
            if event.cached:
                counts["cached"] += 1
                self.saved += event.saved_usd or 0.0
            else:
                counts["unpriced" if event.cost_usd is None else "priced"] += 1
        elif event.outcome == "cancelled":
            counts["cancelled"] += 1
        else:
            counts["failed"] += 1
            self.failures[event.outcome] += 1
        if event.cost_usd is not None:
            self.cost += event.cost_usd
        usage = event.usage
        if usage is not None:
            tokens = self.tokens
            tokens["input"] += usage.input_tokens
            tokens["output"] += usage.output_tokens
            if usage.cache_read_tokens:
                tokens["cache_read"] += usage.cache_read_tokens
            if usage.cache_write_tokens:
                tokens["cache_write"] += usage.cache_write_tokens

    def snapshot(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        counts = self.counts
        names = ("submitted", "completed", "cached", "failed", "cancelled", "attempts", "retries")
        nothing_known = counts["unpriced"] > 0 and not counts["priced"]
        return {
            **{name: counts[name] for name in names},
            "errors": dict(self.errors),
            "failures": dict(self.failures),
            "tokens": {
                **{kind: self.tokens[kind] for kind in TOKEN_KINDS},
                "total": self.tokens["input"] + self.tokens["output"],
            },
            "cost_usd": None if nothing_known else self.cost,
            "unpriced": counts["unpriced"],
            "saved_usd": self.saved,
            "batches": self._batches(),
            "queue_wait": {
                **_sum(self.waits.values()).summary(),
                "by_priority": {priority.name.lower(): waits.summary() for priority, waits in self.waits.items()},
            },
            "provider_time": self.provider_time.summary(),
            "time_to_first_token": self.time_to_first_token.summary(),
        }

    def _batches(self) -> dict[str, Any]:
        count = self.sizes.total()
        items = sum(size * times for size, times in self.sizes.items())
        return {
            "count": count,
            "mean_size": items / count if count else None,
            "max_size": max(self.sizes, default=None),
            "sizes": {str(size): self.sizes[size] for size in sorted(self.sizes)},
            "closed": dict(self.closed),
        }


class Stats:
    """Counts what the gateway's events tell, for each model.

    Memory is bounded by the number of models, error kinds and batch sizes, whatever the number of requests.
    """

    def __init__(self) -> None:
        self._models: dict[str, Figures] = {}
        self._count: Mapping[type[Event], Callable[[Any], None]] = {
            RequestQueued: self._queued,
            BatchClosed: self._closed,
            AttemptFailed: self._failed,
            RetryScheduled: self._retried,
            RequestDone: self._done,
        }

    def observe(self, event: Event, /) -> None:
        """Count one event."""
        count = self._count.get(type(event))
        if count is not None:
            count(event)

    @property
    def ended(self) -> int:
        """Requests that were answered or refused so far; not those whose callers left."""
        return sum(each.counts["completed"] + each.counts["failed"] for each in self._models.values())

    def snapshot(self, *, queued: Mapping[str, int], in_flight: int) -> dict[str, Any]:
        """Return all figures, ready for JSON; `queued` (by "high", "normal", "low") and `in_flight` are of this moment.

        submitted, completed, failed, cancelled   requests
        attempts                provider calls of the requests that ended; retries: repetitions decided on so far
        errors, failures        failed attempts by kind of error; requests that ended so, by kind
        cached, saved_usd       of the completed, those answered from the cache; what their answers cost when made
        cost_usd, unpriced      sum of the known costs, None if not one is known; answers whose price is unknown
        queue_wait, provider_time   seconds, of the requests that ended; all attempts of a request together, without
                                the provider's time for its batches
        time_to_first_token     seconds, of the answers that were streamed
        """
        models = dict(self._models)
        whole = Figures()
        for figures in models.values():
            whole.merge(figures)
        return {
            "queued": {**queued, "total": sum(queued.values())},
            "in_flight": in_flight,
            **whole.snapshot(),
            "by_model": {name: figures.snapshot() for name, figures in models.items()},
        }

    def _of(self, model: str) -> Figures:
        figures = self._models.get(model)
        if figures is None:
            figures = self._models[model] = Figures()
        return figures

    def _queued(self, event: RequestQueued) -> None:
        self._of(event.model).counts["submitted"] += 1

    def _closed(self, event: BatchClosed) -> None:
        figures = self._of(event.model)
        figures.sizes[event.size] += 1
        figures.closed[event.why] += 1

    def _failed(self, event: AttemptFailed) -> None:
        self._of(event.model).errors[event.kind] += 1

    def _retried(self, event: RetryScheduled) -> None:
        self._of(event.model).counts["retries"] += 1

    def _done(self, event: RequestDone) -> None:
        self._of(event.model).done(event)
