"""The plots of the page, as plotly figures in plain dicts; the page itself brings the colours of text and grid."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from llm_gateway.report.figures import Figures, JournalData
from llm_gateway.report.words import cost_of, dollars, duration, shown
from llm_gateway.stats import Durations

Plot = dict[str, Any]

# Readable on white and on near black alike, and told apart by people who see red and green as one.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b7dd8", "#c8741a", "#1f9e77", "#d6455d", "#8a63d2", "#808a98"
SERIES = (ORANGE, PURPLE, RED, BLUE)  # then grey; green is the retries'
OUTCOMES = (("ok", GREEN), ("failed", RED), ("cancelled", GREY))
REASONS = {"idle": BLUE, "slots": GREEN, "size": ORANGE, "wait": PURPLE, "drain": GREY}
PRIORITIES = {"high": RED, "normal": BLUE, "low": GREY}
SHORTEST_WAIT = 0.001  # seconds; a logarithmic axis has no zero
MARKS = (("p50", 0.5, "circle"), ("p95", 0.95, "diamond"), ("p99", 0.99, "square"), ("max", 1.0, "line-ns-open"))
SAME = "\u200b"  # has no width
NARROWEST_VIEW = 60.0  # seconds
FEW = 8  # up to here an axis counts one by one, and shows no half requests
UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


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
        found.append(("Waits by priority", what, _waits(data)))
    if data.errors or data.total.retries:
        found.append(("Errors and retries over time", "Failed attempts by kind, and repetitions.", _errors(data)))
    if data.errors or data.failures:
        found.append(("Errors by kind", "Failed attempts, and requests that failed in the end.", _kinds(data)))
    if data.total.ok:
        found.append(("Cost by model", "US dollars, of answers whose price is known.", _costs(data)))
    return found


def label(name: str, longest: int = 24) -> str:
    """Return a name as plotly shows it literally: plotly reads a little HTML in all that it writes."""
    return html.escape(shown(name, longest), quote=False)


def every(width: int) -> str:
    """Write the width of a time slice: "second", "15 seconds", "4 hours"."""
    unit, name = next((unit, name) for unit, name in UNITS if width % unit == 0)
    return name if width == unit else f"{width // unit} {name}s"


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
        "title": _title("time (UTC)"),
        "type": "date",
        "range": [f"{end:%Y-%m-%d %H:%M:%S}" for end in ends],
        "hoverformat": "%Y-%m-%d %H:%M:%S",
    }
    for row in rows:
        if row["type"] == "bar":
            row["width"] = width * 1000
    return _plot(rows, x, _counts(f"{what} per {every(width)}", _highest(rows)), barmode="stack", hovermode="x unified")


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
    x = {"title": _title("requests in a batch"), "type": "linear", "range": [0.4, max(largest, 8) + 0.6]}
    x["tickformat"] = "d"
    return _plot(rows, x, _counts("batches", _highest(rows)), barmode="stack", hovermode="x unified")


def _waits(data: JournalData) -> Plot:
    names = [priority for priority in PRIORITIES if data.waits[priority].count]
    rows: list[Plot] = [_range(priority, data.waits[priority]) for priority in names]
    for mark, share, symbol in MARKS:
        waits = [data.waits[name].quantile(share) or 0.0 for name in names]
        text = [f"{name}: {mark} {duration(wait)}" for name, wait in zip(names, waits, strict=True)]
        colours = [PRIORITIES[name] for name in names]
        look = {"symbol": symbol, "size": 11, "color": colours, "line": {"width": 2, "color": colours}}
        row = {"type": "scatter", "mode": "markers", "name": mark, "x": _on_axis(waits), "y": names, "marker": look}
        rows.append({**row, "hovertext": text, "hoverinfo": "text"})
    longest = max(data.waits[name].largest for name in names)
    decades = [exponent for exponent in range(-3, 7) if 10.0 ** (exponent - 1) < max(longest, 0.1)]
    ticks = [10.0**exponent for exponent in decades]
    x = {
        "title": _title("wait, logarithmic"),
        "type": "log",
        "range": [decades[0] - 0.15, decades[-1] + 0.15],
        "tickvals": ticks,
        "ticktext": [duration(tick) for tick in ticks],
        "automargin": True,
    }
    y: Plot = {"title": _title("priority"), "type": "category", "categoryarray": names[::-1]}
    y.update(range=[-0.5, len(names) - 0.5], automargin=True)
    return _plot(rows, x, y, hovermode="closest")


def _range(priority: str, waits: Durations) -> Plot:
    ends = _on_axis([waits.quantile(0.5) or 0.0, waits.largest])
    line = {"color": PRIORITIES[priority], "width": 3}
    row = {"type": "scatter", "mode": "lines", "x": ends, "y": [priority] * 2, "line": line}
    return {**row, "showlegend": False, "hoverinfo": "skip"}


def _on_axis(waits: Iterable[float]) -> list[float]:
    return [max(wait, SHORTEST_WAIT) for wait in waits]


def _kinds(data: JournalData) -> Plot:
    kinds = sorted({*data.errors, *data.failures}, key=lambda kind: data.errors[kind])
    y = [label(kind) for kind in kinds]
    rows = [
        _bar_across("failed attempts", [data.errors[kind] for kind in kinds], y, ORANGE),
        _bar_across("failed requests", [data.failures[kind] for kind in kinds], y, RED),
    ]
    return _plot(
        rows,
        _counts("number", max([*data.errors.values(), *data.failures.values()])),
        _names("kind of error"),
        barmode="group",
        hovermode="closest",
    )


def _costs(data: JournalData) -> Plot:
    models = sorted(
        ((name, figures) for name, figures in data.models.items() if figures.ok), key=lambda each: each[1].cost
    )
    # Two long names may be cut to the same text, and a category that stands twice would be one bar.
    y = [f"{label(name)}{SAME * number}" for number, (name, _) in enumerate(models)]
    bar = _bar_across("cost", [figures.cost for _, figures in models], y, BLUE)
    bar["width"] = min(0.8, 0.25 * len(models))
    bar["text"] = [cost_of(figures) for _, figures in models]
    bar["textposition"] = "outside"
    bar["cliponaxis"] = False
    bar["hovertext"] = [_cost_in_words(name, figures) for name, figures in models]
    bar["hoverinfo"] = "text"
    dearest = max((figures.cost for _, figures in models), default=0.0)
    x = {"title": _title("cost (US dollars)"), "type": "linear", "range": [0, dearest * 1.3 or 1.0]}
    x.update(tickprefix="$", tickformat=".3~r")
    return _plot([bar], x, _names("model"), hovermode="closest", showlegend=False)


def _cost_in_words(name: str, figures: Figures) -> str:
    missing = f", {figures.unpriced:,} answers of unknown price" if figures.unpriced else ""
    return f"{label(name, 60)}: {dollars(figures.cost_usd)}{missing}"


def _bar_across(name: str, x: list[float] | list[int], y: list[str], colour: str) -> Plot:
    return {"type": "bar", "orientation": "h", "name": name, "x": x, "y": y, "marker": {"color": colour}}


def _counts(title: str, highest: int) -> Plot:
    axis = {"title": _title(title), "type": "linear", "rangemode": "tozero", "automargin": True}
    return {**axis, "dtick": 1, "tickformat": "d"} if highest <= FEW else {**axis, "tickformat": "~s"}


def _highest(rows: Iterable[Plot]) -> int:
    """Return the height of the highest stack of bars."""
    heights: Counter[Any] = Counter()
    for row in rows:
        if row["type"] == "bar":
            heights.update(dict(zip(row["x"], row["y"], strict=True)))
    return max(heights.values(), default=0)


def _names(title: str) -> Plot:
    # Without the type a model called "2024-05" would make this an axis of dates.
    return {"title": _title(title), "type": "category", "automargin": True}


def _title(text: str) -> Plot:
    return {"text": text, "standoff": 14}  # pixels; without it long names run into the title


def _plot(rows: list[Plot], x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Plot:
    return {"data": rows, "layout": {"xaxis": dict(x), "yaxis": dict(y), "bargap": 0.15, "showlegend": True, **layout}}
