"""One batch at a provider, of requests whose callers wait for their answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

from llm_gateway.budgets import Hold
from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches import BatchClient, CreationFailedError, Sought, Standing, number_of
from llm_gateway.clock import Clock, Timer, utc_now
from llm_gateway.config import ProviderBatchSettings
from llm_gateway.errors import ModelNotFoundError, ProviderError
from llm_gateway.queue import Ticket
from llm_gateway.retry import RetryPolicy

SEARCHES = 2  # how often a batch that may have been made is looked for in vain
GROWTH = 1.5  # of the pauses between two looks


@dataclass(slots=True, eq=False, kw_only=True)
class Rider:
    """One request in the batch lane: what gathers, is in a batch under way, or waits for money."""

    ticket: Ticket
    turns: int = 0  # batches that did not answer it
    batch: ProviderBatch | None = None
    number: int = 0  # in its batch
    line: bytes = b""  # as its batch has it, until that is made
    hold: Hold | None = None  # US dollars that it may cost at worst
    late_at: float | None = None  # the instant from which it belongs in the standard lane
    gone_at: float | None = None  # the instant at which it goes there, whatever its batch does
    alarm: Timer | None = None
    is_dropped: bool = False  # nobody waits for its outcome here; only its price is of interest

    @property
    def counts(self) -> bool:
        """Whether a caller waits for its outcome here."""
        return not (self.is_dropped or self.ticket.ended)


@dataclass(slots=True, eq=False, kw_only=True)
class ProviderBatch:
    """A batch that is filled, made, watched. Instants in seconds of the clock, but `made_at`."""

    intent: str = field(default_factory=lambda: os.urandom(8).hex())
    riders: dict[int, Rider] = field(default_factory=dict)  # those without an outcome, by number
    opened: float = 0.0  # when its first request came
    requests: int = 0  # with which it left
    numbers: int = 0  # that were given
    size: int = 0  # bytes
    waiting: int = 0  # riders whose callers wait
    alarm: Timer | None = None  # of its leaving
    made_at: datetime | None = None  # when its making began
    batch_id: str | None = None  # the provider's
    state: str = "gathering"
    served: int = 0
    has_left: bool = False  # it is filled no more, and about to be made, or made
    must_end: bool = False  # nobody waits for it, or it is late for somebody
    is_left: bool = False  # the gateway shuts down: it is cancelled, and nobody collects it
    is_ending: bool = False  # the provider knows that it must
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, rider: Rider, number: int, line: bytes) -> None:
        """Take a request in."""
        rider.batch, rider.number, rider.line = self, number, line
        self.riders[number] = rider
        self.size += len(line) + 1
        self.waiting += 1

    def drop(self, rider: Rider) -> None:
        """Take a request out, before the batch leaves."""
        del self.riders[rider.number]
        self.size -= len(rider.line) + 1
        self.waiting -= 1
        rider.batch, rider.line = None, b""

    def end(self, *, leave: bool = False) -> None:
        """Let the provider end it; what was answered until then is still taken, unless the gateway must `leave` it."""
        self.must_end = True
        self.is_left = self.is_left or leave
        self.changed.set()

    def snapshot(self) -> dict[str, Any]:
        """Return how it stands, for statistics."""
        return {
            "batch_id": self.intent,
            "provider_batch_id": self.batch_id,
            "state": self.state,
            "size": self.requests,
            "waiting": self.waiting,
            "served": self.served,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a batch ended, and what is known of the requests that have no outcome."""

    state: str
    in_doubt: bool = False  # they may have been paid; else they were not served
    error: ProviderError | None = None  # why it failed as a whole
    refusal: Standing | None = None  # why it was refused as a whole, after the provider had looked at it


