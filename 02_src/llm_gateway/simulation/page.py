"""A result as one page of HTML that needs nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable

from llm_gateway.report.page import page, table_section
from llm_gateway.report.words import duration, short
from llm_gateway.simulation.plots import plots
from llm_gateway.simulation.result import SimulationResult
from llm_gateway.simulation.words import binds, cost, finished, remarks, rows_of_limits, traffic

CLASS_COLUMNS = ("priority", "requests", "answered", "wait p50", "wait p99", "longest wait")
LIMIT_COLUMNS = ("limit", "allows", "use", "peak", "of the waiting")


def render_html(result: SimulationResult) -> str:
    """Return the page. Raises MissingDependencyError without plotly, which is in the extra `report`."""
    what = f"{traffic(result)}; finished {finished(result)}. What binds: {binds(result)}."
    limits = table_section(
        "Limits", "Use over the whole time, and in the busiest slice of it.", [LIMIT_COLUMNS, *rows_of_limits(result)]
    )
    waits = table_section(
        "Waits", "In the queue and between attempts, of those answered.", [CLASS_COLUMNS, *_classes(result)]
    )
    return page(
        "LLM gateway simulation",
        what,
        notes=remarks(result),
        cards=_cards(result),
        drawn=plots(result),
        end=f"{waits}\n{limits}",
    )


def _cards(result: SimulationResult) -> Iterable[tuple[str, str]]:
    yield "requests", f"{result.requests:,}"
    yield "answered", f"{result.answered:,}"
    yield "failed", f"{result.failures.total():,}"
    yield "time to finish", duration(result.duration)
    yield "provider calls", f"{result.calls:,}"
    yield "429s", f"{result.refused:,}"
    for name, figures in result.classes.items():
        yield f"wait p99, {name}", duration(figures.wait.quantile(0.99))
    yield "tokens in", short(result.input_tokens)
    yield "tokens out", short(result.output_tokens)
    yield "cost", cost(result)


def _classes(result: SimulationResult) -> Iterable[tuple[str, ...]]:
    for name, figures in result.classes.items():
        largest = figures.wait.largest if figures.answered else None
        times = (figures.wait.quantile(0.5), figures.wait.quantile(0.99), largest)
        yield (name, f"{figures.requests:,}", f"{figures.answered:,}", *map(duration, times))
