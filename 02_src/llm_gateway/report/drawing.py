"""What the plots of every page have in common: colours, axes, and how names and waits are drawn."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from llm_gateway.report.words import duration, shown
from llm_gateway.stats import Durations

Plot = dict[str, Any]

# Readable on white and on near black alike, and told apart by people who see red and green as one.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b7dd8", "#c8741a", "#1f9e77", "#d6455d", "#8a63d2", "#808a98"
SERIES = (ORANGE, PURPLE, RED, BLUE)  # then grey; green is the retries'
PRIORITIES = {"high": RED, "normal": BLUE, "low": GREY}
SHORTEST_WAIT = 0.001  # seconds; a logarithmic axis has no zero
MARKS = (("p50", 0.5, "circle"), ("p95", 0.95, "diamond"), ("p99", 0.99, "square"), ("max", 1.0, "line-ns-open"))
FEW = 8  # up to here an axis counts one by one, and shows no half requests
UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def label(name: str, longest: int = 24) -> str:
    """Return a name as plotly shows it literally: plotly reads a little HTML in all that it writes."""
    return html.escape(shown(name, longest), quote=False)


def every(width: int) -> str:
    """Write the width of a time slice: "second", "15 seconds", "4 hours"."""
    unit, name = next((unit, name) for unit, name in UNITS if width % unit == 0)
    return name if width == unit else f"{width // unit} {name}s"


def waits_by_priority(waits: Mapping[str, Durations]) -> Plot:
    """Return quantiles of waits on a logarithmic axis; `waits` by "high", "normal" and "low"."""
    names = [priority for priority in PRIORITIES if priority in waits and waits[priority].count]
    rows: list[Plot] = [_range(priority, waits[priority]) for priority in names]
    for mark, share, symbol in MARKS:
        marked = [waits[name].quantile(share) or 0.0 for name in names]
        text = [f"{name}: {mark} {duration(wait)}" for name, wait in zip(names, marked, strict=True)]
        colours = [PRIORITIES[name] for name in names]
        look = {"symbol": symbol, "size": 11, "color": colours, "line": {"width": 2, "color": colours}}
        row = {"type": "scatter", "mode": "markers", "name": mark, "x": _on_axis(marked), "y": names, "marker": look}
        rows.append({**row, "hovertext": text, "hoverinfo": "text"})
    longest = max(waits[name].largest for name in names)
    decades = [exponent for exponent in range(-3, 7) if 10.0 ** (exponent - 1) < max(longest, 0.1)]
    ticks = [10.0**exponent for exponent in decades]
    x = {
        "title": axis_title("wait, logarithmic"),
        "type": "log",
        "range": [decades[0] - 0.15, decades[-1] + 0.15],
        "tickvals": ticks,
        "ticktext": [duration(tick) for tick in ticks],
        "automargin": True,
    }
    y: Plot = {"title": axis_title("priority"), "type": "category", "categoryarray": names[::-1]}
    y.update(range=[-0.5, len(names) - 0.5], automargin=True)
    return plot(rows, x, y, hovermode="closest")


def _range(priority: str, waits: Durations) -> Plot:
    ends = _on_axis([waits.quantile(0.5) or 0.0, waits.largest])
    line = {"color": PRIORITIES[priority], "width": 3}
    row = {"type": "scatter", "mode": "lines", "x": ends, "y": [priority] * 2, "line": line}
    return {**row, "showlegend": False, "hoverinfo": "skip"}


def _on_axis(waits: Iterable[float]) -> list[float]:
    return [max(wait, SHORTEST_WAIT) for wait in waits]


def bars_across(name: str, x: list[float] | list[int], y: list[str], colour: str) -> Plot:
    """Return horizontal bars."""
    return {"type": "bar", "orientation": "h", "name": name, "x": x, "y": y, "marker": {"color": colour}}


def count_axis(title: str, highest: int) -> Plot:
    """Return an axis of whole numbers, the largest of which is `highest`."""
    axis = {"title": axis_title(title), "type": "linear", "rangemode": "tozero", "automargin": True}
    return {**axis, "dtick": 1, "tickformat": "d"} if highest <= FEW else {**axis, "tickformat": "~s"}


def highest(rows: Iterable[Plot]) -> int:
    """Return the height of the highest stack of bars."""
    heights: Counter[Any] = Counter()
    for row in rows:
        if row["type"] == "bar":
            heights.update(dict(zip(row["x"], row["y"], strict=True)))
    return max(heights.values(), default=0)


def name_axis(title: str) -> Plot:
    """Return an axis of names."""
    # Without the type a model called "2024-05" would make this an axis of dates.
    return {"title": axis_title(title), "type": "category", "automargin": True}


def axis_title(text: str) -> Plot:
    """Return the title of an axis."""
    return {"text": text, "standoff": 14}  # pixels; without it long names run into the title


def plot(rows: list[Plot], x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Plot:
    """Return a figure."""
    return {"data": rows, "layout": {"xaxis": dict(x), "yaxis": dict(y), "bargap": 0.15, "showlegend": True, **layout}}
