"""A durable job: requests in, outcomes out, and a file from which another process can go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from llm_gateway.answers import AnswerSchema
from llm_gateway.calls import CallWatch
from llm_gateway.clock import Clock, LoopClock
from llm_gateway.errors import JobError, JobStoreBusyError
from llm_gateway.jobs.assembly import Assembly, JobGateway
from llm_gateway.jobs.budget import within_budget
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.model_facts import check_models, noted
from llm_gateway.jobs.opening import Place, open_store, place_of, shown_place
from llm_gateway.jobs.options import Options
from llm_gateway.jobs.outcomes import JobOutcome, outcome_of
from llm_gateway.jobs.records import Lease, Ledger, NewRow, StoredResult
from llm_gateway.jobs.rows import no_rows, rows_of
from llm_gateway.jobs.runner import LOOK_PERIOD, Runner
from llm_gateway.jobs.siblings import batches_of_others
from llm_gateway.jobs.store import JobStore
from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.price_lanes import LaneChoice

T = TypeVar("T")

log = logging.getLogger("llm_gateway")

RESULTS_AT_ONCE = 256
POLL = 60.0  # seconds between two looks at a provider's batches


class Job:
    """A list of requests that is answered once, however often the process dies in between.

    `path` is the job's state: a file that is made at the first run, and from which a later one goes on, or the address
    of a job in a database, as `postgresql://host/database?job=name`, on which many may work. Every call is recorded
    there before it is made, every answer before it is handed out. None keeps no state.

    `schema` is a JSON schema: an answer that does not fit it is asked for again, `retry.max_attempts` times in all.
    `priority` goes before what the requests say. `fresh` forgets what `path` holds.
    `helps`: another process feeds this job of a database; `work` is for that. `lease_seconds`: how long a process may
    be silent before others take over its rows of a shared job (default 30).

    `lane` is the price lane of requests that name none: "standard", "flex", "batch", or "auto", the cheapest one that
    the model has; None: as configured for the model. In the batch lane rows go to the provider in batches, which are
    looked at every `poll` seconds; when the job is stopped they go on there, and a later run takes them up. What has no
    answer near `deadline`, seconds from the beginning of a run, is asked in the standard lane.

    `budget`: US dollars that the job may cost, its earlier runs included. A run raises BudgetExceededError before it
    would exceed that, and a later one with a larger budget goes on. While the job is open, all calls of its gateway
    count, which must have made none before; ConfigurationError otherwise, or where nothing is left. None: no budget; in
    a database, where it is kept for all who work on the job, the one that the job has.
    """

    def __init__(
        self,
        gateway: JobGateway,
        path: Place | str,
        *,
        watch: CallWatch,
        schema: Mapping[str, Any] | AnswerSchema | None = None,
        priority: RequestPriority | None = None,
        clock: Clock | None = None,
        hooks: Hooks | None = None,
        fresh: bool = False,
        helps: bool = False,
        lease_seconds: float | None = None,
        on_bug: Callable[[Lease, str], None] | None = None,
        lane: LaneChoice | None = None,
        deadline: float | None = None,
        poll: float = POLL,
        budget: float | None = None,
        keeps_budget: bool = True,
    ) -> None:
        """Take the gateway and its watch: an observer of the gateway, by which the job hears of every call.

        Raises ConfigurationError for an option whose value is wrong.

        `keeps_budget`: False where whoever opens the job sees to its budget.
        """
        options = Options.of(
            priority=priority, lane=lane, deadline=deadline, poll=poll, lease_seconds=lease_seconds, budget=budget
        )
        self._config = gateway.config
        self._place = place_of(path)
        self._gateway = gateway
        self._budget = options.budget
        self._keeps_budget = keeps_budget
        self._within = AsyncExitStack()  # its budget
        self._fresh = fresh
        self._helps = helps
        self._lease_seconds = options.lease_seconds
        self._clock = clock or LoopClock()
        self._new_results = asyncio.Event()
        self._assembly = Assembly(
            gateway=gateway,
            watch=watch,
            schema=AnswerSchema(dict(schema)) if isinstance(schema, Mapping) else schema,
            priority=options.priority,
            clock=self._clock,
            hooks=replace(hooks or Hooks(), recorded=self._new_results.set),
            on_bug=on_bug or _log_bug,
            lane=options.lane,
            deadline=options.deadline,
            poll=options.poll,
            is_kept=self._place is not None,
            others=partial(batches_of_others, self._place) if isinstance(self._place, Path) else _none,
            patiently=self._patiently,
        )
        self._release: Callable[[], None] = lambda: None
        self._store: JobStore | None = None
        self._runner: Runner | None = None
        self._work: asyncio.Task[None] | None = None

    # --- beginning and ending ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the state, or begin one. Raises JobError if another process works on this job."""
        self._store, self._release = await open_store(
            self._place, fresh=self._fresh, helps=self._helps, lease_seconds=self._lease_seconds
        )
        try:
            await self._store.reclaim()
            check_models(await self._store.facts(), self._config, place=shown_place(self._place))
            if self._keeps_budget:
                budget = within_budget(self._gateway, self, self._place, self._budget, name="budget")
                await self._within.enter_async_context(budget)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the rows under way, or cancel their calls if the body failed; then close the state."""
        try:
            if self._work is not None and not self._work.done():
                if error is None:
                    self.stop()
                else:
                    self.abandon()
                await asyncio.wait((self._work,))
        finally:
            if self._work is not None and not self._work.cancelled():
                self._work.exception()  # it was raised where outcomes were awaited, or nobody awaits them any more
            await self._close()

    async def _close(self) -> None:
        try:
            await self._within.aclose()
        finally:
            store, self._store = self._store, None
            try:
                if store is not None:
                    await store.close()
            finally:
                self._release()

    def stop(self) -> None:
        """Read and ask nothing more; what is under way is still recorded."""
        if self._runner is not None:
            self._runner.stop()

    def abandon(self) -> None:
        """Stop, and cancel the calls under way; their rows are asked again by the next run."""
        if self._runner is not None:
            self._runner.abandon()

    # --- asking -----------------------------------------------------------------------------------------------

    async def run(self, requests: Iterable[LLMRequest] | AsyncIterable[LLMRequest]) -> AsyncIterator[JobOutcome]:
        """Yield what became of every request of this job as it is known, those of earlier runs first.

        Requests are read as they are needed, and outcomes wait in the state for whoever takes them: memory does not
        grow with the job. A later run must give the same requests in the same order, at least as far as they were
        read; JobChangedError otherwise. Leaving the loop early stops the job, and a later run goes on.
        """
        async for results in self.results(self._read(rows_of(requests, self._config))):
            for result in results:
                yield outcome_of(result)

    async def results(self, rows: AsyncIterable[NewRow], after: int = 0) -> AsyncIterator[list[StoredResult]]:
        """Answer rows, and yield results in the order of their recording, some at a time, those above `after`."""
        store = self.store
        runner, work = await self._begun(rows)
        while True:
            self._new_results.clear()
            is_over = work.done()
            try:
                found = await runner.persisted(lambda: store.results(after, RESULTS_AT_ONCE))  # noqa: B023 - it is awaited here
            except JobStoreBusyError:  # the job was abandoned
                break
            if found:
                yield found
                after = found[-1].id
            elif is_over:
                break
            else:
                await self._until_new_results()
        await work
        if runner.halted is not None:
            raise runner.halted

    async def load(self, requests: Iterable[LLMRequest] | AsyncIterable[LLMRequest]) -> None:
        """Take all requests in and ask none; workers do that, or a later run."""
        await self.take_in(rows_of(requests, self._config))

    async def take_in(self, rows: AsyncIterable[NewRow]) -> None:
        """Do the same with rows."""
        _, work = await self._begun(rows, asks=False)
        await work

    async def work(self) -> None:
        """Answer rows that another process feeds, until all of the job have ended or it is stopped."""
        runner, work = await self._begun(no_rows())
        await work
        if runner.halted is not None:
            raise runner.halted

    @property
    def store(self) -> JobStore:
        """Where the job lives, while it is open. Raises JobError."""
        if self._store is None:
            raise JobError("The job is not open; use it as `async with job:`.")
        return self._store

    @property
    def under_way(self) -> int:
        """How many rows are being asked."""
        return self._runner.under_way if self._runner is not None else 0

    @property
    def broken_off(self) -> int:
        """How many rows were being asked when the job was stopped, and are pending again."""
        return self._runner.broken_off if self._runner is not None else 0

    async def ledger(self) -> Ledger:
        """Return all rows and calls, added up in the state."""
        return await self._patiently(self.store.ledger)

    async def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""
        return await self._patiently(self.store.facts)

    async def last_number(self) -> int:
        """Return the highest number of a row that was taken in, 0 where there is none."""
        return await self._patiently(self.store.last_number)

    async def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values in the state, each in the place of an earlier one of its name."""
        await self._patiently(lambda: self.store.note(facts))

    async def retry_failed(self, kinds: Collection[str] | None = None) -> int:
        """Take back the failures of some kinds, or of all, for the next `run`; return how many."""
        return await self.store.retry_failed(kinds)

    async def _patiently(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do it; while the store is busy, a job that has been begun waits for it."""
        return await (action() if self._runner is None else self._runner.persisted(action))

    # --- parts ------------------------------------------------------------------------------------------------

    async def _read(self, rows: AsyncIterable[NewRow]) -> AsyncIterator[NewRow]:
        """Yield all rows, and note that there are no more; of a shared job the runner does."""
        async for row in rows:
            yield row
        if not self.store.shared:
            await self.note({"read": True})

    async def _begun(self, rows: AsyncIterable[NewRow], *, asks: bool = True) -> tuple[Runner, asyncio.Task[None]]:
        """Begin to answer rows."""
        if self._work is not None and not self._work.done():
            raise JobError("The job is being run; one run at a time.")
        runner = self._runner = await self._assembly.runner(self.store, feeds=not self._helps, asks=asks)
        work = self._work = asyncio.create_task(runner.run(noted(rows, self._config, self.note)))
        work.add_done_callback(lambda _: self._new_results.set())
        return runner, work

    async def _until_new_results(self) -> None:
        """Return when there may be new results; of those that others record nobody is told."""
        if not self.store.shared:
            await self._new_results.wait()
            return
        with suppress(TimeoutError):
            async with self._clock.timeout(LOOK_PERIOD):
                await self._new_results.wait()


def _none(_intent: str) -> set[str]:
    return set()


def _log_bug(lease: Lease, trace: str) -> None:
    log.error("row %d of a job met a bug:\n%s", lease.number, trace)
