"""How a job's place becomes a store that is open: a file with a lock beside it, a database, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_gateway.errors import JobError
from llm_gateway.jobs.address import JobAddress, is_database
from llm_gateway.jobs.lock import JobLock
from llm_gateway.jobs.sqlite import SqliteJobStore, remove_state
from llm_gateway.jobs.store import JobStore

Place = Path | JobAddress | None


def place_of(path: Place | str) -> Place:
    """Return where a job lives. Raises ConfigurationError for an address that names no job."""
    if path is None or isinstance(path, Path | JobAddress):
        return path
    return JobAddress.of_job(path) if is_database(path) else Path(path)


def shown_place(place: Place) -> str:
    """Return where a job lives, without a password."""
    return place.shown if isinstance(place, JobAddress) else str(place)


async def open_store(
    place: Place, *, fresh: bool, helps: bool, lease_seconds: float | None
) -> tuple[JobStore, Callable[[], None]]:
    """Return a store, and what lets others work on the job once it is closed. Raises JobError.

    `fresh` forgets what is there; who `helps` works on a job that another process feeds.
    """
    if isinstance(place, JobAddress):
        return await _open_database(place, fresh=fresh, helps=helps, lease_seconds=lease_seconds), lambda: None
    if helps or lease_seconds is not None:
        raise JobError(
            "Only a job in a database has workers: give its address, as postgresql://host/database?job=name."
        )
    if place is None:
        return SqliteJobStore.temporary(), lambda: None
    lock = JobLock(place)
    try:
        if fresh:
            remove_state(place)
        return SqliteJobStore.open(place), lock.release
    except BaseException:
        lock.release()
        raise


async def _open_database(address: JobAddress, *, fresh: bool, helps: bool, lease_seconds: float | None) -> JobStore:
    # Its driver is imported where it is needed.
    from llm_gateway.jobs.postgres import LEASE_SECONDS, PostgresJobStore

    patience = LEASE_SECONDS if lease_seconds is None else lease_seconds
    store = await PostgresJobStore.open(address, begins=not helps, patience=patience)
    try:
        if not helps:
            await store.claim()
        if fresh:
            await store.forget()
    except BaseException:
        await store.close()
        raise
    return store
