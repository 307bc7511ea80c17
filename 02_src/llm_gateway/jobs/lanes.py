"""The rows of one model: how many wait, how many are asked, and how many may be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from llm_gateway.errors import ConfigurationError

ROWS_A_SLOT = 4  # rows under way for each call that a model may have at once
FEWEST_ROWS = 16


@dataclass(slots=True)
class Lane:
    """The rows of one model."""

    window: int  # rows under way at most
    pending: int = 0
    asking: int = 0
    unrecorded: int = 0  # leased, and what became of them is not on disk
    blocked: ConfigurationError | None = None  # why none of them can be asked
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many rows could be leased now; 0 or less for none."""
        return min(self.pending, self.window - self.asking)


def window_of(max_concurrency: int, max_queue_size: int) -> int:
    """Return how many rows of a model to keep under way: no slot waits for a row, and no queue is filled."""
    return min(max(FEWEST_ROWS, ROWS_A_SLOT * max_concurrency), max_queue_size)
