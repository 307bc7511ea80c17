"""`llm-gateway jobs`: what the states of jobs tell, and what can be done with a job from outside."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_gateway.cli.console import count, dollars, stderr
from llm_gateway.cli.job_state import SUFFIX, state_named
from llm_gateway.cli.results import line_of
from llm_gateway.cli.summary import ledger_facts, print_facts
from llm_gateway.cli.tally import known_cost
from llm_gateway.clock import utc_now
from llm_gateway.errors import GatewayError, JobError, JobStoreBusyError
from llm_gateway.jobs import batch_book, statements
from llm_gateway.jobs.batch_book import StoredBatch
from llm_gateway.jobs.commits import LOCK_PATIENCE
from llm_gateway.jobs.export import all_results, export_table, write_whole
from llm_gateway.jobs.lock import is_locked
from llm_gateway.jobs.records import Ledger
from llm_gateway.jobs.sqlite import reading
from llm_gateway.jobs.tables import is_table


def list_jobs(folder: Path) -> None:
    """Print the jobs whose states lie in a folder, the newest last."""
    if not folder.is_dir():
        raise GatewayError(f"There is no folder {folder}.")
    states = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
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
        console.print(f"No jobs in {folder}; `llm-gateway run` makes one beside its output.")
    for sentence in unreadable:
        stderr().print(sentence, style="yellow")


def _line(state: Path) -> list[str]:
    with reading(state) as connection:
        facts, ledger = statements.facts(connection), statements.ledger(connection)
    failed = sum(ledger.failed.values()) + ledger.malformed
    numbers = (ledger.rows, ledger.done, failed, ledger.pending + ledger.leased, ledger.in_doubt)
    cost = known_cost(ledger.cost_usd, ledger.answered, ledger.unpriced)
    return [state.name, condition(state, facts, ledger), *(f"{number:,}" for number in numbers), dollars(cost)]


def condition(state: Path, facts: dict[str, Any], ledger: Ledger) -> str:
    """Say in a word or two how a job stands."""
    if is_locked(state):
        return "running"
    if facts.get("cancelled"):
        return "cancelled"
    if ledger.pending or ledger.leased or ledger.rows == 0 or not facts.get("read", False):
        return "stopped"
    return "ended"


def show_job(path: Path, *, as_json: bool) -> None:
    """Print how far a job is, and its ledger."""
    state = state_named(path)
    with reading(state) as connection:
        facts, ledger = statements.facts(connection), statements.ledger(connection)
        batches = batch_book.batches(connection)
    stands = condition(state, facts, ledger)
    console = Console(markup=False, highlight=False)
    if as_json:
        console.print(
            json.dumps(
                _plain(state, stands, facts, ledger) | {"batches": [asdict(each) for each in batches]}, indent=2
            ),
            soft_wrap=True,
        )
        return
    told = [("job", str(state)), ("state", stands)]
    if facts:
        rows = facts["input"]["rows"]
        told += [("began", facts["began"]), ("input", f"{facts['input']['path']}, {count(rows, 'row')}")]
        told += [(f"--{name}", _short(value)) for name, value in facts["settings"].items()]
        told += [("model", f"{name.partition(':')[2]}: {value}") for name, value in facts.items() if ":" in name]
    print_facts(console, [*told, *ledger_facts(ledger), *(("batch", _of_batch(each)) for each in batches)])


def _of_batch(batch: StoredBatch) -> str:
    rows = f"{count(batch.requests, 'row')} of {batch.model} at {batch.deployment}"
    told = f"{batch.batch_id or '(no id yet)'}: {batch.state}, {rows}"
    served = f", {batch.served:,} served" if batch.is_open and batch.served else ""
    return f"{told}{served}, since {batch.made[:19]}{f' ({batch.reason})' if batch.reason else ''}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(state: Path, stands: str, facts: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    names = ("rows", "done", "malformed", "pending", "leased", "calls", "answered", "refused", "unsent", "in_doubt")
    more = ("input_tokens", "output_tokens", "cost_usd", "unpriced", "adds_up")
    return {
        "job": str(state),
        "state": stands,
        "facts": facts,
        "failed": dict(ledger.failed),
        **{name: getattr(ledger, name) for name in names + more},
    }


def cancel_job(path: Path, *, undo: bool) -> None:
    """Mark a job as cancelled, or take that back. A process that works on it stops within a second or two."""
    state = state_named(path)
    with reading(state):
        pass  # it is a job
    running = is_locked(state)
    connection = sqlite3.connect(state, timeout=LOCK_PATIENCE)
    try:
        with connection:
            statements.note(connection, {"cancelled": None if undo else utc_now().isoformat(timespec="seconds")})
    except sqlite3.OperationalError as error:
        raise JobStoreBusyError(f"The job's state {state} cannot be written for the moment ({error}).") from None
    finally:
        connection.close()
    if undo:
        told = f"The job {state} can go on."
    elif running:
        told = f"The job {state} is cancelled; what is under way still gets its answer."
    else:
        told = f"The job {state} is cancelled."
    stderr().print(told)


def export_job(path: Path, output: Path, *, force: bool) -> None:
    """Write what is known of a job, also while it runs: JSON lines, or a CSV or Parquet file."""
    state = state_named(path)
    if output.exists() and not force:
        raise GatewayError(f"The output {output} exists; give another file, or --force to write over it.")
    if not output.parent.is_dir():
        raise GatewayError(f"The output {output} cannot be written: there is no folder {output.parent}; make it first.")
    with reading(state) as connection:
        if is_table(output.name):
            number = _export_table(connection, state, output)
        else:
            number = _export_lines(connection, output)
    stderr().print(f"{count(number, 'row')} in {output}.")


def _export_table(connection: sqlite3.Connection, state: Path, output: Path) -> int:
    facts = statements.facts(connection)
    if not facts:
        raise JobError(f"The job {state} has not begun.")
    given = Path(facts["input"]["path"])
    source = given if is_table(given.name) else None
    return export_table(connection, output, source=source, schema=facts["settings"].get("schema"))


def _export_lines(connection: sqlite3.Connection, output: Path) -> int:
    number = 0

    def write(place: Path) -> None:
        nonlocal number
        with place.open("wb") as file:
            for number, result in enumerate(all_results(connection), start=1):  # noqa: B007 - counted for the caller
                file.write(line_of(result))

    write_whole(output, write)
    return number
