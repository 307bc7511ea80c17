"""The report as tables for a terminal of 80 columns, or for a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_gateway.report.figures import Figures, JournalData
from llm_gateway.report.words import cost_of, duration, period, remarks, short, shown
from llm_gateway.stats import Durations

NAME_WIDTH = 20
QUANTILES = (0.5, 0.95, 0.99)


def render_terminal(data: JournalData) -> RenderableType:
    """Return what `console.print` shows: a summary, then tables. Names stand as they are, without markup."""
    parts = [_summary(data), _models(data)]
    if any(waits.count for waits in data.waits.values()):
        parts.append(_waits(data))
    if data.batches:
        parts.append(_batches(data))
    if data.errors or data.failures:
        parts.append(_errors(data))
    return Group(*parts, *(Text(f"Note: {remark}", style="yellow") for remark in remarks(data)))


def _summary(data: JournalData) -> RenderableType:
    total = data.total
    files = f"{data.files:,} file{'s' * (data.files != 1)}, {data.lines:,} lines"
    ended = f"{total.requests:,} ({total.ok:,} ok, {total.failed:,} failed, {total.cancelled:,} cancelled)"
    return summary_of(
        (
            ("Period", period(data)),
            ("Journal", files),
            ("Requests", ended),
            ("Attempts", f"{total.attempts:,} ({total.errors:,} failed, {total.retries:,} retries)"),
            ("Tokens", f"{total.tokens:,} ({total.input_tokens:,} in, {total.output_tokens:,} out)"),
            ("Cost", cost_of(total)),
            ("Latency", ", ".join(f"p{share * 100:.0f} {time}" for share, time in _quantiles(total.latency))),
        )
    )


def summary_of(rows: Iterable[tuple[str, str]]) -> Table:
    """Return (name, value) rows, as a report begins."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def _models(data: JournalData) -> Table:
    table = table_of("By model (latency of answers: queue and provider)")
    table.padding = (0, 0, 0, 0)  # ten columns in 80 characters
    table.add_column("model", overflow="ellipsis", max_width=NAME_WIDTH)  # the only one that may give way
    number_columns(table, ("reqs", "ok", "errors", "retries", "tokens", "cost", "p50", "p95", "p99"))
    for name, figures in sorted(data.models.items(), key=lambda each: (-each[1].requests, each[0])):
        table.add_row(Text(shown(name, NAME_WIDTH)), *map(Text, _row(figures)))
    return table


def _row(figures: Figures) -> list[str]:
    counts = (figures.requests, figures.ok, figures.errors, figures.retries, figures.tokens)
    return [*map(short, counts), cost_of(figures), *(time for _, time in _quantiles(figures.latency))]


def _waits(data: JournalData) -> Table:
    table = table_of("Wait in the queue, by priority")
    table.add_column("priority", no_wrap=True)
    number_columns(table, ("requests", "p50", "p95", "p99", "max"))
    for priority, waits in data.waits.items():
        if waits.count:
            times = [time for _, time in _quantiles(waits)]
            table.add_row(priority, *map(Text, (f"{waits.count:,}", *times, duration(waits.largest))))
    return table


def _batches(data: JournalData) -> Table:
    table = table_of("Batches, by why they closed")
    table.add_column("why", overflow="ellipsis", no_wrap=True, max_width=NAME_WIDTH)
    number_columns(table, ("batches", "requests", "mean size", "max size"))
    reasons: dict[str, Counter[int]] = {}
    for (why, size), times in data.batches.items():
        reasons.setdefault(why, Counter())[size] += times
        reasons.setdefault("all", Counter())[size] += times
    for why, sizes in sorted(reasons.items(), key=lambda each: (each[0] == "all", -each[1].total())):
        count, items = sizes.total(), sum(size * times for size, times in sizes.items())
        cells = (shown(why, NAME_WIDTH), f"{count:,}", f"{items:,}", f"{items / count:.1f}", f"{max(sizes):,}")
        table.add_row(*map(Text, cells))
    return table


def _errors(data: JournalData) -> Table:
    table = table_of("Errors, by kind")
    table.add_column("kind", overflow="ellipsis", no_wrap=True, max_width=2 * NAME_WIDTH)
    number_columns(table, ("failed attempts", "failed requests"))
    for kind in sorted({*data.errors, *data.failures}, key=lambda each: (-data.errors[each], each)):
        cells = (shown(kind, 2 * NAME_WIDTH), f"{data.errors[kind]:,}", f"{data.failures[kind]:,}")
        table.add_row(*map(Text, cells))
    return table


def table_of(title: str) -> Table:
    """Return an empty table in the style of the report."""
    return Table(
        title=Text(f"\n{title}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        header_style="dim",
    )


def number_columns(table: Table, names: Iterable[str]) -> None:
    """Add columns of numbers."""
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _quantiles(durations: Durations) -> list[tuple[float, str]]:
    return [(share, duration(durations.quantile(share))) for share in QUANTILES]
