"""The plots of the page, as plotly figures in plain dicts; the page itself brings the colours of text and grid."""

from __future__ import annotations

from datetime import UTC, datetime

from llm_gateway.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    SHORTEST_WAIT,
    Plot,
    axis_title,
    bars_across,
    count_axis,
    every,
    highest,
    label,
    name_axis,
    plot,
    waits_by_priority,
)
from llm_gateway.report.figures import Figures, JournalData
from llm_gateway.report.words import cost_of, duration
from llm_gateway.sentences import dollars

OUTCOMES = (("ok", GREEN), ("failed", RED), ("cancelled", GREY))
REASONS = {"idle": BLUE, "slots": GREEN, "size": ORANGE, "wait": PURPLE, "drain": GREY}
SAME = "\u200b"  # has no width
NARROWEST_VIEW = 60.0  # seconds


def plots(data: JournalData) -> list[tuple[str, str, Plot]]:
    """Return (title, what it shows, figure) of each plot that the journal has something for."""
    found = []
    if data.total.requests:
        found.append(("Requests over time", "How many requests ended, and how.", _requests(data)))
    if data.total.tokens:
        found.append(("Tokens over time", "Input and output of the requests that ended.", _tokens(data)))
    if data.batches:
        found.append(("Batch sizes", "How full batches were, and why they closed.", _batch_sizes(data)))
    if data.total.requests:
        what = f"Time in the queue and between attempts; what is below {duration(SHORTEST_WAIT)} is drawn there."
        found.append(("Waits by priority", what, waits_by_priority(data.waits)))
    if data.errors or data.total.retries:
        found.append(("Errors and retries over time", "Failed attempts by kind, and repetitions.", _errors(data)))
    if data.errors or data.failures:
        found.append(("Errors by kind", "Failed attempts, and requests that failed in the end.", _kinds(data)))
    if data.total.ok:
        found.append(("Cost by model", "US dollars, of answers whose price is known.", _costs(data)))
    return found


def _requests(data: JournalData) -> Plot:
    rows = [_bars(data, state, state, colour) for state, colour in OUTCOMES if getattr(data.total, state)]
    return _over_time(data, rows, "requests")


def _tokens(data: JournalData) -> Plot:
    rows = [_bars(data, "input_tokens", "input", BLUE), _bars(data, "output_tokens", "output", ORANGE)]
    return _over_time(data, rows, "tokens")


def _errors(data: JournalData) -> Plot:
    colours = dict(zip((kind for kind, _ in data.errors.most_common()), SERIES, strict=False))
    rows = [_bars(data, f"error:{kind}", kind, colours.get(kind, GREY)) for kind, _ in data.errors.most_common()]
    x, y = _column(data, "retries")
    # Steps, not slopes: a retry here and there is no trend between them.
    line = {"color": GREEN, "width": 1.5, "shape": "hvh"}
    rows.append({"type": "scatter", "mode": "lines", "name": "retries", "x": x, "y": y, "line": line})
    return _over_time(data, rows, "errors, retries")


def _bars(data: JournalData, counter: str, name: str, colour: str) -> Plot:
    x, y = _column(data, counter)
    return {"type": "bar", "name": label(name), "x": x, "y": y, "marker": {"color": colour}}


def _column(data: JournalData, counter: str) -> tuple[list[str], list[int]]:
    """Return the middle of each slice of time, and the counter in it."""
    rows = data.timeline.rows()
    middles = (datetime.fromtimestamp(start + data.timeline.width / 2, UTC) for start, _ in rows)
    return [f"{middle:%Y-%m-%d %H:%M:%S.%f}" for middle in middles], [counters[counter] for _, counters in rows]


def _over_time(data: JournalData, rows: list[Plot], what: str) -> Plot:
    width, slices = data.timeline.width, data.timeline.rows()
    first, last = slices[0][0], slices[-1][0] + width
    room = max(0.0, NARROWEST_VIEW - (last - first)) / 2  # one request alone must not look like a wall
    ends = (datetime.fromtimestamp(when, UTC) for when in (first - room, last + room))
    x = {
        "title": axis_title("time (UTC)"),
        "type": "date",
        "range": [f"{end:%Y-%m-%d %H:%M:%S}" for end in ends],
        "hoverformat": "%Y-%m-%d %H:%M:%S",
    }
    for row in rows:
        if row["type"] == "bar":
            row["width"] = width * 1000
    return plot(
        rows, x, count_axis(f"{what} per {every(width)}", highest(rows)), barmode="stack", hovermode="x unified"
    )


def _batch_sizes(data: JournalData) -> Plot:
    known = [why for why in REASONS if any(why == each for each, _ in data.batches)]
    others = sorted({why for why, _ in data.batches} - set(REASONS))
    rows = []
    for why in (*known, *others):
        sizes = sorted(size for each, size in data.batches if each == why)
        counts = [data.batches[why, size] for size in sizes]
        colour = REASONS.get(why, GREY)
        rows.append(
            {"type": "bar", "name": label(why), "x": sizes, "y": counts, "width": 0.9, "marker": {"color": colour}}
        )
    largest = max(size for _, size in data.batches)
    x = {"title": axis_title("requests in a batch"), "type": "linear", "range": [0.4, max(largest, 8) + 0.6]}
    x["tickformat"] = "d"
    return plot(rows, x, count_axis("batches", highest(rows)), barmode="stack", hovermode="x unified")


def _kinds(data: JournalData) -> Plot:
    kinds = sorted({*data.errors, *data.failures}, key=lambda kind: data.errors[kind])
    y = [label(kind) for kind in kinds]
    rows = [
        bars_across("failed attempts", [data.errors[kind] for kind in kinds], y, ORANGE),
        bars_across("failed requests", [data.failures[kind] for kind in kinds], y, RED),
    ]
    return plot(
        rows,
        count_axis("number", max([*data.errors.values(), *data.failures.values()])),
        name_axis("kind of error"),
        barmode="group",
        hovermode="closest",
    )


def _costs(data: JournalData) -> Plot:
    models = sorted(
        ((name, figures) for name, figures in data.models.items() if figures.ok), key=lambda each: each[1].cost
    )
    # Two long names may be cut to the same text, and a category that stands twice would be one bar.
    y = [f"{label(name)}{SAME * number}" for number, (name, _) in enumerate(models)]
    bar = bars_across("cost", [figures.cost for _, figures in models], y, BLUE)
    bar["width"] = min(0.8, 0.25 * len(models))
    bar["text"] = [cost_of(figures) for _, figures in models]
    bar["textposition"] = "outside"
    bar["cliponaxis"] = False
    bar["hovertext"] = [_cost_in_words(name, figures) for name, figures in models]
    bar["hoverinfo"] = "text"
    dearest = max((figures.cost for _, figures in models), default=0.0)
    x = {"title": axis_title("cost (US dollars)"), "type": "linear", "range": [0, dearest * 1.3 or 1.0]}
    x.update(tickprefix="$", tickformat=".3~r")
    return plot([bar], x, name_axis("model"), hovermode="closest", showlegend=False)


def _cost_in_words(name: str, figures: Figures) -> str:
    missing = f", {figures.unpriced:,} answers of unknown price" if figures.unpriced else ""
    return f"{label(name, 60)}: {dollars(figures.cost_usd)}{missing}"
