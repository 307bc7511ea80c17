"""What a run came to, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm_gateway.cli.console import count, dollars, duration
from llm_gateway.cli.tally import Tally


def print_summary(
    console: Console, tally: Tally, *, stats: Mapping[str, Any], seconds: float, output: str, journal: Path | None
) -> None:
    """Print what became of the rows, what it took, and where to look. `stats` are the gateway's."""
    facts = [*_facts(tally, stats, seconds), ("output", output), ("journal", str(journal) if journal else "off")]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        # Without line breaks of ours, a path can be taken from a terminal as it is.
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", value), soft_wrap=True)


def _facts(tally: Tally, stats: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    facts = [("rows", f"{tally.done:,}"), ("answered", f"{tally.answered:,}")]
    facts += [("failed", f"{kind} {times:,}: {tally.examples[kind]}") for kind, times in tally.failed.most_common()]
    if tally.malformed:
        facts.append(("malformed", f"{tally.malformed:,}"))
    facts.append(("calls", f"{stats['attempts']:,} ({count(stats['retries'], 'retry', 'retries')})"))
    facts.append(("tokens", f"{tally.input_tokens:,} in, {tally.output_tokens:,} out"))
    facts.append(("cost", _cost(tally)))
    facts.append(("time", f"{duration(seconds)}, {tally.done / seconds:.1f} rows/s"))
    return facts


def _cost(tally: Tally) -> str:
    cost = tally.known_cost
    if cost is None or not tally.unpriced:
        return dollars(cost)
    return f"{dollars(cost)}, and that of {count(tally.unpriced, 'answer')} is unknown"
