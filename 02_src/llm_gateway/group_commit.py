"""Steps that share a transaction in a thread, and who waits for them: what the stores of jobs and answers share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any


def transact(connection: sqlite3.Connection, steps: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
    """Return what the steps returned, once all of them are committed. If one raises, none of them has happened."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [step(connection) for step in steps]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has ended it itself where the disk is full
            connection.execute("ROLLBACK")
        raise
    return outcomes


def settle(waiting: Sequence[asyncio.Future[Any]], done: asyncio.Future[list[Any]]) -> None:
    """Give each who waits the outcome at its place in `done`, or all of them its error."""
    error = done.exception()
    outcomes = [None] * len(waiting) if error else done.result()
    for future, outcome in zip(waiting, outcomes, strict=True):
        if future.done():  # nobody waits for it any more
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(outcome)
