"""Verdicts out: what became of rows goes into the store, many rows in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm_gateway.errors import JobStoreBusyError
from llm_gateway.jobs.lanes import Lane
from llm_gateway.jobs.patience import Patience
from llm_gateway.jobs.records import Lease, Verdict
from llm_gateway.jobs.store import JobStore


class End(NamedTuple):
    """What became of a leased row, and who waits until that is recorded."""

    lane: Lane
    lease: Lease
    verdict: Verdict
    told: asyncio.Future[Verdict | None] | None


class Recorder:
    """Writes down ends. Those of one turn of the event loop share a step, steps that meet share a transaction."""

    def __init__(
        self,
        store: JobStore,
        patience: Patience,
        *,
        ended: Callable[[Sequence[End], Sequence[bool] | None], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """Take who hears of ends that are on disk, for each whether the lease was ours until then.

        It hears None of ends that were given up; `broken` hears why, unless it is the store that cannot be written.
        """
        self._store = store
        self._patience = patience
        self._ended = ended
        self._broken = broken
        self._gathered: list[End] = []
        self._writing: set[asyncio.Task[None]] = set()

    def put(self, end: End) -> None:
        """Have an end written, beginning when this turn of the loop is over."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._begin)
        self._gathered.append(end)

    def _begin(self) -> None:
        ends, self._gathered = self._gathered, []
        task = asyncio.create_task(self._write(ends))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, ends: Sequence[End]) -> None:
        ours: Sequence[bool] | None = None
        try:
            ours = await self._patience.persisted(
                lambda: self._store.finish([(end.lease, end.verdict) for end in ends])
            )
        except JobStoreBusyError:  # given up: the rows stay leased, and their calls in doubt, until the job goes on
            pass
        except Exception as error:  # noqa: BLE001 - the runner raises it, once the rows under way have ended
            self._broken(error)
        finally:
            self._ended(ends, ours)
