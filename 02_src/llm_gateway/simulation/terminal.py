"""A result as tables for a terminal of 80 columns, or for a pipe."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_gateway.report.terminal import number_columns, summary_of, table_of
from llm_gateway.report.words import duration, shown
from llm_gateway.simulation.result import SimulationResult
from llm_gateway.simulation.words import binds, calls, cost, finished, remarks, rows_of_limits, traffic

NAME_WIDTH = 40


def render_terminal(result: SimulationResult) -> RenderableType:
    """Return what `console.print` shows: a summary, then tables. Names stand as they are, without markup."""
    summary = summary_of(
        (
            ("Traffic", traffic(result)),
            ("Finished", finished(result)),
            ("Requests", f"{result.answered:,} answered, {result.failures.total():,} failed"),
            ("Calls", calls(result)),
            ("Tokens", f"{result.input_tokens:,} in, {result.output_tokens:,} out"),
            ("Cost", cost(result)),
            ("Binds", binds(result)),
        )
    )
    parts: list[RenderableType] = [summary, _waits(result), _limits(result)]
    if result.errors or result.failures:
        parts.append(_errors(result))
    return Group(*parts, *(Text(f"Note: {remark}", style="yellow") for remark in remarks(result)))


def _waits(result: SimulationResult) -> Table:
    table = table_of("Wait before the provider's call, by priority")
    table.add_column("priority", no_wrap=True)
    number_columns(table, ("requests", "answered", "p50", "p99", "max"))
    for name, figures in result.classes.items():
        counts = (f"{figures.requests:,}", f"{figures.answered:,}")
        largest = figures.wait.largest if figures.answered else None
        times = (figures.wait.quantile(0.5), figures.wait.quantile(0.99), largest)
        table.add_row(name, *map(Text, (*counts, *map(duration, times))))
    return table


def _limits(result: SimulationResult) -> Table:
    table = table_of("Limits: use in all and at its peak, and part of the waiting")
    table.add_column("limit", overflow="ellipsis", no_wrap=True, max_width=NAME_WIDTH)
    number_columns(table, ("allows", "use", "peak", "waiting"))
    for row in rows_of_limits(result):
        table.add_row(*map(Text, row))
    return table


def _errors(result: SimulationResult) -> Table:
    table = table_of("Errors, by kind")
    table.add_column("kind", no_wrap=True)
    number_columns(table, ("failed calls", "failed requests"))
    for kind in sorted({*result.errors, *result.failures}, key=lambda each: (-result.errors[each], each)):
        cells = (shown(kind), f"{result.errors[kind]:,}", f"{result.failures[kind]:,}")
        table.add_row(*map(Text, cells))
    return table
