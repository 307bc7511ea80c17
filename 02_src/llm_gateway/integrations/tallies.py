"""Counters and histograms for Prometheus whose increments are plain additions.

The client's own take a lock and check their labels at each increment, which is most of what a request costs there.
These are added to in one thread and read in any. They are not kept in files, so the client's mode for several
processes behind one port does not see them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Spread:
    """How some values are distributed over buckets; a value on a bound is below it."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Spreads(dict[Labels, Spread]):
    """A histogram: the spread of each combination of labels, made when it is first asked for."""

    def __init__(self, name: str, told: str, labels: Labels, bounds: Sequence[float]) -> None:
        super().__init__()
        self._head = name, told, labels
        self._bounds = bounds
        self._les = [str(float(bound)) for bound in bounds] + ["+Inf"]

    def __missing__(self, labels: Labels) -> Spread:
        """Begin another series."""
        spread = self[labels] = Spread(self._bounds)
        return spread

    def family(self) -> Metric:
        """Return all series as they are now."""
        name, told, labels = self._head
        family = HistogramMetricFamily(name, told, labels=labels)
        for values, spread in list(self.items()):  # a copy: another thread may begin a series
            family.add_metric(values, list(zip(self._les, accumulate(spread.counts), strict=True)), spread.total)
        return family


class Sums(defaultdict[Labels, float]):
    """A counter: the sum of each combination of labels; what was never counted is nought."""

    def __init__(self, name: str, told: str, labels: Labels) -> None:
        super().__init__(float)
        self._head = name, told, labels

    def family(self) -> Metric:
        """Return all series as they are now."""
        name, told, labels = self._head
        family = CounterMetricFamily(name, told, labels=labels)
        for values, total in list(self.items()):
            family.add_metric(values, total)
        return family


class Tallies(Collector):
    """Several counters and histograms, for a registry."""

    def __init__(self, each: Sequence[Sums | Spreads]) -> None:
        self._each = each

    def describe(self) -> Iterator[Metric]:
        """Name them, so that no registry takes them twice."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Yield each as it is now."""
        return (each.family() for each in self._each)
