"""`llm-gateway plan`: what a run would cost and how long it would take, before it is paid for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from rich.console import Console

from llm_gateway.cli import event_loop
from llm_gateway.cli.console import FAILED, OK, count, stderr
from llm_gateway.cli.job_state import begin, check_same, state_of
from llm_gateway.cli.lines import Survey
from llm_gateway.cli.output import check_output, size_of
from llm_gateway.cli.plan_table import render_plan
from llm_gateway.cli.rows import Malformed, stored
from llm_gateway.cli.run import Opened, Options, keeps_state, open_input, settings_of
from llm_gateway.cli.settings import Loaded, load
from llm_gateway.cli.voice import MOST_COMPLAINTS, Voice
from llm_gateway.errors import ConfigurationError, UnknownModelError
from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.export import all_results
from llm_gateway.jobs.hooks import Hooks
from llm_gateway.jobs.records import NewRow
from llm_gateway.jobs.views import viewing
from llm_gateway.models import LLMRequest
from llm_gateway.planning.cached import TOGETHER, CachedRows
from llm_gateway.planning.census import Census, Past
from llm_gateway.planning.estimate import estimate
from llm_gateway.planning.machine import row_cpu
from llm_gateway.planning.plan import Basis, Plan
from llm_gateway.planning.sampling import Sampled, answer_of, ask_sample


@dataclass(frozen=True, slots=True)
class Before:
    """What the job's state holds already."""

    pending: int = 0  # rows that a run has taken in and not answered
    spent: float = 0.0
    problem: str | None = None  # why the answer cache was not looked at


