"""The report as one page of HTML that needs nothing from the network."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import orjson

from llm_gateway.errors import MissingDependencyError
from llm_gateway.report.drawing import Plot
from llm_gateway.report.figures import JournalData
from llm_gateway.report.plots import plots
from llm_gateway.report.words import cost_of, duration, period, remarks, short, shown

PLACE = re.compile("@([A-Z]+)@")
MODEL_COLUMNS = ("model", "requests", "ok", "failed", "errors", "retries", "tokens", "cost", "p50", "p95", "p99")


def render_html(data: JournalData) -> str:
    """Return the page. Raises MissingDependencyError without plotly, which is in the extra `report`."""
    return page(
        "LLM gateway report",
        period(data),
        notes=remarks(data),
        cards=_cards(data),
        drawn=plots(data),
        end=_models(data),
    )


def page(
    title: str,
    what: str,
    *,
    notes: Iterable[str],
    cards: Iterable[tuple[str, str]],
    drawn: Sequence[tuple[str, str, Plot]],
    end: str,
) -> str:
    """Return a page: `what` under its title, cards of (name, value), `drawn` plots of (title, what it shows, figure).

    `end` is HTML that follows the plots. Raises MissingDependencyError without plotly.
    """
    sections = [_section(number, name, words) for number, (name, words, _) in enumerate(drawn)]
    return _filled(
        {
            "TITLE": html.escape(title),
            "PERIOD": html.escape(what),
            "REMARKS": "\n".join(f'<p class="remark">{html.escape(remark)}</p>' for remark in notes),
            "CARDS": "\n".join(_card(name, value) for name, value in cards),
            "SECTIONS": "\n".join([*sections, end]),
            "PLOTLY": _plotly(),
            "PLOTS": _inside_script([plot for _, _, plot in drawn]),
        }
    )


def table_section(title: str, what: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table as HTML; the first row is its head."""
    lines = "\n".join(_row("td" if number else "th", cells) for number, cells in enumerate(rows))
    return (
        f'<section class="wide"><h2>{html.escape(title)}</h2><p>{html.escape(what)}</p>'
        f'<div class="scroll"><table>{lines}</table></div></section>'
    )


def _filled(values: Mapping[str, str]) -> str:
    """Put the values into the page, each once: a value that looks like a place is none."""
    page = resources.files("llm_gateway.report").joinpath("page.html").read_text(encoding="utf-8")
    return PLACE.sub(lambda place: values[place[1]], page)


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[report]'") from None
    source: str = get_plotlyjs()
    return source


def _inside_script(figures: Sequence[Plot]) -> str:
    """Return JSON in which nothing can end the script element."""
    text = orjson.dumps(figures).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cards(data: JournalData) -> Iterable[tuple[str, str]]:
    total = data.total
    share = f", {total.ok / total.requests:.1%}" if total.requests else ""
    yield "requests", f"{total.requests:,}"
    yield f"answered{share}", f"{total.ok:,}"
    yield "failed", f"{total.failed:,}"
    yield "cancelled", f"{total.cancelled:,}"
    yield "attempts", f"{total.attempts:,}"
    yield "retries", f"{total.retries:,}"
    yield "tokens in", short(total.input_tokens)
    yield "tokens out", short(total.output_tokens)
    yield "cost", cost_of(total)
    yield "latency p50", duration(total.latency.quantile(0.5))
    yield "latency p95", duration(total.latency.quantile(0.95))
    yield "batches", f"{data.batches.total():,}"


def _card(name: str, value: str) -> str:
    return f'<div class="card"><span>{html.escape(name)}</span><strong>{html.escape(value)}</strong></div>'


def _section(number: int, title: str, what: str) -> str:
    words = f"<h2>{html.escape(title)}</h2><p>{html.escape(what)}</p>"
    return f'<section>{words}<div class="plot" id="plot-{number}"></div></section>'


def _models(data: JournalData) -> str:
    rows: list[Iterable[str]] = [MODEL_COLUMNS]
    for name, figures in sorted(data.models.items(), key=lambda each: (-each[1].requests, each[0])):
        counts = (figures.requests, figures.ok, figures.failed, figures.errors, figures.retries, figures.tokens)
        times = (duration(figures.latency.quantile(share)) for share in (0.5, 0.95, 0.99))
        rows.append((shown(name), *(f"{count:,}" for count in counts), cost_of(figures), *times))
    return table_section("Models", "Latency is that of answers: in the queue and in the provider.", rows)


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
