"""What a job came to, in a few lines that add up."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from llm_gateway.cli.console import count, duration
from llm_gateway.cli.tally import known_cost
from llm_gateway.jobs.records import Ledger
from llm_gateway.sentences import dollars

NO_STATE = "none: what was read or written through a pipe cannot be resumed"


def print_summary(
    console: Console,
    ledger: Ledger,
    *,
    new: int,
    seconds: float,
    output: str,
    journal: Path | None,
    state: Path | str | None,
) -> None:
    """Print what became of the rows, what it took, and where to look. `new` rows ended in these `seconds`."""
    facts = [
        *ledger_facts(ledger),
        ("time", f"{duration(seconds)}, {new / seconds:.1f} rows/s"),
        ("output", output),
        ("state", str(state) if state else NO_STATE),
        ("journal", str(journal) if journal else "off"),
    ]
    print_facts(console, facts)


def print_facts(console: Console, facts: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        # Without line breaks of ours, a path can be taken from a terminal as it is.
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", value), soft_wrap=True)


def ledger_facts(ledger: Ledger) -> list[tuple[str, str]]:
    """Return what became of all rows and all calls: each is in one line or part, and all lines add up."""
    facts = [("rows", f"{ledger.rows:,}"), ("answered", f"{ledger.done:,}")]
    facts += [("failed", f"{kind} {times:,}: {ledger.examples[kind]}") for kind, times in ledger.failed.items()]
    if ledger.malformed:
        facts.append(("malformed", f"{ledger.malformed:,}"))
    if ledger.leased:
        facts.append(("asked now", f"{ledger.leased:,}"))
    if ledger.pending:
        facts.append(("pending", f"{ledger.pending:,}"))
    made = ledger.calls - ledger.unsent
    parts = [f"{ledger.answered:,} paid", f"{ledger.refused:,} failed"]
    if ledger.in_doubt:
        parts.append(f"{ledger.in_doubt:,} in doubt (sent perhaps, no answer known)")
    retries = count(made - ledger.asked, "retry", "retries")
    facts.append(("calls", f"{made:,} ({retries}): {', '.join(parts)}"))
    if not ledger.adds_up:
        facts.append(("warning", "these figures do not add up; please report it"))
    facts.append(("tokens", f"{ledger.input_tokens:,} in, {ledger.output_tokens:,} out"))
    facts.append(("cost", _cost(ledger)))
    return facts


def _cost(ledger: Ledger) -> str:
    cost = known_cost(ledger.cost_usd, ledger.answered, ledger.unpriced)
    if cost is None or not ledger.unpriced:
        return dollars(cost)
    return f"{dollars(cost)}, and that of {count(ledger.unpriced, 'answer')} is unknown"
