"""What a job may cost in all its runs, and with all its workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

from llm_gateway.budgets import Budgets
from llm_gateway.clock import LoopClock
from llm_gateway.config import BudgetSettings
from llm_gateway.errors import ConfigurationError
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.opening import Place
from llm_gateway.jobs.records import Ledger as JobLedger
from llm_gateway.jobs.store import JobStore
from llm_gateway.limits.shared.budgets import Ledger, SharedBudgets
from llm_gateway.sentences import dollars

OWNER = "the job"
OPTION = "--budget"  # as the command line calls it
OF_FILE = f"raise it with {OPTION}"
SHARED = "raise it with `llm-gateway run … --budget`"
PATIENCE = 10.0  # seconds for the database's answer; until then calls are paid from what was lent


class Payer(Protocol):
    """Who makes a job's calls."""

    def paying_from(self, budgets: Budgets, /) -> AbstractContextManager[None]:
        """Let every call in this context fall under these budgets too. Raises ConfigurationError."""


class Spender(Protocol):
    """An open job."""

    @property
    def store(self) -> JobStore:
        """Where it lives."""

    async def ledger(self) -> JobLedger:
        """Return all its rows and calls, added up."""

    def abandon(self) -> None:
        """Stop at once."""


@asynccontextmanager
async def within_budget(
    gateway: Payer, job: Spender, place: Place, limit: float | None, *, name: str = OPTION
) -> AsyncIterator[bool]:
    """Let the calls of `gateway` in this context cost no more than what is left of the job's budget, if it has one.

    `job` is open, and lives at `place`. In a file its budget is `limit` US dollars, less what its earlier runs cost. In
    a database it is kept, and all processes that work on the job share it; there `limit` sets it, and None leaves it as
    it is. `name` is what whoever gives it calls it. Yields whether there is a budget. Raises ConfigurationError where
    nothing is left of it.
    """
    if isinstance(place, JobAddress):
        async with _shared(gateway, job, place, limit, name) as has_budget:
            yield has_budget
        return
    if limit is not None:
        spent = (await job.ledger()).cost_usd
        _check_left(limit, spent, name)
        budgets = Budgets(BudgetSettings(total=limit), owner=OWNER, remedy=_remedy(name, OF_FILE))
        budgets.settle(budgets.take(0.0, model="", agent=None), spent)
        with gateway.paying_from(budgets):
            yield True
    else:
        yield False


@asynccontextmanager
async def _shared(
    gateway: Payer, job: Spender, address: JobAddress, limit: float | None, name: str
) -> AsyncIterator[bool]:
    # Its driver is imported where it is needed.
    from llm_gateway.jobs.postgres import PostgresJobStore
    from llm_gateway.jobs.postgres_purse import PostgresPurse

    if limit is None and isinstance(job.store, PostgresJobStore):
        # Before it looks for a budget: who gives the job one at this moment sees that somebody works without.
        await job.store.announce()
    lender = PostgresPurse(address)
    try:
        purse = await lender.begin(limit, check=lambda standing: _check_left(*standing, name))
        if purse is None:
            yield False
            return
        budgets = SharedBudgets(BudgetSettings(total=purse.limit), owner=OWNER, remedy=_remedy(name, SHARED))
        talk = Ledger(budgets, lender, key="", clock=LoopClock(), patience=PATIENCE)
        talking = asyncio.create_task(talk.run())
        # Where nobody lends any more, calls would wait for ever.
        talking.add_done_callback(lambda task: None if task.cancelled() else job.abandon())
        try:
            with gateway.paying_from(budgets):
                yield True
        finally:
            talking.cancel()
            await asyncio.wait((talking,))
            if talking.cancelled():
                await talk.say_bye()
        if not talking.cancelled():
            talking.result()  # raises what ended it
    finally:
        await lender.aclose()


def _remedy(name: str, of_command: str) -> str:
    return of_command if name == OPTION else f"raise the job's `{name}`"


def _check_left(limit: float, spent: float, name: str) -> None:
    if spent >= limit:
        raise ConfigurationError(f"{name}: the job has spent {dollars(spent)} of {dollars(limit)}; raise it to go on.")
