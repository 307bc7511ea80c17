"""Leased rows are asked, some of each model at once; the others wait at hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llm_gateway.jobs.asking import Asker, Halt
from llm_gateway.jobs.lanes import Begun, Lane
from llm_gateway.jobs.records import Verdict


class Askers:
    """Tasks that ask rows. One that has ended a row takes the next: a row needs no task of its own."""

    def __init__(
        self,
        asker: Asker,
        *,
        ended: Callable[[Lane, Begun, Verdict | Halt], None],
        broken: Callable[[Lane, Begun, Exception], None],
    ) -> None:
        """Take who asks, who hears what became of a row, and who hears of a row that met a bug of the asking."""
        self._asker = asker
        self._ended = ended
        self._broken = broken

    def ask(self, lane: Lane, row: Begun) -> None:
        """Have a row asked, as soon as fewer of its model are than may be."""
        lane.at_hand.append(row)
        while lane.idle:
            idle = lane.idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        if len(lane.askers) < lane.window.asked:
            lane.askers.add(asyncio.create_task(self._work(lane)))

    def cancel(self, lane: Lane) -> None:
        """Cancel the calls under way for a model. What is at hand must have been taken away before."""
        for task in lane.askers:
            task.cancel()

    async def dismiss(self, lane: Lane) -> None:
        """End the tasks of a model, none of whose rows is asked any more."""
        self.cancel(lane)
        if lane.askers:
            await asyncio.wait(lane.askers)

    async def _work(self, lane: Lane) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is in one
        at_hand = lane.at_hand
        while True:
            while at_hand:
                row = at_hand.popleft()
                try:
                    end = await self._asker.ask(row.lease, row.request, task)
                except Exception as bug:  # noqa: BLE001 - the runner raises it, once the rows under way have ended
                    self._broken(lane, row, bug)
                else:
                    self._ended(lane, row, end)
            idle = task.get_loop().create_future()
            lane.idle.append(idle)
            await idle