def plan_file(source: str, output: str, options: Options, *, sample: int, as_json: bool) -> int:
    """Print the plan for the rows of `source` and return the exit code.

    Raises GatewayError, before anything is sent, for a configuration, a file or an option that is at fault.
    """
    loaded = load(options.config)
    if options.model is not None:
        _check_model(loaded, options.model, asked=sample > 0)
    opened = open_input(source, loaded, options)
    try:
        planning = Planning(opened, output, options, sample=sample)
        plan = event_loop.run(planning.plan(loaded))
    finally:
        opened.rows.close()
    if as_json:
        sys.stdout.write(orjson.dumps(plan.as_dict(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        Console().print(render_plan(plan))
    failed = plan.sample is not None and plan.sample.answered < plan.sample.asked
    return FAILED if plan.malformed or failed else OK


def _check_model(loaded: Loaded, model: str, *, asked: bool) -> None:
    """Raise ConfigurationError for a model that is not configured, or, if it is to be asked, cannot be."""
    if asked:
        loaded.check_model(model)
        return
    try:
        loaded.config.model(model)
    except UnknownModelError as error:
        raise ConfigurationError(f"--model: {error.reason}") from None


async def _add_looked_up(
    census: Census, cache: CachedRows, waiting: list[tuple[bytes | None, LLMRequest, NewRow]]
) -> None:
    """Count the rows that wait, and empty the list."""
    found = await cache.found([(key, request) for key, request, _ in waiting])
    for (key, request, row), is_cached in zip(waiting, found, strict=True):
        census.add(request, row, key=key, is_cached=is_cached)
    waiting.clear()


class Planning:
    """One call of `llm-gateway plan`."""

    def __init__(self, opened: Opened, output: str, options: Options, *, sample: int) -> None:
        self._opened = opened
        self._options = options
        self._sample = sample
        self._path = Path(output)
        self._state = state_of(self._path) if keeps_state(opened.rows, output) else None
        self._settings = settings_of(options, opened.schema)
        self._console = stderr()
        self._complaints = 0

    async def plan(self, loaded: Loaded) -> Plan:
        """Return the plan, after asking a sample if one is wanted."""
        survey = None
        if self._state is not None:
            check_output(self._path, force=self._state.exists(), source=self._opened.rows.status)
            survey = await asyncio.to_thread(self._opened.rows.survey)
        census = Census(loaded.config, sample=self._sample)
        try:
            before = await self._count(census, survey)
            had = census.learned.count
            sampled = await self._ask(census, survey, before) if self._sample > had else None
            notes = [] if before.problem is None else [before.problem]
            if self._sample > had and sampled is None and before.pending:
                notes.append(
                    "No sample was asked: the job has begun; its answers so far are used. `run` goes on with it."
                )
            basis: Basis = "sample" if sampled is not None else "job"
            spent = before.spent
            if sampled is not None and sampled.figures.kept:
                spent += sampled.figures.cost_usd or 0.0
            return await asyncio.to_thread(
                estimate,
                census,
                row_cpu=await asyncio.to_thread(row_cpu, census),
                told=sampled.told if sampled else None,
                basis=basis,
                sample=sampled.figures if sampled else None,
                budget=self._options.budget,
                spent=spent,
                notes=notes,
            )
        finally:
            census.close()

    # --- reading ----------------------------------------------------------------------------------------------

    async def _count(self, census: Census, survey: Survey | None) -> Before:
        """Read the input through; rows that the job's state has a result of count as ended."""
        before = Before()
        state, named = str(self._state), str(self._path)
        with ExitStack() as stack:
            past: Iterator[tuple[int, Past]] = iter(())
            if self._state is not None and survey is not None and size_of(self._state):
                view = stack.enter_context(viewing(self._state))
                facts = view.facts()
                if "began" in facts:
                    check_same(facts, survey, self._opened.rows.name, state=state, named=named, settings=self._settings)
                ledger = view.ledger()
                before = Before(ledger.pending + ledger.leased, ledger.cost_usd)
                past = ((each.number, Past(answer_of(each))) for each in all_results(view, by_number=True))
            cache = CachedRows.of(census.config)
            if cache is None:
                await self._read(census, past, None)
                return before
            try:
                await self._read(census, past, cache)
            finally:
                await cache.aclose()
            return replace(before, problem=cache.problem)

    async def _read(self, census: Census, past: Iterator[tuple[int, Past]], cache: CachedRows | None) -> None:
        number, ended = next(past, (0, None))
        waiting: list[tuple[bytes | None, LLMRequest, NewRow]] = []  # until they are looked up in the cache
        async for line, text in self._opened.rows.rows():
            found = self._opened.reader.read(line, text)
            if found is None:
                continue
            while ended is not None and number < line:
                number, ended = next(past, (0, None))
            row = stored(found)
            is_new = census.is_new_id(row)
            if isinstance(found, Malformed):
                self._refuse(census, line, str(found.error))
            elif not is_new:
                self._refuse(census, line, f"the id '{row.key}' stands on an earlier line too; give each line its own.")
            elif cache is None or (ended is not None and number == line):
                census.add(found.request, row, ended if number == line else None)
            else:
                waiting.append((cache.key(found.request), found.request, row))
                if len(waiting) >= TOGETHER:
                    await _add_looked_up(census, cache, waiting)
        if cache is not None:
            await _add_looked_up(census, cache, waiting)

    def _refuse(self, census: Census, line: int, reason: str) -> None:
        census.refuse()
        self._complaints += 1
        if self._complaints <= MOST_COMPLAINTS:
            self._console.print(f"line {line}: {reason}", style="yellow")
        elif self._complaints == MOST_COMPLAINTS + 1:
            self._console.print("More lines are malformed; the plan counts them all.", style="yellow")

    # --- asking -----------------------------------------------------------------------------------------------

    async def _ask(self, census: Census, survey: Survey | None, before: Before) -> Sampled | None:
        """Ask the sample, or what is missing of it; None if nothing is to be asked or a run is under way."""
        chosen = census.chosen(self._sample - census.learned.count)
        if not chosen or before.pending:
            return None
        self._console.print(f"Asking a sample of {count(len(chosen), 'row')} …")
        voice = Voice(self._console)
        gateway = LLMGateway(census.config)
        job = gateway.job(
            self._state,
            schema=self._opened.schema,
            hooks=Hooks(paused=voice.paused, resumed=voice.resumed, refused=voice.refused),
            on_bug=voice.bug,
        )
        async with gateway, job:
            if survey is not None and self._state is not None:
                state, named = str(self._state), str(self._path)
                await begin(job, survey, self._opened.rows.name, state=state, named=named, settings=self._settings)
            sampled = await ask_sample(gateway, job, census, chosen, kept=self._state is not None)
        self._tell(sampled.failures)
        return sampled

    def _tell(self, failures: Mapping[str, str]) -> None:
        for kind, message in failures.items():
            self._console.print(f"The sample met {kind}: {message}", style="yellow")
