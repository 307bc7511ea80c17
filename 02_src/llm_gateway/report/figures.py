"""What a journal adds up to, in memory that does not grow with its length."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from llm_gateway.models import RequestPriority
from llm_gateway.stats import Durations

MOST_SLICES = 120
WIDTHS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
"""Seconds a slice of time may last, each a multiple of the one before; days after that double."""


@dataclass(slots=True)
class Figures:
    """Counters of one model, or of all together. Durations in seconds, cost in US dollars."""

    requests: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    attempts: int = 0
    errors: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    priced: int = 0  # answers whose price is known
    unpriced: int = 0
    cost: float = 0.0
    latency: Durations = field(default_factory=Durations)  # of answers: in the queue and in the provider

    @property
    def cost_usd(self) -> float | None:
        """The sum of the known costs; None where answers came and the price of none is known."""
        return None if self.unpriced and not self.priced else self.cost

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class Timeline:
    """Counters for equal slices of time. When there are too many slices, neighbours merge."""

    def __init__(self) -> None:
        self.width = WIDTHS[0]
        self.slices: dict[int, Counter[str]] = {}  # by start, in widths since the epoch
        self._first = 0
        self._last = -1  # none yet

    def at(self, when: float) -> Counter[str]:
        """Return the counters of the slice that holds `when`, in seconds since the epoch."""
        key = math.floor(when / self.width)
        counters = self.slices.get(key)
        if counters is None:
            key = self._make_room(key, when)
            counters = self.slices.setdefault(key, Counter())
        return counters

    def rows(self) -> list[tuple[int, Counter[str]]]:
        """Return (start in seconds since the epoch, counters) of every slice in turn, the empty ones too."""
        span = range(self._first, self._last + 1)
        return [(key * self.width, self.slices.get(key, Counter())) for key in span]

    def _make_room(self, key: int, when: float) -> int:
        if self._last < self._first:
            self._first = self._last = key
        while max(self._last, key) - min(self._first, key) >= MOST_SLICES:
            self._widen()
            key = math.floor(when / self.width)
        self._first, self._last = min(self._first, key), max(self._last, key)
        return key

    def _widen(self) -> None:
        wider = next((width for width in WIDTHS if width > self.width), self.width * 2)
        factor = wider // self.width
        merged: dict[int, Counter[str]] = {}
        for key, counters in self.slices.items():
            merged.setdefault(key // factor, Counter()).update(counters)
        self.width, self.slices = wider, merged
        self._first, self._last = self._first // factor, self._last // factor


@dataclass(slots=True)
class JournalData:
    """The figures of a journal. Their size depends on the number of models and kinds, not on that of the lines."""

    files: int = 0
    lines: int = 0  # read and understood
    unread: int = 0  # torn, or nobody's
    lost: int = 0  # never written, as the journal itself says
    first: float = math.inf  # seconds since the epoch
    last: float = -math.inf
    total: Figures = field(default_factory=Figures)
    models: dict[str, Figures] = field(default_factory=dict)
    waits: dict[str, Durations] = field(
        default_factory=lambda: {priority.name.lower(): Durations() for priority in RequestPriority}
    )
    batches: Counter[tuple[str, int]] = field(default_factory=Counter)  # by why they closed, and size
    errors: Counter[str] = field(default_factory=Counter)  # failed attempts by kind
    failures: Counter[str] = field(default_factory=Counter)  # requests that ended so, by kind
    timeline: Timeline = field(default_factory=Timeline)

    def model(self, name: str) -> Figures:
        """Return the figures of a model, new ones at its first mention."""
        figures = self.models.get(name)
        if figures is None:
            figures = self.models[name] = Figures()
        return figures
