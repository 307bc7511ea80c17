"""How the parts of a job are put together for one run."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llm_gateway.answers import AnswerSchema
from llm_gateway.budgets import Budgets
from llm_gateway.calls import CallWatch
from llm_gateway.clock import Clock
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError
from llm_gateway.jobs.asking import Answering, Asker
from llm_gateway.jobs.batch_book import BatchBook
from llm_gateway.jobs.batch_runner import BatchPlan, BatchRunner
from llm_gateway.jobs.batches import Batches
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.lanes import Window, window_of
from llm_gateway.jobs.laning import Laning
from llm_gateway.jobs.records import Lease
from llm_gateway.jobs.runner import Runner
from llm_gateway.jobs.sqlite import SqliteJobStore
from llm_gateway.jobs.store import JobStore
from llm_gateway.models import RequestPriority
from llm_gateway.price_lanes import LaneChoice

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from llm_gateway.clients.batches import BatchLine

STANDARD_SHARE = 4  # of the time until a deadline, the last so-manieth part is the standard lane's,
LONGEST_STANDARD = 3600.0  # but no more seconds than this


class JobGateway(Answering, Protocol):
    """What a job needs of a gateway."""

    @property
    def config(self) -> GatewayConfig:
        """The validated configuration."""

    def paying_from(self, budgets: Budgets, /) -> AbstractContextManager[None]:
        """Let every call in this context fall under these budgets too. Raises ConfigurationError."""

    def batch_line(self, model: str, /) -> BatchLine | None:
        """Return what leads to the batches of a model's provider, None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What a job was told, and the runner that follows of it."""

    gateway: JobGateway
    watch: CallWatch
    schema: AnswerSchema | None
    priority: RequestPriority | None
    clock: Clock
    hooks: Hooks
    on_bug: Callable[[Lease, str], None]
    lane: LaneChoice | None
    deadline: float | None  # seconds
    poll: float  # seconds
    is_kept: bool  # the state outlives the process
    others: Callable[[str], set[str]]  # as `Batches.others`
    patiently: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]  # writes, also where the store is busy now

    async def runner(self, store: JobStore, *, feeds: bool, asks: bool) -> Runner:
        """Return what takes rows into `store` and asks them; see Runner."""
        config = self.gateway.config
        book = store.batches if isinstance(store, SqliteJobStore) and self.is_kept else None
        laning = Laning(
            config=config,
            lane=self.lane,
            deadline=self.deadline,
            is_kept=book is not None,
            told=self.hooks.told,
        )
        asker = self._asker(store, laning)

        def window(model: str) -> Window:
            return window_of(config.model(model).max_concurrency, config.batching.max_queue_size)

        if book is None:
            return Runner(store, asker, window=window, clock=self.clock, hooks=self.hooks, feeds=feeds, asks=asks)
        plan = await self._plan(book, laning, asker)
        return BatchRunner(
            store, asker, plan=plan, window=window, clock=self.clock, hooks=self.hooks, feeds=feeds, asks=asks
        )

    def _asker(self, store: JobStore, laning: Laning) -> Asker:
        return Asker(
            gateway=self.gateway,
            watch=self.watch,
            record_call=store.record_call,
            clock=self.clock,
            on_bug=self.on_bug,
            schema=self.schema,
            max_answers=self.gateway.config.retry.max_attempts,
            priority=self.priority,
            has_flex=laning.has_flex,
            lane_of=laning.of_calls if laning.is_needed else None,
        )

    async def _plan(self, book: BatchBook, laning: Laning, asker: Asker) -> BatchPlan:
        watched = {each.model for each in await book.all_batches() if each.is_open}

        def batches_of(model: str) -> Batches | None:
            if laning.of(model) != "batch" and model not in watched:
                return None
            line = self.gateway.batch_line(model)
            if line is None:
                raise ConfigurationError(f"The client of model '{model}' has no batches; use another lane.")
            return Batches(
                model=model,
                line=line,
                book=book,
                persisted=self.patiently,
                judge=asker.judged,
                most_turns=self.gateway.config.retry.max_attempts,
                recorded=self.hooks.recorded,
                passed=self.hooks.step,
                others=self.others,
            )

        patience = math.inf if self.deadline is None else self.deadline
        return BatchPlan(
            book=book,
            batches_of=batches_of,
            makes=lambda model: laning.of(model) == "batch",
            poll=self.poll,
            late_after=patience - min(patience / STANDARD_SHARE, LONGEST_STANDARD),
        )
