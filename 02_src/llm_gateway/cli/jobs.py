"""`llm-gateway jobs`: what the states of jobs tell, and what can be done with a job from outside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_gateway.cli.console import count, stderr
from llm_gateway.cli.job_state import SUFFIX, place_named
from llm_gateway.cli.results import line_of
from llm_gateway.cli.summary import ledger_facts, print_facts
from llm_gateway.cli.tally import known_cost
from llm_gateway.clock import utc_now
from llm_gateway.errors import GatewayError, JobError
from llm_gateway.jobs.address import JobAddress, is_database
from llm_gateway.jobs.batch_book import StoredBatch
from llm_gateway.jobs.export import all_results, export_table, write_whole
from llm_gateway.jobs.lending import PURSE, Purse
from llm_gateway.jobs.model_facts import MODEL
from llm_gateway.jobs.opening import Place
from llm_gateway.jobs.records import Ledger
from llm_gateway.jobs.tables import is_table
from llm_gateway.jobs.views import JobView, viewing
from llm_gateway.sentences import dollars


def list_jobs(where: str) -> None:
    """Print the jobs whose states lie in a folder or a database, the newest last."""
    states, place = _states_in(where)
    table = Table("job", "state", "rows", "answered", "failed", "pending", "in doubt", "cost", box=None)
    unreadable = []
    for state in states:
        try:
            table.add_row(*_line(state))
        except GatewayError as error:
            unreadable.append(str(error))
    console = Console(markup=False, highlight=False)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"No jobs in {place}; `llm-gateway run` makes one beside its output, or where --job says.")
    for sentence in unreadable:
        stderr().print(sentence, style="yellow")


def _states_in(where: str) -> tuple[Sequence[Place], str]:
    """Return the jobs of a folder or a database, and how that is shown."""
    if is_database(where):
        from llm_gateway.jobs.postgres import jobs_in

        address = JobAddress.parse(where)
        return jobs_in(address), address.database
    folder = Path(where)
    if not folder.is_dir():
        raise GatewayError(f"There is no folder {folder}.")
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime), str(folder)


def _line(state: Place) -> list[str]:
    with viewing(state) as view:
        facts, ledger, workers = view.facts(), view.ledger(), view.workers()
    failed = sum(ledger.failed.values()) + ledger.malformed
    numbers = (ledger.rows, ledger.done, failed, ledger.pending + ledger.leased, ledger.in_doubt)
    cost = known_cost(ledger.cost_usd, ledger.answered, ledger.unpriced)
    name = "" if state is None else state.name or ""
    return [name, condition(workers, facts, ledger), *(f"{number:,}" for number in numbers), dollars(cost)]


def condition(workers: Sequence[str], facts: dict[str, Any], ledger: Ledger) -> str:
    """Say in a word or two how a job stands."""
    if workers:
        return "running"
    if facts.get("cancelled"):
        return "cancelled"
    if ledger.pending or ledger.leased or not facts.get("read", False):
        return "stopped"
    return "ended"


def show_job(job: str, *, as_json: bool) -> None:
    """Print how far a job is, and its ledger."""
    with viewing(place_named(job)) as view:
        facts, ledger, workers, batches = view.facts(), view.ledger(), view.workers(), view.batches()
    stands = condition(workers, facts, ledger)
    console = Console(markup=False, highlight=False)
    if as_json:
        plain = _plain(view.name, stands, facts, ledger)
        plain |= {"workers": workers, "batches": [asdict(each) for each in batches]}
        console.print(json.dumps(plain, indent=2), soft_wrap=True)
        return
    told = [("job", view.name), ("state", stands)]
    if workers and is_database(job):
        told.append(("workers", f"{len(workers)}: {', '.join(workers)}"))
    if "began" in facts:  # not by a program
        rows = facts["input"]["rows"]
        told += [("began", facts["began"]), ("input", f"{facts['input']['path']}, {count(rows, 'row')}")]
        told += [(f"--{name}", _short(value)) for name, value in facts["settings"].items()]
    if PURSE in facts:
        told.append(("budget", budget_fact(facts[PURSE], utc_now().timestamp())))
    told += [
        ("model", f"{name.removeprefix(MODEL)}: {value}") for name, value in facts.items() if name.startswith(MODEL)
    ]
    print_facts(console, [*told, *ledger_facts(ledger), *(("batch", _of_batch(each)) for each in batches)])


def budget_fact(purse: Any, now: float) -> str:
    """Say how the budget of a shared job stands."""
    held = Purse.read(purse)
    sure = held.spent(now) - held.in_doubt(now)
    told = f"{dollars(sure)} of {dollars(held.limit)} spent by all processes"
    doubt = held.in_doubt(now)
    return f"{told}, and up to {dollars(doubt)} by some that were killed" if doubt else told


def _of_batch(batch: StoredBatch) -> str:
    rows = f"{count(batch.requests, 'row')} of {batch.model} at {batch.deployment}"
    told = f"{batch.batch_id or '(no id yet)'}: {batch.state}, {rows}"
    served = f", {batch.served:,} served" if batch.is_open and batch.served else ""
    return f"{told}{served}, since {batch.made[:19]}{f' ({batch.reason})' if batch.reason else ''}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(state: str, stands: str, facts: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    names = ("rows", "done", "malformed", "pending", "leased", "calls", "answered", "refused", "unsent", "in_doubt")
    more = ("input_tokens", "output_tokens", "cost_usd", "unpriced", "adds_up")
    return {
        "job": state,
        "state": stands,
        "facts": facts,
        "failed": dict(ledger.failed),
        **{name: getattr(ledger, name) for name in names + more},
    }


def cancel_job(job: str, *, undo: bool) -> None:
    """Mark a job as cancelled, or take that back. Processes that work on it stop within a second or two."""
    with viewing(place_named(job)) as view:
        running = bool(view.workers())
        view.note({"cancelled": None if undo else utc_now().isoformat(timespec="seconds")})
    if undo:
        told = f"The job {view.name} can go on."
    elif running:
        told = f"The job {view.name} is cancelled; what is under way still gets its answer."
    else:
        told = f"The job {view.name} is cancelled."
    stderr().print(told)


def export_job(job: str, output: Path, *, force: bool) -> None:
    """Write what is known of a job, also while it runs: JSON lines, or a CSV or Parquet file."""
    place = place_named(job)
    if output.exists() and not force:
        raise GatewayError(f"The output {output} exists; give another file, or --force to write over it.")
    if not output.parent.is_dir():
        raise GatewayError(f"The output {output} cannot be written: there is no folder {output.parent}; make it first.")
    with viewing(place) as view:
        number = _export_table(view, output) if is_table(output.name) else _export_lines(view, output)
    stderr().print(f"{count(number, 'row')} in {output}.")


def _export_table(view: JobView, output: Path) -> int:
    facts = view.facts()
    if not facts:
        raise JobError(f"The job {view.name} has not begun.")
    if "input" not in facts:  # a program's
        return export_table(view, output, source=None, schema=None)
    given = Path(facts["input"]["path"])
    source = given if is_table(given.name) else None
    if source is not None and not source.exists():
        stderr().print(f"The input {source} is not here: its columns are left out.", style="yellow")
        source = None
    return export_table(view, output, source=source, schema=facts["settings"].get("schema"))


def _export_lines(view: JobView, output: Path) -> int:
    number = 0

    def write(place: Path) -> None:
        nonlocal number
        with place.open("wb") as file:
            for number, result in enumerate(all_results(view), start=1):  # noqa: B007 - counted for the caller
                file.write(line_of(result))

    write_whole(output, write)
    return number
