"""A durable job: requests in, outcomes out, and a file from which another process can go on."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from llm_gateway.answers import AnswerSchema
from llm_gateway.calls import CallWatch
from llm_gateway.clock import Clock, LoopClock
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError, InvalidRequestError, JobChangedError, JobError, JobStoreBusyError
from llm_gateway.jobs.asking import Answering, Asker, failure_of
from llm_gateway.jobs.batch_book import BatchBook
from llm_gateway.jobs.batch_runner import BatchPlan, BatchRunner
from llm_gateway.jobs.batches import Batches
from llm_gateway.jobs.encoding import from_json, request_json
from llm_gateway.jobs.laning import Laning
from llm_gateway.jobs.opening import Place, open_store, place_of, shown_place
from llm_gateway.jobs.records import Lease, Ledger, NewRow, StoredResult
from llm_gateway.jobs.runner import LOOK_PERIOD, Hooks, Runner, window_of
from llm_gateway.jobs.sqlite import SqliteJobStore
from llm_gateway.jobs.store import JobStore
from llm_gateway.models import LLMRequest, LLMResponse, ModelProvider, RequestPriority
from llm_gateway.price_lanes import LaneChoice
from llm_gateway.sentences import SECRET

if TYPE_CHECKING:
    from llm_gateway.clients.batches import BatchLine

T = TypeVar("T")

log = logging.getLogger("llm_gateway")

RESULTS_AT_ONCE = 256
POLL = 60.0  # seconds between two looks at a provider's batches
STANDARD_SHARE = 4  # of the time until a deadline, the last so-manieth part is the standard lane's,
LONGEST_STANDARD = 3600.0  # but no more seconds than this
FORM = "request"  # of rows that a program gives
MODEL = "model:"  # before the name of a model among the facts of a job


class JobGateway(Answering, Protocol):
    """What a job needs of a gateway."""

    @property
    def config(self) -> GatewayConfig:
        """The validated configuration."""

    def batch_line(self, model: str, /) -> BatchLine | None:
        """Return what leads to the batches of a model's provider, None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What became of one request of a job: a response, or why there is none."""

    number: int  # of the request, from 1, in the order they were given
    request_id: str | None  # as given, "row-N" where none was given; None: it stood on an earlier request too
    response: LLMResponse | None = None
    kind: str | None = None  # of the error, as in its class
    message: str | None = None  # of the error
    attempts: int = 0  # provider calls, those of earlier runs included

    @property
    def ok(self) -> bool:
        """Whether there is a response."""
        return self.response is not None


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
    ) -> None:
        """Take the gateway and its watch: an observer of the gateway, by which the job hears of every call."""
        self._gateway = gateway
        self._place = place_of(path)
        self._watch = watch
        self._fresh = fresh
        self._helps = helps
        self._lease_seconds = lease_seconds
        self._schema = AnswerSchema(dict(schema)) if isinstance(schema, Mapping) else schema
        self._priority = priority
        self._clock = clock or LoopClock()
        self._hooks = hooks or Hooks()
        self._on_bug = on_bug or _log_bug
        self._lane = lane
        self._deadline = deadline
        self._poll = poll
        self._release: Callable[[], None] = lambda: None
        self._store: JobStore | None = None
        self._runner: Runner | None = None
        self._work: asyncio.Task[None] | None = None
        self._new_results = asyncio.Event()

    # --- beginning and ending ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the state, or begin one. Raises JobError if another process works on this job."""
        self._store, self._release = await open_store(
            self._place, fresh=self._fresh, helps=self._helps, lease_seconds=self._lease_seconds
        )
        try:
            await self._store.reclaim()
            await self._check_models(await self._store.facts())
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
        async for results in self.results(self._rows(requests)):
            for result in results:
                yield _outcome(result)

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
        await self.take_in(self._rows(requests))

    async def take_in(self, rows: AsyncIterable[NewRow]) -> None:
        """Do the same with rows."""
        _, work = await self._begun(rows, asks=False)
        await work

    async def work(self) -> None:
        """Answer rows that another process feeds, until all of the job have ended or it is stopped."""
        runner, work = await self._begun(_nothing())
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

    async def _begun(self, rows: AsyncIterable[NewRow], *, asks: bool = True) -> tuple[Runner, asyncio.Task[None]]:
        """Begin to answer rows."""
        runner = self._runner = await self._new_runner(asks=asks)
        work = self._work = asyncio.create_task(runner.run(self._noted(rows)))
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

    async def _new_runner(self, *, asks: bool) -> Runner:
        if self._work is not None and not self._work.done():
            raise JobError("The job is being run; one run at a time.")
        config = self._gateway.config
        store = self.store
        book = store.batches if isinstance(store, SqliteJobStore) and self._place is not None else None
        laning = Laning(
            config=config,
            lane=self._lane,
            deadline=self._deadline,
            is_kept=book is not None,
            told=self._hooks.told,
        )
        asker = Asker(
            gateway=self._gateway,
            watch=self._watch,
            record_call=self.store.record_call,
            clock=self._clock,
            on_bug=self._on_bug,
            schema=self._schema,
            max_answers=config.retry.max_attempts,
            priority=self._priority,
            has_flex=laning.has_flex,
            lane_of=laning.of_calls if laning.is_needed else None,
        )

        def window(model: str) -> int:
            return window_of(config.model(model).max_concurrency, config.batching.max_queue_size)

        hooks = replace(self._hooks, recorded=self._new_results.set)
        feeds = not self._helps
        if book is None:
            return Runner(store, asker, window=window, clock=self._clock, hooks=hooks, feeds=feeds, asks=asks)
        plan = await self._plan(book, laning, asker)
        return BatchRunner(
            store, asker, plan=plan, window=window, clock=self._clock, hooks=hooks, feeds=feeds, asks=asks
        )

    async def _plan(self, book: BatchBook, laning: Laning, asker: Asker) -> BatchPlan:
        watched = {each.model for each in await book.all_batches() if each.is_open}

        def batches_of(model: str) -> Batches | None:
            if laning.of(model) != "batch" and model not in watched:
                return None
            line = self._gateway.batch_line(model)
            if line is None:
                raise ConfigurationError(f"The client of model '{model}' has no batches; use another lane.")
            return Batches(
                model=model,
                line=line,
                book=book,
                persisted=self._patiently,
                judge=asker.judged,
                most_turns=self._gateway.config.retry.max_attempts,
                recorded=self._new_results.set,
                passed=self._hooks.step,
            )

        patience = math.inf if self._deadline is None else self._deadline
        return BatchPlan(
            book=book,
            batches_of=batches_of,
            makes=lambda model: laning.of(model) == "batch",
            poll=self._poll,
            late_after=patience - min(patience / STANDARD_SHARE, LONGEST_STANDARD),
        )

    async def _rows(self, requests: Iterable[LLMRequest] | AsyncIterable[LLMRequest]) -> AsyncIterator[NewRow]:
        number = 0
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                number += 1
                yield self._row(number, request)
        else:
            for request in requests:
                number += 1
                yield self._row(number, request)

    def _row(self, number: int, request: LLMRequest) -> NewRow:
        if "request_id" not in request.model_fields_set:
            request = request.model_copy(update={"request_id": f"row-{number}"})
        try:
            self._gateway.config.model(name_of(request.model))
        except InvalidRequestError as error:
            return NewRow(number=number, key=request.request_id, form=FORM, failure=failure_of(error))
        return asked_row(number, request, form=FORM)

    # --- models -----------------------------------------------------------------------------------------------

    async def _noted(self, rows: AsyncIterable[NewRow]) -> AsyncIterator[NewRow]:
        """Note what each model is before the first row of it."""
        seen: set[str] = set()
        async for row in rows:
            if row.model and row.model not in seen:
                seen.add(row.model)
                await self.note({f"{MODEL}{row.model}": self._model(row.model)})
            yield row

    async def _check_models(self, facts: Mapping[str, Any]) -> None:
        """Raise JobChangedError if a model that the job has asked is configured otherwise now."""
        for name, before in facts.items():
            if not name.startswith(MODEL):
                continue
            model = name.removeprefix(MODEL)
            now = self._model(model)
            if now != before:
                raise JobChangedError(
                    f"Model '{model}' was {before} when the job {shown_place(self._place)} began, and is {now} now; "
                    "configure it as it was, or begin another job."
                )

    def _model(self, name: str) -> str:
        settings = self._gateway.config.model(name)
        options = {key: value for key, value in settings.options.items() if not SECRET.search(key)}
        facts = {"max_tokens": settings.max_tokens, **options}
        told = ", ".join(f"{key}={value}" for key, value in facts.items() if value is not None)
        return f"{settings.provider}/{settings.model}{f' ({told})' if told else ''}"


