"""`--budget`: what a job may cost in all its runs, and with all its workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llm_gateway.budgets import Budgets
from llm_gateway.cli.console import dollars
from llm_gateway.clock import LoopClock
from llm_gateway.config import BudgetSettings
from llm_gateway.errors import ConfigurationError
from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.job import Job
from llm_gateway.jobs.opening import Place
from llm_gateway.limits.shared.budgets import Ledger, SharedBudgets

OWNER = "the job"
OF_FILE = "raise it with --budget"
SHARED = "raise it with `llm-gateway run … --budget`"
PATIENCE = 10.0  # seconds for the database's answer; until then calls are paid from what was lent


@asynccontextmanager
async def within_budget(gateway: LLMGateway, job: Job, place: Place, limit: float | None) -> AsyncIterator[bool]:
    """Let the calls of `gateway` in this context cost no more than what is left of the job's budget, if it has one.

    `job` is open, and lives at `place`. In a file its budget is `limit` US dollars, less what its earlier runs cost. In
    a database it is kept, and all processes that work on the job share it; there `limit` sets it, and None leaves it as
    it is. Yields whether there is a budget. Raises ConfigurationError where nothing is left of it.
    """
    if isinstance(place, JobAddress):
        async with _shared(gateway, job, place, limit) as has_budget:
            yield has_budget
        return
    if limit is not None:
        spent = (await job.ledger()).cost_usd
        _check_left(limit, spent)
        budgets = Budgets(BudgetSettings(total=limit), owner=OWNER, remedy=OF_FILE)
        budgets.settle(budgets.take(0.0, model="", agent=None), spent)
        gateway.pay_from(budgets)
    yield limit is not None


@asynccontextmanager
async def _shared(gateway: LLMGateway, job: Job, address: JobAddress, limit: float | None) -> AsyncIterator[bool]:
    # Its driver is imported where it is needed.
    from llm_gateway.jobs.postgres import PostgresJobStore
    from llm_gateway.jobs.postgres_purse import PostgresPurse

    if limit is None and isinstance(job.store, PostgresJobStore):
        # Before it looks for a budget: who gives the job one at this moment sees that somebody works without.
        await job.store.announce()
    lender = PostgresPurse(address)
    try:
        purse = await lender.begin(limit, check=lambda standing: _check_left(*standing))
        if purse is None:
            yield False
            return
        budgets = SharedBudgets(BudgetSettings(total=purse.limit), owner=OWNER, remedy=SHARED)
        gateway.pay_from(budgets)
        talk = Ledger(budgets, lender, key="", clock=LoopClock(), patience=PATIENCE)
        talking = asyncio.create_task(talk.run())
        # Where nobody lends any more, calls would wait for ever.
        talking.add_done_callback(lambda task: None if task.cancelled() else job.abandon())
        try:
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


def _check_left(limit: float, spent: float) -> None:
    if spent >= limit:
        raise ConfigurationError(
            f"--budget: the job has spent {dollars(spent)} of {dollars(limit)}; raise it to go on."
        )
