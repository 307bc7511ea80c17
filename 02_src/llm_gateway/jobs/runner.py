"""Rows in, leases out, verdicts recorded: the loop of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from itertools import repeat

from llm_gateway.clock import Clock
from llm_gateway.errors import BudgetExceededError, ConfigurationError, JobStoreBusyError
from llm_gateway.jobs.askers import Askers
from llm_gateway.jobs.asking import Asker, Halt, failure_of
from llm_gateway.jobs.claims import Claims
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.intake import Intake
from llm_gateway.jobs.lanes import Begun, Lane, Window
from llm_gateway.jobs.patience import Patience
from llm_gateway.jobs.recording import End, Recorder
from llm_gateway.jobs.records import Calls, Lease, NewRow, RowState, Verdict
from llm_gateway.jobs.store import JobStore
from llm_gateway.models import LLMRequest

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
        window: Callable[[str], Window],
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
        self._window = window
        self._clock = clock
        self._hooks = hooks
        self._feeds = feeds
        self._asks = asks
        self._all_over = asyncio.Event()  # every row of the store has ended, those of other processes too
        if not store.shared or not asks:
            self._all_over.set()  # nobody else's rows are waited for
        self._lanes: dict[str, Lane] = {}
        self._askers = Askers(asker, ended=self._asked, broken=self._met_a_bug)
        self._patience = Patience(clock, hooks, went_on=self._wake)
        self.persisted = self._patience.persisted
        # Others may work on a shared job, also when this process has ended: it is taken in as fast as it can be read.
        self._claims = Claims(
            self._lanes, self._lane, is_soon=self._is_soon, asks=asks, takes_all=store.shared or not asks
        )
        self._intake = Intake(store, self._patience, self, clock)
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
        """How many rows are being asked, or have been and are being recorded."""
        return sum(lane.unrecorded - len(lane.at_hand) for lane in self._lanes.values())

    def stop(self) -> None:
        """Read and ask nothing more; rows under way go on, and those that wait at hand are pending again."""
        self._stopping = True
        self._stopped.set()
        for lane in self._lanes.values():
            while lane.at_hand:
                self._give_back(lane, lane.at_hand.popleft())
        self._wake()

    def abandon(self) -> None:
        """Stop, cancel the calls under way, whose rows are pending again, and wait for no disk."""
        self._abandoned = True
        self._patience.give_up()
        self.stop()
        for lane in self._lanes.values():
            self._askers.cancel(lane)

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
            for lane in self._lanes.values():
                await self._askers.dismiss(lane)
        error = self._broken if reader.cancelled() else reader.exception() or self._broken
        # Who gives up while the disk is full knows why.
        if error is not None and not (self._abandoned and isinstance(error, JobStoreBusyError)):
            raise error

    # --- rows in ----------------------------------------------------------------------------------------------

    def claim(self, rows: Sequence[NewRow], *, stalled: bool) -> int | None:
        """Return how many of the first rows to take in; see Taker."""
        return None if self._stopping else self._claims.claim(rows, stalled=stalled)

    async def until_needed(self) -> None:
        """Return when more rows may be needed."""
        self._room.clear()
        await self._room.wait()

    def taken_in(self, rows: Sequence[NewRow]) -> None:
        """Ask rows that are new in the store, now or later."""
        for row in rows:
            if row.failure is not None:
                self._hooks.refused(row)
                self._hooks.recorded()
            elif row.leased:
                self._start(self._lanes[row.model], Lease(row.number, 1, row.key or "", row.request, 0), row.asked)
            else:
                lane = self._lane(row.model)
                lane.pending += 1
                lane.changed.set()

    def not_taken_in(self, rows: Sequence[NewRow]) -> None:
        """Give the room back that was kept for rows."""
        for row in rows:
            if row.leased:
                self._lanes[row.model].leased -= 1
        self._room.set()

    def _is_soon(self, _model: str) -> bool:
        """Whether rows of a model are asked as soon as there is room, so that few of them need be taken in."""
        return True

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
                    lane.leased += 1
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

    def _start(
        self,
        lane: Lane,
        lease: Lease,
        request: LLMRequest | None = None,
        told: asyncio.Future[Verdict | None] | None = None,
    ) -> None:
        """Ask a row; `told` hears what became of it once that is recorded, None if nothing could be."""
        lane.unrecorded += 1
        row = Begun(lease, request, told)
        if self._stopping:  # while the row was leased
            self._give_back(lane, row)
        else:
            self._askers.ask(lane, row)

    def _give_back(self, lane: Lane, row: Begun) -> None:
        """Record of a row that it was not asked after all."""
        self._asked(lane, row, Verdict(calls=Calls(unsent=1)))

    def _asked(self, lane: Lane, row: Begun, end: Verdict | Halt) -> None:
        # The next row can be leased in the same transaction that records this one.
        lane.leased -= 1
        if isinstance(end, Halt):
            end = self._after_halt(lane, end)
        elif end.answer is not None:
            # What this process has no key for, another one of a shared job may: no row fails of it.
            self._answered = not self._store.shared
        self._recorder.put(End(lane, row.lease, end, row.told))
        self._room.set()
        if lane.pending:
            lane.changed.set()

    def _met_a_bug(self, lane: Lane, row: Begun, bug: Exception) -> None:
        lane.leased -= 1
        self._fail(bug)
        self._ended([End(lane, row.lease, Verdict(calls=Calls()), row.told)], None)

    def _ended(self, ends: Sequence[End], ours: Sequence[bool] | None) -> None:
        """Count rows whose end is recorded; None: they are not, and nothing is known of them until the job goes on."""
        for (lane, _, verdict, told), is_ours in zip(ends, repeat(None) if ours is None else ours, strict=False):
            lane.unrecorded -= 1
            if is_ours is None:
                self.broken_off += 1
            elif verdict.state is RowState.PENDING:
                self.broken_off += verdict.broken_off
                lane.pending += is_ours
            elif is_ours:
                self._hooks.ended(verdict)
            if not lane.unrecorded:
                self._has_news.set()
            if told is not None and not told.done():
                told.set_result(None if is_ours is None else verdict)
        self._hooks.recorded()
        self._wake()

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
        while any(lane.unrecorded for lane in self._lanes.values()):
            self._room.clear()
            await self._room.wait()

    def _is_over(self, lane: Lane) -> bool:
        return not self._reading and not lane.pending and not lane.unrecorded and self._all_over.is_set()

    def _wake(self) -> None:
        self._room.set()
        for lane in self._lanes.values():
            lane.changed.set()
