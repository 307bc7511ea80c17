"""`llm-gateway run`: a file of requests in, a file of results out, and a state from which a later run goes on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_gateway.answers import AnswerSchema
from llm_gateway.cli import event_loop
from llm_gateway.cli.console import count, stderr
from llm_gateway.cli.job_state import OUTPUT, START, begin, output_fact, place_in_output, state_of, take_back
from llm_gateway.cli.lines import Survey
from llm_gateway.cli.output import STANDARD_OUTPUT, KeptOutput, Output, check_output
from llm_gateway.cli.rows import RowReader
from llm_gateway.cli.running import Loading, Run
from llm_gateway.cli.settings import Loaded, load
from llm_gateway.cli.sources import Source, TableInput, open_source, template_of
from llm_gateway.cli.tally import Tally
from llm_gateway.cli.voice import Voice
from llm_gateway.cli.writing import KeptWriter, NoWriter, StreamWriter, TableWriter, Writer
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError
from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.budget import within_budget
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.job import POLL, Job
from llm_gateway.jobs.opening import Place, shown_place
from llm_gateway.jobs.tables import is_table
from llm_gateway.models import RequestPriority
from llm_gateway.price_lanes import LaneChoice

SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is told on the command line."""

    config: Path | None = None
    model: str | None = None
    priority: RequestPriority | None = None
    force: bool = False
    template: str | None = None  # or @FILE
    system: str | None = None
    schema: Path | None = None
    budget: float | None = None  # US dollars for the whole job, its earlier runs included
    retry_failed: str | None = None  # kinds with commas between them, or "all"
    job: str | None = None  # address of a job in a database
    load_only: bool = False  # take the rows in and leave them to workers
    lane: LaneChoice | None = None
    deadline: float | None = None  # hours
    poll: float = POLL  # seconds


def run_file(source: str, output: str | None, options: Options) -> int:
    """Answer the rows of `source` into `output` and return the exit code.

    Without an output, results go to standard output, or stay in the database of a job that lives in one.

    Raises GatewayError, before anything is sent, for a configuration, a file or an option that is at fault.
    """
    loaded = load(options.config)
    if options.model is not None:
        loaded.check_model(options.model)
    opened = open_input(source, loaded, options)
    try:
        return event_loop.run(Command(opened, output, options).run(loaded.config))
    finally:
        opened.rows.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """An input, and how its rows are read. Whoever opens it closes `rows`."""

    rows: Source
    reader: RowReader
    schema: AnswerSchema | None


def open_input(source: str, loaded: Loaded, options: Options) -> Opened:
    """Open an input as the options say. Raises GatewayError for what cannot be read, or options that do not fit."""
    template = template_of(options.template)
    if options.system is not None and template is None:
        raise ConfigurationError(
            "--system goes with --prompt-template; a line of JSON has a system message of its own."
        )
    schema = AnswerSchema.read_file(options.schema) if options.schema is not None else None
    reader = RowReader(
        loaded,
        model=options.model,
        priority=options.priority,
        template=template,
        system=options.system,
        schema=schema.schema if schema else None,
    )
    return Opened(open_source(source, template), reader, schema)


