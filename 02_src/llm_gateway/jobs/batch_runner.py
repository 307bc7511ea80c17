"""The loop of a job whose rows go to a provider's batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llm_gateway.errors import BudgetExceededError, ConfigurationError
from llm_gateway.jobs.asking import Asker
from llm_gateway.jobs.batch_book import BatchBook
from llm_gateway.jobs.batches import Batches
from llm_gateway.jobs.lanes import Lane
from llm_gateway.jobs.records import Lease, NewRow, Verdict
from llm_gateway.jobs.runner import Runner
from llm_gateway.jobs.store import JobStore

PROBES = 3  # rows that are asked in the standard lane, one by one, until one is answered; only then a batch is made


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How a job uses providers' batches. Durations in seconds."""

    book: BatchBook
    batches_of: Callable[[str], Batches | None]  # None: the model has none
    makes: Callable[[str], bool]  # whether new ones are made for a model, or only the open ones watched
    poll: float  # between two looks at the batches of a model
    late_after: float  # from the beginning of the run, until what has no answer goes in the standard lane


class BatchRunner(Runner):
    """Runner that sends rows in batches, and in the standard lane what a batch cannot or could not answer.

    Rows gather on the disk until a batch is full or the input ends. One row is asked in the standard lane before the
    first batch, so that what is wrong with all of them fails once. When it is stopped, batches under way go on at their
    provider, and a later run takes them up.
    """

    def __init__(self, store: JobStore, asker: Asker, *, plan: BatchPlan, **options: Any) -> None:
        """Take what a Runner takes, and the plan."""
        super().__init__(store, asker, **options)
        self._plan = plan
        self._late_at = math.inf

    async def run(self, rows: AsyncIterable[NewRow]) -> None:
        """Return as Runner does; batches that are under way count as rows that are."""
        self._late_at = self._clock.now() + self._plan.late_after
        for batch in await self._plan.book.all_batches():
            if batch.is_open:
                self._lane(batch.model)
        await super().run(rows)

    def _is_soon(self, model: str) -> bool:
        return not self._plan.makes(model)

    async def _dispatch(self, model: str, lane: Lane) -> None:
        try:
            batches = self._plan.batches_of(model)
            if batches is not None:
                await self._drive(model, lane, batches)
        except (BudgetExceededError, ConfigurationError) as error:
            self.halted = error
            self.stop()
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._fail(error)
        else:
            if batches is None:
                await super()._dispatch(model, lane)

    async def _drive(self, model: str, lane: Lane, batches: Batches) -> None:
        """Make batches, look at them, and ask the rest, until all rows of a model have ended."""
        probed = await batches.begin()
        look_at = make_at = self._clock.now()
        while not (self._stopping or (self._is_over(lane) and not batches.under_way)):
            lane.changed.clear()  # before all that is looked at, so that no change of it is missed
            if batches.broke is not None and not batches.under_way:
                raise batches.broke
            now = self._clock.now()
            late = now >= self._late_at
            if batches.under_way and now >= look_at:
                lane.pending += await batches.look(cancel=late)
                look_at = self._clock.now() + self._plan.poll
            elif lane.pending and (late or not self._plan.makes(model)):
                if not await self._ask(model, lane, least_turns=0):
                    await self._idle(lane, now, look_at)
            elif lane.pending and now >= make_at and batches.broke is None and self._is_time(lane, batches):
                if not probed:
                    probed = await self._probe(model, lane)
                    continue
                made = await self._ask(model, lane, least_turns=batches.most_turns)
                made += await self._make(lane, batches)
                if not made:
                    make_at = self._clock.now() + self._plan.poll
                look_at = max(look_at, self._clock.now() + self._plan.poll) if made else look_at
            else:
                await self._idle(lane, now, look_at if batches.under_way else make_at)

    def _is_time(self, lane: Lane, batches: Batches) -> bool:
        """Whether the next batch is full, or nothing more will come to fill it."""
        return not self._reading or lane.pending >= batches.line.client.limits.requests

    async def _make(self, lane: Lane, batches: Batches) -> int:
        made = await batches.make()
        lane.pending -= made
        self._room.set()
        return made

    async def _ask(self, model: str, lane: Lane, *, least_turns: int) -> int:
        """Ask rows in the standard lane, as many as there is room for; return how many."""
        limit = lane.room
        if limit <= 0 or self._patience.is_waiting:
            return 0
        leases: list[Lease] = await self.persisted(lambda: self._plan.book.weary(model, limit, least_turns))
        lane.pending -= len(leases)
        for lease in leases:
            lane.leased += 1
            self._start(lane, lease)
        return len(leases)

    async def _probe(self, model: str, lane: Lane) -> bool:
        """Ask rows one by one until one is answered; False if there is none left. Raises ConfigurationError."""
        words = ""
        for _ in range(PROBES):
            leases = await self.persisted(lambda: self._store.lease(model, 1))
            if not leases:
                return False
            lane.pending -= 1
            verdict = await self._verdict(lane, leases[0])
            if lane.blocked is not None:
                raise lane.blocked
            if self._stopping or verdict is None:
                return False
            if verdict.answer is not None or verdict.invalid:
                return True
            if verdict.failure is not None:
                words = verdict.failure.body.decode()
        raise ConfigurationError(
            f"The first {PROBES} rows of model '{model}' failed, so that no batch was made of the others; the last one "
            f"with {words}. Mend what is wrong with all of them, and run it again."
        )

    async def _verdict(self, lane: Lane, lease: Lease) -> Verdict | None:
        told: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()
        lane.leased += 1
        self._start(lane, lease, None, told)
        return await told

    async def _idle(self, lane: Lane, since: float, until: float) -> None:
        """Wait for a change, or for an instant, or until it is late; what had come by `since` is not waited for."""
        instants = [each for each in (until, self._late_at) if since < each < math.inf]
        patience = max(0.0, min(instants) - self._clock.now()) if instants else None
        with suppress(TimeoutError):
            async with self._clock.timeout(patience):
                await lane.changed.wait()
