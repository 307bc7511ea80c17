"""Amounts over equal slices of time."""

from __future__ import annotations

from collections.abc import Iterable


class Slices:
    """Sums by slice of time. An instant or a span costs O(1), however many slices it covers. Seconds from 0."""

    def __init__(self, width: float, count: int) -> None:
        self.width = width
        self._sums = [0.0] * count
        self._steps = [0.0] * (count + 1)  # whole slices of spans: what begins in each, less what ended before

    def add(self, at: float, amount: float = 1.0) -> None:
        """Add `amount` to the slice that holds `at`."""
        self._sums[self._index(at)] += amount

    def add_span(self, start: float, end: float) -> None:
        """Add to every slice how many seconds of it lie in the span."""
        first, last = self._index(start), self._index(end)
        if first == last:
            self._sums[first] += end - start
            return
        self._sums[first] += (first + 1) * self.width - start
        self._sums[last] += end - last * self.width
        self._steps[first + 1] += self.width
        self._steps[last] -= self.width

    def sums(self) -> list[float]:
        """Return the sum of each slice."""
        sums, whole = [], 0.0
        for amount, step in zip(self._sums, self._steps, strict=False):
            whole += step
            sums.append(amount + whole)
        return sums

    def _index(self, at: float) -> int:
        return min(int(at / self.width), len(self._sums) - 1)


def united(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the spans in which at least one of `spans` lies, in order and without overlap."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found
