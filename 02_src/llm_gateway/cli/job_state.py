"""A run's state: where it lies, what is noted in it, and whether the run that comes now is the one that began."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_gateway.cli.lines import Survey
from llm_gateway.cli.output import size_of
from llm_gateway.clock import utc_now
from llm_gateway.errors import JobChangedError, JobError
from llm_gateway.jobs.address import JobAddress, is_database
from llm_gateway.jobs.job import Job
from llm_gateway.jobs.opening import Place

SUFFIX = ".job"
START = {"id": 0, "place": 0, "clean": True}
ALL = "all"
OUTPUT = "output"  # the fact that tells how far an output is written; for a shared job a host and a file follow


def state_of(output: Path) -> Path:
    """Return where the state of the job lies that writes `output`."""
    return output.with_name(f"{output.name}{SUFFIX}")


def place_named(text: str) -> Place:
    """Return the place of a job that a user names by its output, its state or its address. Raises JobError."""
    if is_database(text):
        return JobAddress.of_job(text)
    path = Path(text)
    state = path if path.suffix == SUFFIX else state_of(path)
    if not state.is_file():
        raise JobError(f"There is no job {state}; `llm-gateway jobs` lists those of a folder.")
    return state


def output_fact(output: Path) -> str:
    """Return the name of the fact that tells how far a shared job's output is written; there may be several."""
    return f"{OUTPUT}@{socket.gethostname()}:{output.absolute()}"


async def begin(job: Job, survey: Survey, source: str, *, state: str, named: str, settings: Mapping[str, Any]) -> None:
    """Note what a new job is about, or check that a job that goes on is about the same.

    Raises JobError, JobChangedError: one sentence, before anything is sent. `state` is where the job lives, `named` how
    a command names it, `settings` are the options that decide on the answers.
    """
    facts = await job.store.facts()
    if "began" not in facts:
        await job.store.note(
            {
                "began": utc_now().isoformat(timespec="seconds"),
                "input": {"path": str(absolute(source)), "digest": survey.digest, "rows": survey.rows},
                "settings": dict(settings),
            }
        )
        return
    check_same(facts, survey, source, state=state, named=named, settings=settings)


def check_same(
    facts: Mapping[str, Any], survey: Survey, source: str, *, state: str, named: str, settings: Mapping[str, Any]
) -> None:
    """Raise JobError, JobChangedError unless a job that began, of which `facts` are noted, can go on like this."""
    if facts.get("cancelled"):
        raise JobError(
            f"The job {state} was cancelled; `llm-gateway jobs cancel {named} --undo` lets it go on, "
            "--force begins anew."
        )
    if facts["input"]["digest"] != survey.digest:
        raise JobChangedError(
            f"The input {source} is not what it was when the job {state} began; restore it, "
            "or give another output, or --force to begin anew."
        )
    _check_settings(facts["settings"], settings, state)


def absolute(path: str) -> Path:
    """Return a path that means the same in every working directory."""
    return Path(path).absolute()


def _check_settings(before: Mapping[str, Any], now: Mapping[str, Any], state: str) -> None:
    for name in before.keys() | now.keys():
        was, given = before.get(name), now.get(name)
        if was != given:
            raise JobChangedError(
                f"The job {state} began {_told(name, was)}, and this run is {_told(name, given)}; "
                "run it as before, or give another output, or --force to begin anew."
            )


def _told(name: str, value: Any) -> str:
    if value is None:
        return f"without --{name}"
    return f"with --{name} {value}" if isinstance(value, str) and len(value) < 60 else f"with another --{name}"  # noqa: PLR2004 - what a sentence holds


async def take_back(job: Job, wanted: str) -> int:
    """Make failed rows pending, of the kinds in `wanted` (with commas between them) or "all"; return how many."""
    ledger = await job.ledger()
    kinds = None if wanted == ALL else {each.strip() for each in wanted.split(",")}
    unknown = sorted((kinds or set()) - set(ledger.failed))
    if unknown and ledger.failed:
        there = ", ".join(f"{kind} {times:,}" for kind, times in ledger.failed.items())
        raise JobError(f"--retry-failed: no row failed with '{unknown[0]}'; there are: {there}.")
    if not ledger.failed:
        return 0
    # Both in one transaction: the output loses the lines of these rows, so it is written anew.
    outputs = {name: START for name in await job.store.facts() if name.partition("@")[0] == OUTPUT}
    number, _ = await asyncio.gather(job.store.retry_failed(kinds), job.store.note(outputs))
    return number


async def place_in_output(job: Job, output: Path, fact: str) -> Mapping[str, Any]:
    """Return up to which result the output is written, and how many bytes that is. Raises JobError."""
    noted: Mapping[str, Any] = (await job.store.facts()).get(fact, START)
    size = size_of(output)
    if size < noted["place"]:
        return START  # it was removed or cut: it is written anew
    if noted["clean"] and size > noted["place"] > 0:
        raise JobError(f"The output {output} was changed after the job wrote it; move it away, and it is written anew.")
    return noted
