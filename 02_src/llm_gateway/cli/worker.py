"""`llm-gateway worker`: one of many processes that answer the rows of a job in a database."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llm_gateway.answers import AnswerSchema
from llm_gateway.cli import event_loop
from llm_gateway.cli.console import stderr
from llm_gateway.cli.rows import RowReader
from llm_gateway.cli.running import Helping
from llm_gateway.cli.settings import Loaded, load
from llm_gateway.cli.sources import NoInput
from llm_gateway.cli.tally import Tally
from llm_gateway.cli.voice import Voice
from llm_gateway.cli.writing import NoWriter
from llm_gateway.errors import JobError
from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.budget import within_budget
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.views import viewing


def work_on(url: str, *, config: Path | None, lease_seconds: float | None) -> int:
    """Answer rows of the job at `url` until all have ended, and return the exit code.

    Raises GatewayError, before anything is sent, for a configuration or an address that is at fault.
    """
    loaded = load(config)
    return event_loop.run(_work(loaded, JobAddress.of_job(url), lease_seconds))


async def _work(loaded: Loaded, address: JobAddress, lease_seconds: float | None) -> int:
    schema = await asyncio.to_thread(_schema_of, address)
    voice, tally = Voice(stderr()), Tally()
    gateway = LLMGateway(loaded.config)
    job = gateway.job(
        address,
        schema=schema,
        helps=True,
        keeps_budget=False,
        lease_seconds=lease_seconds,
        hooks=Hooks(paused=voice.paused, resumed=voice.resumed, ended=tally.add),
        on_bug=voice.bug,
    )
    async with job, within_budget(gateway, job, address, None) as has_budget:
        run = Helping(
            gateway,
            job,
            rows=NoInput(),
            reader=RowReader(loaded),
            writer=NoWriter(),
            tally=tally,
            console=stderr(),
            has_budget=has_budget,
        )
        return await run.to_the_end(await job.ledger(), after=0, state=address.shown)


def _schema_of(address: JobAddress) -> AnswerSchema | None:
    """Return what the job's answers must follow. Raises JobError for one that is not there or was cancelled."""
    with viewing(address) as view:
        facts = view.facts()
    if facts.get("cancelled"):
        raise JobError(
            f"The job {address.shown} was cancelled; `llm-gateway jobs cancel '{address.shown}' --undo` lets it go on."
        )
    schema = facts.get("settings", {}).get("schema")
    return None if schema is None else AnswerSchema(schema)
