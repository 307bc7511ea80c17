"""The seam to where a job lives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from llm_gateway.jobs.records import Lease, Ledger, NewRow, StoredResult, Verdict


class Added(Enum):
    """What became of a row that was added."""

    NEW = "new"
    KNOWN = "known"  # the same row was there
    CHANGED = "changed"  # another row has this number; nothing was written
    TWICE = "twice"  # another number has this key; nothing was written


class JobStore(Protocol):
    """Rows and results that survive the process. Whatever a method returns is on disk.

    Every method raises JobStoreBusyError where the same may succeed later: the disk is full, the database is away. Then
    nothing has changed, or nothing that would be changed twice if it is done again.
    """

    shared: bool
    """Whether other processes may work on the same job at the same time."""

    async def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""

    async def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""

    async def add(self, rows: Sequence[NewRow], /) -> list[Added]:
        """Take in rows of the input; return for each what became of it.

        A new row that says so is leased at once, for the first time, and a call is recorded for it.
        """

    async def lease(self, model: str, limit: int, /) -> list[Lease]:
        """Lease up to `limit` pending rows of a model, the first of the input first, and record a call for each.

        Fewer come only where no more are pending, or others are leasing them at this moment.
        """

    def record_call(self, lease: Lease, /) -> None:
        """Record that one more call will be made for a leased row. Blocks until it is on disk."""

    async def finish(self, ends: Sequence[tuple[Lease, Verdict]], /) -> list[bool]:
        """Record the ends of leases and their results, all or nothing; False for a stale one, of which nothing is."""

    async def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording, those with an id above `after`."""

    async def pending(self) -> dict[str, int]:
        """Return how many rows of each model are pending; a shared store may stop counting at some thousands."""

    async def is_over(self) -> bool:
        """Whether the input was read to its end (the fact `read` is true) and every row has ended."""

    async def last_number(self) -> int:
        """Return the highest number of a row, 0 where there is none."""

    async def ledger(self) -> Ledger:
        """Add up all rows and calls."""

    async def reclaim(self) -> int:
        """Make leased rows pending whose process is gone; return how many. Their open calls are in doubt.

        In a shared store it is gone when it has not been heard of for some time by the clock of the server. Should it
        come back, its leases hold until the rows are leased anew.
        """

    async def retry_failed(self, kinds: Collection[str] | None, /) -> int:
        """Make rows pending that were asked in vain, of some kinds or of all; return how many."""

    async def close(self) -> None:
        """Close it. Safe to call twice."""
