"""Rows in, leases out, verdicts recorded: the loop of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from llm_gateway.clock import Clock
from llm_gateway.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    JobChangedError,
    JobStoreBusyError,
)
from llm_gateway.jobs.asking import Asker, Halt, failure_of
from llm_gateway.jobs.records import Calls, Lease, NewRow, RowState, Verdict
from llm_gateway.jobs.store import Added, JobStore
from llm_gateway.models import LLMRequest

T = TypeVar("T")
CHUNK = 128  # rows that are taken in together at most; the loop is not held up longer
AHEAD = 2048  # rows that may be pending before the reading waits: the store stays small, and nobody waits for rows
ROWS_A_SLOT = 4  # rows under way for each call that a model may have at once
FEWEST_ROWS = 16
KEPT = 2 * AHEAD  # requests that are kept at hand until their rows are leased
KEPT_BYTES = 4096  # a longer one, with an image say, waits in the store alone
STORE_PAUSE = 2.0  # seconds between attempts to write what the disk has no room for
LOOK_PERIOD = 1.0  # seconds between two looks at what others do to a shared job


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


@dataclass(slots=True, kw_only=True)
class Hooks:
    """Who hears of a job's ups and downs. Called on the loop."""

    paused: Callable[[JobStoreBusyError], None] = lambda _error: None  # the store cannot be written; it will go on
    resumed: Callable[[], None] = lambda: None
    recorded: Callable[[], None] = lambda: None  # there may be new results
    ended: Callable[[Verdict], None] = lambda _verdict: None  # a row of this process has a result
    refused: Callable[[NewRow], None] = lambda _row: None  # a row cannot be asked
    told: Callable[[str], None] = lambda _sentence: None  # what its user should know
    step: Callable[[str], None] = lambda _name: None  # before and after each step of a provider's batch


