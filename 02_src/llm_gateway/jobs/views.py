"""The seam through which a job is looked at from outside, also while others work on it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.batch_book import StoredBatch
from llm_gateway.jobs.opening import Place
from llm_gateway.jobs.records import Ledger, StoredResult
from llm_gateway.jobs.sqlite import viewing as viewing_file


class JobView(Protocol):
    """What a job holds. Every method blocks, and raises JobError for what cannot be read."""

    name: str

    def facts(self) -> dict[str, Any]:
        """Return what was noted of the job as a whole."""

    def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""

    def ledger(self) -> Ledger:
        """Add up all rows and calls."""

    def batches(self) -> list[StoredBatch]:
        """Return the provider batches of the job, those that have ended too."""

    def workers(self) -> list[str]:
        """Return a word for each process that asks its rows now."""

    def last_number(self) -> int:
        """Return the highest number of a row, 0 where there is none."""

    def results(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of their recording, those with an id above `after`."""

    def results_by_number(self, after: int, limit: int, /) -> list[StoredResult]:
        """Return results in the order of the input, those of rows above `after`."""


def viewing(place: Place) -> AbstractContextManager[JobView]:
    """Open a job for a look. Raises JobError where there is none."""
    if isinstance(place, JobAddress):
        from llm_gateway.jobs.postgres import viewing as viewing_database

        return viewing_database(place)
    assert place is not None  # noqa: S101 - a temporary job has no place
    return viewing_file(place)
