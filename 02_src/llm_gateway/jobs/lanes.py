"""The rows of one model: how many wait, how many are asked, and how many may be."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_gateway.errors import ConfigurationError
from llm_gateway.jobs.records import Lease, Verdict
from llm_gateway.models import LLMRequest

ROWS_A_SLOT = 4  # rows under way for each call that a model may have at once
FEWEST_ROWS = 16
AT_HAND = 2  # of so many rows under way one waits at hand: who ends a row begins another without a wait for the disk


class Window(NamedTuple):
    """How many rows of a model may be under way, and how many of them be asked at once."""

    rows: int
    asked: int


class Begun(NamedTuple):
    """A leased row that is to be asked."""

    lease: Lease
    request: LLMRequest | None  # of the lease, where it is at hand, so that it need not be read again
    told: asyncio.Future[Verdict | None] | None  # who waits until its end is recorded


@dataclass(slots=True)
class Lane:
    """The rows of one model."""

    window: Window
    pending: int = 0
    leased: int = 0  # or about to be, and not at their end
    unrecorded: int = 0  # leased, and what became of them is not on disk
    at_hand: deque[Begun] = field(default_factory=deque)  # leased, and nobody asks them yet
    askers: set[asyncio.Task[None]] = field(default_factory=set)  # that take rows from there
    idle: list[asyncio.Future[None]] = field(default_factory=list)  # what those wait for that have none
    blocked: ConfigurationError | None = None  # why none of them can be asked
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many pending rows could be leased now; 0 or less for none."""
        return min(self.pending, self.window.rows - self.leased)

    @property
    def need(self) -> int:
        """How many rows more it could lease now than are pending; 0 or less for none."""
        return self.window.rows - self.leased - self.pending


def window_of(max_concurrency: int, max_queue_size: int) -> Window:
    """Return how many rows of a model to keep under way: no slot waits for a row, and no queue is filled."""
    rows = min(max(FEWEST_ROWS, ROWS_A_SLOT * max_concurrency), max_queue_size)
    return Window(rows, min(max(FEWEST_ROWS, ROWS_A_SLOT * max_concurrency // AT_HAND), rows))