@dataclass(slots=True, kw_only=True)
class BatchWatch:
    """Makes a batch, looks at it until it is over, and hands its results on. Never raises ProviderError."""

    client: BatchClient
    clock: Clock
    settings: ProviderBatchSettings
    policy: RetryPolicy
    rng: Random
    told: Callable[[ProviderBatch], None]  # hears of every new state
    take: Callable[[Rider, Completion | ProviderError | None], None]  # hears of every result
    known: Callable[[], set[str]]  # the provider's ids of other batches

    async def run(self, batch: ProviderBatch) -> End:
        """Return when the batch is over and its results are handed on, or when nothing more can be known of it."""
        end = await self._make(batch)
        if end is None:
            self._tell(batch, "made")
            end = await self._watch(batch)
        self._tell(batch, end.state)
        return end

    async def _make(self, batch: ProviderBatch) -> End | None:
        lines = [rider.line for rider in batch.riders.values()]
        batch.made_at = utc_now()
        attempt = 0
        while not batch.must_end:
            attempt += 1
            try:
                batch.batch_id = await self.client.create(batch.intent, lines)
            except CreationFailedError as failed:
                if failed.doubtful:
                    return await self._search(batch, batch.made_at, len(lines))
                wait = self.policy.delay(attempt, failed.error, draw=self.rng.random())
                if wait is None:
                    return End(state="refused", error=failed.error)
                await self._pause(batch, wait)
            else:
                for rider in batch.riders.values():
                    rider.line = b""
                return None
        return End(state="not made")

    async def _search(self, batch: ProviderBatch, since: datetime, requests: int) -> End | None:
        """Look for a batch that may have been made; where it is not found, its requests were not served."""
        misses = 0
        while misses < SEARCHES:
            if batch.is_left:
                return End(state="left", in_doubt=True)
            await self._pause(batch, self.settings.poll)
            try:
                sought = Sought(intent=batch.intent, requests=requests, since=since, known=self.known())
                found = await self.client.find(sought)
            except ProviderError as error:
                if not error.retryable:
                    return End(state="lost", in_doubt=True, error=error)
                continue
            if found.batch_id is not None:
                batch.batch_id = found.batch_id
                return None
            misses += not found.may_come
        return End(state="not made")

    async def _watch(self, batch: ProviderBatch) -> End:
        batch_id = batch.batch_id or ""
        pause = self.settings.poll
        while True:
            await self._pause(batch, pause)
            pause = min(pause * GROWTH, max(self.settings.max_poll, self.settings.poll))
            try:
                if batch.must_end and not batch.is_ending:
                    await self.client.cancel(batch_id)
                    batch.is_ending = True
                    pause = self.settings.poll
                if batch.is_left:
                    return End(state="left", in_doubt=True)
                standing = await self.client.look(batch_id)
                self._note(batch, standing)
                if standing.is_over:
                    if standing.code is not None:
                        return End(state=standing.state, refusal=standing)
                    await self._take_results(batch, batch_id)
                    return End(state=standing.state, in_doubt=standing.is_whole)
            except ModelNotFoundError:  # a batch that the provider does not know: its results are gone
                return End(state="lost", in_doubt=True)
            except ProviderError as error:
                if not error.retryable:
                    return End(state="lost", in_doubt=True, error=error)
                if batch.is_left:
                    return End(state="left", in_doubt=True)

    async def _take_results(self, batch: ProviderBatch, batch_id: str) -> None:
        results = self.client.results(batch_id)
        try:
            async for answer in results:
                number = number_of(answer.custom_id, batch.intent)
                rider = batch.riders.pop(number, None) if number is not None else None
                if rider is not None:  # else it has its outcome already
                    self.take(rider, answer.outcome)
        finally:
            await results.aclose()

    async def _pause(self, batch: ProviderBatch, seconds: float) -> None:
        """Wait, but not longer than until somebody wants the batch to end."""
        with suppress(TimeoutError):
            async with self.clock.timeout(seconds):
                await batch.changed.wait()
        batch.changed.clear()

    def _note(self, batch: ProviderBatch, standing: Standing) -> None:
        batch.served = standing.served
        if standing.is_ending:
            batch.is_ending = True
        if standing.state != batch.state and not standing.is_over:
            self._tell(batch, standing.state)

    def _tell(self, batch: ProviderBatch, state: str) -> None:
        batch.state = state
        self.told(batch)
