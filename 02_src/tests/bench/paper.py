"""A page of figures: the same tables on the terminal and in Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table as Drawn


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures under a title. The first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a figure was meant to be."""

    name: str
    limit: float
    figure: float
    unit: str = ""
    digits: int = 2
    at_least: bool = False

    @property
    def kept(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def row(self) -> list[str]:
        bound = "at least" if self.at_least else "at most"
        limit, figure = (f"{value:,.{self.digits}f}{self.unit}" for value in (self.limit, self.figure))
        return [self.name, f"{bound} {limit}", figure, "reached" if self.kept else "**missed**"]


def promised(promises: Sequence[Promise]) -> Table:
    return Table(title="Targets", columns=["", "target", "measured", ""], rows=[each.row() for each in promises])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the median of some rounds, and their smallest and largest value; "never" for an infinite one."""
    low, middle, high = (
        "never" if value == float("inf") else f"{value:,.{digits}f}"
        for value in (min(values), median(values), max(values))
    )
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def show(tables: Sequence[Table]) -> None:
    """Print the tables."""
    console = Console(width=max(Console().width, 120))  # the tables need it; a narrow terminal folds its lines
    for table in tables:
        drawn = Drawn(title=table.title, title_justify="left")
        for place, name in enumerate(table.columns):
            drawn.add_column(name, justify="right" if place else "left")
        for row in table.rows:
            drawn.add_row(*(re.sub(r"`|\*\*", "", cell) for cell in row))
        console.print(drawn)


def markdown(title: str, *, head: str, machine: str, versions: str, tables: Sequence[Table], method: str) -> str:
    """Write a page: what it is, where it was measured, the tables, and how."""
    here = f"{datetime.now(UTC).date()} · {machine} · Python {platform.python_version()} · {versions}"
    parts = [f"# {title}\n\n{head.strip()}\n\n{here}\n"]
    for table in tables:
        lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {table.title}\n\n{body}\n")
    parts.append(f"## How it is measured\n\n{method.strip()}\n")
    return "\n".join(parts)


def write(page: Path, text: str) -> None:
    page.write_text(text, encoding="utf-8")
    print(f"Written to {page}", flush=True)  # noqa: T201 - a command's output
