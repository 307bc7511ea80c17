"""Rows in, leases out, verdicts recorded: the loop of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import Any

from llm_gateway.clock import Clock
from llm_gateway.errors import BudgetExceededError, ConfigurationError, JobStoreBusyError
from llm_gateway.jobs.asking import Asker, Halt, failure_of
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.intake import AHEAD, Intake
from llm_gateway.jobs.lanes import Lane
from llm_gateway.jobs.patience import Patience
from llm_gateway.jobs.recording import End, Recorder
from llm_gateway.jobs.records import Calls, Lease, NewRow, RowState, Verdict
from llm_gateway.jobs.store import JobStore

LOOK_PERIOD = 1.0  # seconds between two looks at what others do to a shared job


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
        self._asking: set[asyncio.Task[Any]] = set()  # those of the rows that have no verdict yet
        self._patience = Patience(clock, hooks, went_on=self._wake)
        self.persisted = self._patience.persisted
        self._intake = Intake(
            store, self._patience, keeps=asks, taken_in=self._taken_in, until_there_is_room=self._until_there_is_room
        )
        self._recorder = Recorder(store, self._patience, ended=self._ended, broken=self._fail)
        self._has_news = asyncio.Event()  # it may be worth a look whether all is over
        self._reading = True
        self._stopping = False
        self._abandoned = False
        self._room = asyncio.Event()
        self._stopped = asyncio.Event()
        self._answered = False
        self._broken: BaseException | None = None
        self.halted: ConfigurationError | BudgetExceededError | None = None  # why it stopped by itself
        self.broken_off = 0  # rows that were under way when it ended and have no result

    @property
    def under_way(self) -> int:
        """How many rows are being asked."""
        return sum(lane.unrecorded for lane in self._lanes.values())

    def stop(self) -> None:
        """Read and lease nothing more; rows under way go on."""
        self._stopping = True
        self._stopped.set()
        self._wake()

    def abandon(self) -> None:
        """Stop, cancel the calls under way, whose rows are pending again, and wait for no disk."""
        self._abandoned = True
        self._patience.give_up()
        self.stop()
        for task in self._asking:
            task.cancel()

    async def run(self, rows: AsyncIterable[NewRow]) -> None:
        """Return when every row has ended, or after `stop` those under way; an error of the reading is raised then."""
        ledger = await self.persisted(self._store.ledger)
        self._answered = ledger.done > 0 and not self._store.shared
        for model, number in (await self.persisted(self._store.pending)).items():
            self._lane(model).pending += number
        reader = asyncio.create_task(self._intake.read(rows))
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

    def _taken_in(self, row: NewRow) -> None:
        if row.failure is not None:
            self._hooks.refused(row)
            self._hooks.recorded()
            return
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
                limit = lane.room
                if lane.blocked is not None:
                    limit = self._limit_of_blocked(lane)
                if limit <= 0 or self._patience.is_waiting:
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
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._fail(error)

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
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._fail(error)

    def _start(self, lane: Lane, lease: Lease, told: asyncio.Future[Verdict | None] | None = None) -> None:
        """Ask a row; `told` hears what became of it once that is recorded, None if nothing could be."""
        lane.asking += 1
        lane.unrecorded += 1
        task = asyncio.create_task(self._asker.ask(lease, self._intake.known(lease.number)))
        self._asking.add(task)
        task.add_done_callback(partial(self._asked, lane, lease, told))
        if self._abandoned:  # while the row was leased; nobody will come to cancel it later
            task.cancel()

    def _asked(
        self,
        lane: Lane,
        lease: Lease,
        told: asyncio.Future[Verdict | None] | None,
        task: asyncio.Task[Verdict | Halt],
    ) -> None:
        self._asking.discard(task)
        # The next row can be leased in the same transaction that records this one.
        lane.asking -= 1
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._fail(bug)
            self._ended([End(lane, lease, Verdict(calls=Calls()), told)], None)
            return
        self._recorder.put(End(lane, lease, self._verdict_of(lane, task), told))
        lane.changed.set()

    def _verdict_of(self, lane: Lane, task: asyncio.Task[Verdict | Halt]) -> Verdict:
        if task.cancelled():  # before its first step, so that nothing was sent
            return Verdict(calls=Calls(unsent=1))
        verdict = task.result()
        if isinstance(verdict, Halt):
            return self._after_halt(lane, verdict)
        if verdict.answer is not None:
            # What this process has no key for, another one of a shared job may: no row fails of it.
            self._answered = not self._store.shared
        return verdict

    def _ended(self, ends: Sequence[End], ours: Sequence[bool] | None) -> None:
        """Count rows whose end is recorded; None: they are not, and nothing is known of them until the job goes on."""
        for end, is_ours in zip(ends, repeat(None) if ours is None else ours, strict=False):
            end.lane.unrecorded -= 1
            if is_ours is None:
                self.broken_off += 1
            else:
                self._count(end.lane, end.verdict, is_ours=is_ours)
            if not end.lane.unrecorded:
                self._has_news.set()
            if end.told is not None and not end.told.done():
                end.told.set_result(None if is_ours is None else end.verdict)
        self._wake()

    def _count(self, lane: Lane, verdict: Verdict, *, is_ours: bool) -> None:
        if verdict.state is not RowState.PENDING:
            self._hooks.recorded()
            if is_ours:
                self._hooks.ended(verdict)
            return
        self.broken_off += verdict.broken_off
        lane.pending += is_ours

    def _fail(self, error: BaseException) -> None:
        """Stop; `run` raises the first such error, once the rows under way have ended."""
        self._broken = self._broken or error
        self.stop()

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
            return lane.room
        others = [each for each in self._lanes.values() if each.blocked is None and each.pending + each.unrecorded]
        if not others and not lane.unrecorded:
            self.halted = lane.blocked
            self.stop()
        return 0

    # --- waiting ----------------------------------------------------------------------------------------------

    async def _all_ended(self) -> None:
        """Return when no row is under way and none will be; lanes end when they have nothing more to lease."""
        while not (self._stopping or self._all_over.is_set()):
            self._room.clear()
            await self._room.wait()
        while lanes := [lane.task for lane in self._lanes.values() if lane.task is not None and not lane.task.done()]:
            await asyncio.wait(lanes)
        while self.under_way:
            self._room.clear()
            await self._room.wait()

    def _is_over(self, lane: Lane) -> bool:
        return not self._reading and not lane.pending and not lane.unrecorded and self._all_over.is_set()

    def _wake(self) -> None:
        self._room.set()
        for lane in self._lanes.values():
            lane.changed.set()