def name_of(model: ModelProvider | str) -> str:
    """Return the name of a model as the configuration has it."""
    return model.value if isinstance(model, ModelProvider) else model


def asked_row(number: int, request: LLMRequest, *, form: str) -> NewRow:
    """Return the row of a request that can be asked."""
    text, fingerprint = request_json(request)
    # The file keeps the schema of a class and not the class: answers must be the same in this run and in a later one.
    is_whole = not isinstance(request.response_format, type)
    return NewRow(
        number=number,
        key=request.request_id,
        form=form,
        model=name_of(request.model),
        fingerprint=fingerprint,
        request=text,
        asked=request if is_whole else None,
    )


async def _nothing() -> AsyncIterator[NewRow]:
    """Yield no row."""
    rows: tuple[NewRow, ...] = ()
    for row in rows:
        yield row


def _outcome(result: StoredResult) -> JobOutcome:
    told = from_json(result.body)
    if result.kind is None:
        return JobOutcome(
            number=result.number, request_id=result.key, response=LLMResponse(**told), attempts=result.attempts
        )
    return JobOutcome(
        number=result.number,
        request_id=result.key,
        kind=result.kind,
        message=told["message"],
        attempts=result.attempts,
    )


def _log_bug(lease: Lease, trace: str) -> None:
    log.error("row %d of a job met a bug:\n%s", lease.number, trace)