class Runner:
    """Takes rows into a store and asks them, until all have ended or it is stopped.

    At most a window of rows of each model is under way: memory does not grow with the job. While the store cannot be
    written, nothing is leased, and what was answered is held until it can.

    On a shared store it goes on until the rows of all processes have ended, and takes over those of one that is gone.
    """

    def __init__(
        self,
        store: JobStore,
        asker: Asker,
        *,
        window: Callable[[str], int],
        clock: Clock,
        hooks: Hooks,
        feeds: bool = True,
        asks: bool = True,
    ) -> None:
        """Take what works together; `window` says how many rows of a model may be under way.

        `feeds`: the rows that `run` gets are the whole job; without it another process feeds a shared store. Without
        `asks` rows are only taken in.
        """
        self._store = store
        self._asker = asker
        self._window = window
        self._clock = clock
        self._hooks = hooks
        self._feeds = feeds
        self._asks = asks
        self._all_over = asyncio.Event()  # every row of the store has ended, those of other processes too
        if not store.shared or not asks:
            self._all_over.set()  # nobody else's rows are waited for
        self._lanes: dict[str, Lane] = {}
        self._rows: set[asyncio.Task[Verdict]] = set()
        self._asking: set[asyncio.Task[Any]] = set()  # those of the rows that have no verdict yet
        self._has_news = asyncio.Event()  # it may be worth a look whether all is over
        self._reading = True
        self._stopping = False
        self._abandoned = False
        self._kept: dict[int, LLMRequest] = {}  # by the number of the row
        self._room = asyncio.Event()
        self._stopped = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._failing = 0  # writes that wait for room on the disk
        self._answered = False
        self._broken: BaseException | None = None
        self.halted: ConfigurationError | BudgetExceededError | None = None  # why it stopped by itself
        self.broken_off = 0  # rows that were under way when it ended and have no result

    @property
    def under_way(self) -> int:
        """How many rows are being asked."""
        return len(self._rows)

    def stop(self) -> None:
        """Read and lease nothing more; rows under way go on."""
        self._stopping = True
        self._stopped.set()
        self._wake()

    def abandon(self) -> None:
        """Stop, cancel the calls under way, whose rows are pending again, and wait for no disk."""
        self._abandoned = True
        self.stop()
        for task in self._asking:
            task.cancel()

    async def run(self, rows: AsyncIterable[NewRow]) -> None:
        """Return when every row has ended, or after `stop` those under way; an error of the reading is raised then."""
        ledger = await self.persisted(self._store.ledger)
        self._answered = ledger.done > 0 and not self._store.shared
        for model, number in (await self.persisted(self._store.pending)).items():
            self._lane(model).pending += number
        reader = asyncio.create_task(self._read(rows))
        stopped = asyncio.create_task(self._stopped.wait())
        looking = asyncio.create_task(self._look_around())
        try:
            await asyncio.wait((reader, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():  # it may wait for a line that never comes
                reader.cancel()
            await asyncio.wait((reader,))
            if reader.cancelled() or reader.exception() is not None:
                self.stop()
            elif self._feeds and self._store.shared:
                await self.persisted(lambda: self._store.note({"read": True}))
            self._reading = False
            self._has_news.set()
            self._wake()
            await self._all_ended()
        finally:
            for helper in (stopped, looking):
                helper.cancel()
            self.stop()
            reader.cancel()
            await asyncio.wait((reader, looking))
            await self._all_ended()
        error = self._broken if reader.cancelled() else reader.exception() or self._broken
        # Who gives up while the disk is full knows why.
        if error is not None and not (self._abandoned and isinstance(error, JobStoreBusyError)):
            raise error

    # --- rows in ----------------------------------------------------------------------------------------------

    async def _read(self, rows: AsyncIterable[NewRow]) -> None:
        """Take rows in. While some are being written, the next ones gather."""
        gathered: list[NewRow] = []
        writing: asyncio.Task[None] | None = None
        try:
            async for row in rows:
                gathered.append(row)
                if writing is None or writing.done():
                    if writing is not None:
                        writing.result()
                    writing = asyncio.create_task(self._take_in_all(gathered))
                if len(gathered) >= CHUNK:
                    await writing
                    await self._until_there_is_room()
        finally:
            if writing is not None:
                await asyncio.wait((writing,))
        if writing is not None:
            writing.result()

    async def _take_in_all(self, gathered: list[NewRow]) -> None:
        while gathered:
            chunk = gathered.copy()
            gathered.clear()
            await self._take_in(chunk)

    async def _until_there_is_room(self) -> None:
        # Others may work on a shared job, also when this process has ended: it is taken in as fast as it can be read.
        if self._store.shared or not self._asks:
            return
        while self._ahead() >= AHEAD and not self._stopping:
            self._room.clear()
            await self._room.wait()

    def _ahead(self) -> int:
        return sum(lane.pending for model, lane in self._lanes.items() if self._is_soon(model))

    def _is_soon(self, _model: str) -> bool:
        """Whether rows of a model are asked as soon as there is room, so that few of them need be taken in."""
        return True

    async def _take_in(self, rows: list[NewRow]) -> None:
        outcomes = await self.persisted(lambda: self._store.add(rows))
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome is Added.CHANGED:
                told = f"Row {row.number} ('{row.key}') is not what it was when the job began; begin another job."
                raise JobChangedError(told)
            if outcome is Added.TWICE:
                await self._take_in([_refused_for_its_key(row)])
            elif outcome is Added.NEW:
                self._taken_in(row)

    def _taken_in(self, row: NewRow) -> None:
        if row.failure is not None:
            self._hooks.refused(row)
            self._hooks.recorded()
            return
        if self._asks and row.asked is not None and len(row.request) <= KEPT_BYTES:
            if len(self._kept) >= KEPT:  # they went to other workers, or wait for the next run
                self._kept.clear()
            self._kept[row.number] = row.asked
        lane = self._lane(row.model)
        lane.pending += 1
        lane.changed.set()

    # --- leases -----------------------------------------------------------------------------------------------

    def _lane(self, model: str) -> Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(self._window(model))
            if self._asks:
                lane.task = asyncio.create_task(self._dispatch(model, lane))
        return lane

    async def _dispatch(self, model: str, lane: Lane) -> None:
        """Lease rows of one model whenever there is room in its window."""
        try:
            while not (self._stopping or self._is_over(lane)):
                limit = min(lane.pending, lane.window - lane.asking)
                if lane.blocked is not None:
                    limit = self._limit_of_blocked(lane)
                if limit <= 0 or not self._writable.is_set():
                    lane.changed.clear()
                    if not self._stopping:
                        await lane.changed.wait()
                    continue
                believed = lane.pending
                leases = await self.persisted(lambda limit=limit: self._store.lease(model, limit))  # type: ignore[misc]  # a default is no parameter
                # Fewer: other workers were faster. Below zero: one of them, and a look around at the same time.
                lane.pending = max(0, lane.pending - (limit if len(leases) == limit else believed))
                self._room.set()
                for lease in leases:
                    self._start(lane, lease)
        except Exception as error:  # noqa: BLE001 - `run` raises it, once the rows under way have ended
            self._broken = self._broken or error
            self.stop()

    async def _look_around(self) -> None:
        """Take over what others left behind, learn of what they brought and did, and note when all is over."""
        try:
            while self._store.shared and self._asks and not self._stopping:
                self._has_news.clear()
                await self.persisted(self._store.reclaim)
                found = await self.persisted(self._store.pending)
                for model in found:
                    self._lane(model)
                for model, lane in self._lanes.items():
                    lane.pending = found.get(model, 0)
                if not self._reading and await self.persisted(self._store.is_over):
                    self._all_over.set()
                self._wake()
                with suppress(TimeoutError):
                    async with self._clock.timeout(LOOK_PERIOD):
                        await self._has_news.wait()
        except Exception as error:  # noqa: BLE001 - `run` raises it, once the rows under way have ended
            self._broken = self._broken or error
            self.stop()

    def _start(self, lane: Lane, lease: Lease) -> asyncio.Task[Verdict]:
        lane.asking += 1
        lane.unrecorded += 1
        task = asyncio.create_task(self._work(lane, lease))
        self._rows.add(task)
        self._asking.add(task)
        task.add_done_callback(partial(self._row_ended, lane))
        return task

    def _row_ended(self, lane: Lane, task: asyncio.Task[Verdict]) -> None:
        self._rows.discard(task)
        lane.unrecorded -= 1
        if not lane.unrecorded:
            self._has_news.set()
        self._wake()
        if task.cancelled():  # before its first step; its call stays in doubt
            self.broken_off += 1
            return
        error = task.exception()
        if error is not None:  # `run` raises it, once the other rows have ended
            self._broken = self._broken or error
            self.stop()

    async def _work(self, lane: Lane, lease: Lease) -> Verdict:
        verdict = await self._asker.ask(lease, self._kept.pop(lease.number, None))
        task = asyncio.current_task()
        if task is not None:
            self._asking.discard(task)
        if isinstance(verdict, Halt):
            verdict = self._after_halt(lane, verdict)
        elif verdict.answer is not None:
            # What this process has no key for, another one of a shared job may: no row fails of it.
            self._answered = not self._store.shared
        # The next row can be leased in the same transaction that records this one.
        lane.asking -= 1
        lane.changed.set()
        try:
            is_ours = await self.persisted(lambda: self._store.finish(lease, verdict))
        except JobStoreBusyError:  # given up: the row stays leased, and its call in doubt, until the job goes on
            self.broken_off += 1
            return verdict
        if verdict.state is not RowState.PENDING:
            self._hooks.recorded()
            if is_ours:
                self._hooks.ended(verdict)
        elif verdict.broken_off:
            self.broken_off += 1
        if verdict.state is RowState.PENDING and is_ours:
            lane.pending += 1
        return verdict

    def _after_halt(self, lane: Lane, halt: Halt) -> Verdict:
        """Stop if there is no money; else wait whether other rows are answered, so that it is this one that fails."""
        unsent = Calls(unsent=1)
        if isinstance(halt.error, BudgetExceededError):
            self.halted = halt.error
            self.stop()
        elif self._answered:
            return Verdict(calls=unsent, failure=failure_of(halt.error))
        else:
            lane.blocked = halt.error
        return Verdict(calls=unsent)

    def _limit_of_blocked(self, lane: Lane) -> int:
        """Return how many rows of a blocked lane to lease; stop if no other lane has anything to do."""
        if self._answered:
            return min(lane.pending, lane.window - lane.asking)
        others = [each for each in self._lanes.values() if each.blocked is None and each.pending + each.unrecorded]
        if not others and not lane.unrecorded:
            self.halted = lane.blocked
            self.stop()
        return 0

    # --- waiting ----------------------------------------------------------------------------------------------

    async def persisted(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do what writes; while the disk is full, say so once and try again until there is room, or `abandon`."""
        failed = False
        try:
            while True:
                try:
                    return await action()
                except JobStoreBusyError as error:
                    if self._abandoned:
                        raise
                    if not failed:
                        failed = True
                        self._pause(error)
                await self._clock.sleep(STORE_PAUSE)
        finally:
            if failed:
                self._go_on()

    def _pause(self, error: JobStoreBusyError) -> None:
        self._failing += 1
        if self._failing == 1:
            self._writable.clear()
            self._hooks.paused(error)

    def _go_on(self) -> None:
        """Go on once everything is written that could not be."""
        self._failing -= 1
        if not self._failing:
            self._writable.set()
            self._wake()
            if not self._abandoned:
                self._hooks.resumed()

    async def _all_ended(self) -> None:
        """Return when no row is under way and none will be; lanes end when they have nothing more to lease."""
        while not (self._stopping or self._all_over.is_set()):
            self._room.clear()
            await self._room.wait()
        while lanes := [lane.task for lane in self._lanes.values() if lane.task is not None and not lane.task.done()]:
            await asyncio.wait(lanes)
        while self._rows:
            await asyncio.wait(self._rows)

    def _is_over(self, lane: Lane) -> bool:
        return not self._reading and not lane.pending and not lane.unrecorded and self._all_over.is_set()

    def _wake(self) -> None:
        self._room.set()
        for lane in self._lanes.values():
            lane.changed.set()


def _refused_for_its_key(row: NewRow) -> NewRow:
    """Return a row that cannot be asked, since an earlier one has its id."""
    error = InvalidRequestError(f"the id '{row.key}' stands on an earlier line too; give each line its own.")
    return replace(row, key=None, model="", request=b"", failure=failure_of(error))


def window_of(max_concurrency: int, max_queue_size: int) -> int:
    """Return how many rows of a model to keep under way: no slot waits for a row, and no queue is filled."""
    return min(max(FEWEST_ROWS, ROWS_A_SLOT * max_concurrency), max_queue_size)