def settings_of(options: Options, schema: AnswerSchema | None) -> dict[str, Any]:
    """Return the options that decide on the answers."""
    given = {
        "model": options.model,
        "prompt-template": options.template,
        "system": options.system,
        "schema": schema.schema if schema else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def keeps_state(rows: Source, output: str) -> bool:
    """Whether input and output are files that another process could go on with."""
    if output == STANDARD_OUTPUT or not rows.is_kept:
        return False
    return Path(output).is_file() or not Path(output).exists()


class Command:
    """One call of `llm-gateway run`."""

    def __init__(self, opened: Opened, output: str | None, options: Options) -> None:
        self._rows = opened.rows
        self._reader = opened.reader
        self._schema = opened.schema
        self._output = STANDARD_OUTPUT if output is None else output
        self._stays = output is None and options.job is not None  # the results stay where they are
        self._options = options
        self._path = Path(self._output)
        self._fact = OUTPUT
        self._state: Place = None
        if options.job is not None:
            self._state = JobAddress.of_job(options.job)
            self._fact = output_fact(self._path)
        elif keeps_state(opened.rows, self._output):
            self._state = state_of(self._path)

    async def run(self, config: GatewayConfig) -> int:
        """Return the exit code."""
        self._check()
        console = stderr()
        voice = Voice(console)
        gateway = LLMGateway(config)
        job = gateway.job(
            self._state,
            schema=self._schema,
            priority=self._options.priority,
            fresh=self._options.force,
            keeps_budget=False,
            hooks=Hooks(paused=voice.paused, resumed=voice.resumed, refused=voice.refused, told=voice.complain),
            on_bug=voice.bug,
            lane=self._options.lane,
            deadline=None if self._options.deadline is None else self._options.deadline * SECONDS_AN_HOUR,
            poll=self._options.poll,
        )
        async with job:
            survey = await asyncio.to_thread(self._rows.survey)
            if survey is not None and self._state is not None:
                await self._begin(job, survey)
            async with within_budget(gateway, job, self._state, self._options.budget) as has_budget:
                if self._options.retry_failed is not None:
                    number = await take_back(job, self._options.retry_failed)
                    console.print(f"{count(number, 'failed row')} will be asked again.")
                return await self._answered(gateway, job, survey, voice, has_budget=has_budget)

    async def _answered(
        self, gateway: LLMGateway, job: Job, survey: Survey | None, voice: Voice, *, has_budget: bool
    ) -> int:
        """Have the rows answered, or only taken in, and return the exit code."""
        ledger = await job.ledger()
        tally = Tally.of(ledger)
        tally.total = survey.rows if survey else None
        writer, after = await self._writer(job, ledger.last_result, voice)
        try:
            kind = Loading if self._options.load_only else Run
            run = kind(
                gateway,
                job,
                rows=self._rows,
                reader=self._reader,
                writer=writer,
                tally=tally,
                console=stderr(),
                has_budget=has_budget,
            )
            state = shown_place(self._state) if self._state is not None else None
            return await run.to_the_end(ledger, after=after, state=state)
        finally:
            writer.close()

    async def _begin(self, job: Job, survey: Survey) -> None:
        """Note what the job is about, or check that it is about the same. Raises JobError."""
        state = shown_place(self._state)
        named = f"'{state}'" if self._options.job is not None else str(self._path)
        is_new = isinstance(self._state, JobAddress) and self._fact not in await job.store.facts()
        if is_new and not self._stays and self._output != STANDARD_OUTPUT:
            check_output(self._path, force=self._options.force, source=self._rows.status)
            await job.store.note({self._fact: START})
        await begin(
            job, survey, self._rows.name, state=state, named=named, settings=settings_of(self._options, self._schema)
        )

    def _check_shared(self) -> None:
        """Raise ConfigurationError for what a job in a database cannot do."""
        if self._options.job is None:
            if self._options.load_only:
                raise ConfigurationError("--load-only goes with --job: only a job in a database has workers.")
            return
        if not self._rows.is_kept:
            raise ConfigurationError("--job needs an INPUT that is a file: a pipe cannot be read again to go on.")
        if self._options.load_only and not self._stays:
            raise ConfigurationError("--load-only leaves the results in the database; run without --output.")
        if self._options.load_only and self._options.lane is not None:
            raise ConfigurationError("--load-only asks nothing; set the lane of the model where the workers run.")

    def _check(self) -> None:
        """Raise GatewayError for what must not or cannot be done."""
        self._check_shared()
        if isinstance(self._state, JobAddress):
            return
        if self._state is None and (self._options.retry_failed is not None or is_table(self._output)):
            raise ConfigurationError(
                "A table as --output, and --retry-failed, need a job's state: give an INPUT and an --output "
                "that are files, no pipes."
            )
        if self._output != STANDARD_OUTPUT:
            known = self._state is not None and self._state.exists()
            check_output(self._path, force=self._options.force or known, source=self._rows.status)

    async def _writer(self, job: Job, last_result: int, voice: Voice) -> tuple[Writer, int]:
        """Return what writes the output, and the id of the last result that it has."""
        if self._stays:
            return NoWriter(), last_result
        if self._state is None or self._output == STANDARD_OUTPUT:
            return StreamWriter(Output(self._output, force=self._options.force, source=self._rows.status)), 0
        if is_table(self._output):
            source = Path(self._rows.name) if isinstance(self._rows, TableInput) else None
            schema = self._schema.schema if self._schema else None
            return TableWriter(self._path, self._state, source=source, schema=schema), last_result
        noted = await place_in_output(job, self._path, self._fact)
        output = KeptOutput(self._path, place=noted["place"])
        return KeptWriter(output, job, fact=self._fact, complain=voice.complain), noted["id"]
