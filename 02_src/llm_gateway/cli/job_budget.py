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
        async with _shared(gateway, place, limit) as has_budget:
            yield has_budget
        return
    if limit is not None:
        spent = (await job.ledger()).cost_usd
        _check_left(spent, limit)
        budgets = Budgets(BudgetSettings(total=limit), owner=OWNER, remedy=OF_FILE)
        budgets.settle(budgets.take(0.0, model="", agent=None), spent)
        gateway.pay_from(budgets)
    yield limit is not None


@asynccontextmanager
async def _shared(gateway: LLMGateway, address: JobAddress, limit: float | None) -> AsyncIterator[bool]:
    # Its driver is imported where it is needed.
    from llm_gateway.jobs.postgres_purse import PostgresPurse

    lender = PostgresPurse(address)
    try:
        purse = await lender.begin(limit)
        if purse is None:
            yield False
            return
        _check_left(purse.spent, purse.limit)
        budgets = SharedBudgets(BudgetSettings(total=purse.limit), owner=OWNER, remedy=SHARED)
        gateway.pay_from(budgets)
        talk = Ledger(budgets, lender, key="", clock=LoopClock(), patience=PATIENCE)
        talking = asyncio.create_task(talk.run())
        try:
            yield True
        finally:
            talking.cancel()
            await asyncio.wait((talking,))
            await talk.say_bye()
    finally:
        await lender.aclose()


def _check_left(spent: float, limit: float) -> None:
    if spent >= limit:
        raise ConfigurationError(
            f"--budget: the job has spent {dollars(spent)} of {dollars(limit)}; raise it to go on."
        )
