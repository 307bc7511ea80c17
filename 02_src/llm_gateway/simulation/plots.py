"""The plots of a result, as plotly figures in plain dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from llm_gateway.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PRIORITIES,
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
from llm_gateway.report.words import duration
from llm_gateway.simulation.result import NOTHING_FULL, SimulationResult
from llm_gateway.simulation.words import named

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
UNITS = ((2 * 86_400, 86_400, "days"), (3 * 3600, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))
LONGEST_NAME = 44
MOST_LIMITS = 4  # lines that can be told apart
SMALLEST_PART = 0.005  # of all waiting; less would read 0 %
MANY = 10


def plots(result: SimulationResult) -> list[tuple[str, str, Plot]]:
    """Return (title, what it shows, figure) of each plot that there is something for."""
    found = [
        ("Requests over time", "How many had come, and had ended, by then.", _requests(result)),
        ("Use of the limits over time", "Of what each limit allows; the most used ones.", _limits(result)),
    ]
    if result.waited:
        found.append(("Waiting requests over time", "How many waited, in the mean of each slice.", _waiting(result)))
    if result.answered:
        what = f"Time in the queue and between attempts; what is below {duration(SHORTEST_WAIT)} is drawn there."
        waits = {name: figures.wait for name, figures in result.classes.items()}
        found.append(("Waits by priority", what, waits_by_priority(waits)))
    if result.waited:
        found.append(("What requests waited for", "Parts of all waiting; the longest is what binds.", _binding(result)))
    if result.errors:
        found.append(("Failed calls over time", 'By kind; "rate_limit" are the 429s.', _errors(result)))
    return found


def _requests(result: SimulationResult) -> Plot:
    ended = result.timeline.ended
    rows = [_steps(result, "came", list(accumulate(result.timeline.came)), BLUE)]
    rows.append(_steps(result, "answered", list(accumulate(ended["answered"])), GREEN))
    if result.failures:
        rows.append(_steps(result, "failed", list(accumulate(ended["failed"])), RED))
    return _over_time(result, rows, count_axis("requests so far", result.requests))


def _waiting(result: SimulationResult) -> Plot:
    waiting = result.timeline.waiting
    rows = [_bars(result, name, waiting[name], PRIORITIES[name]) for name in PRIORITIES if name in waiting]
    y: Plot = {"title": axis_title("requests"), "type": "linear", "rangemode": "tozero", "automargin": True}
    if highest(rows) > MANY:
        y["tickformat"] = "~s"
    return _over_time(result, rows, y)


def _limits(result: SimulationResult) -> Plot:
    uses = sorted(result.limits, key=lambda each: -each.peak)[:MOST_LIMITS]
    rows = [
        _steps(result, label(named(use), LONGEST_NAME), use.over_time, colour)
        for use, colour in zip(uses, COLOURS, strict=False)
    ]
    most = max((use.peak for use in uses), default=0.0)
    y: Plot = {"title": axis_title("use"), "type": "linear", "tickformat": ".0%", "automargin": True}
    y["range"] = [0, max(1.05, most * 1.05)]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    line["line"] = {"color": RED, "width": 1, "dash": "dot"}
    figure = _over_time(result, rows, y)
    figure["layout"]["shapes"] = [line]
    return figure


def _binding(result: SimulationResult) -> Plot:
    waited = [*((named(use), use.waited) for use in result.limits), (NOTHING_FULL, result.paused)]
    parts = sorted((each for each in waited if each[1] > SMALLEST_PART * result.waited), key=lambda each: each[1])
    shares = [seconds / result.waited for _, seconds in parts]
    bar = bars_across("waiting", shares, [label(name, LONGEST_NAME) for name, _ in parts], BLUE)
    bar["text"] = [f"{share:.0%}" for share in shares]
    bar["textposition"] = "outside"
    bar["cliponaxis"] = False
    bar["width"] = min(0.8, 0.25 * len(parts))
    bar["hoverinfo"] = "skip"
    x = {"title": axis_title("part of all waiting"), "type": "linear", "range": [0, 1.1], "tickformat": ".0%"}
    return plot([bar], x, name_axis("limit"), hovermode="closest", showlegend=False)


def _errors(result: SimulationResult) -> Plot:
    errors = result.timeline.errors
    kinds = [kind for kind, _ in result.errors.most_common()]
    colours = dict(zip(kinds, SERIES, strict=False))
    rows = [_bars(result, label(kind), errors[kind], colours.get(kind, GREY)) for kind in kinds]
    return _over_time(result, rows, count_axis(f"calls per {_width(result)}", highest(rows)))


def _bars(result: SimulationResult, name: str, amounts: Sequence[float], colour: str) -> Plot:
    unit = _unit(result)[0]
    row = {"type": "bar", "name": name, "x": _middles(result), "y": _rounded(amounts), "marker": {"color": colour}}
    return {**row, "width": result.timeline.width / unit}


def _steps(result: SimulationResult, name: str, amounts: Sequence[float], colour: str) -> Plot:
    line = {"color": colour, "width": 1.5, "shape": "hvh"}
    row = {"type": "scatter", "mode": "lines", "name": name, "x": _middles(result), "y": _rounded(amounts)}
    return {**row, "line": line}


def _rounded(amounts: Sequence[float]) -> list[float]:
    return [round(amount, 4) for amount in amounts]


def _middles(result: SimulationResult) -> list[float]:
    """Return the middle of each slice of time, in the unit of the axis."""
    unit, width = _unit(result)[0], result.timeline.width
    return [round((place + 0.5) * width / unit, 6) for place in range(len(result.timeline.came))]


def _width(result: SimulationResult) -> str:
    """Write how long a slice of time is."""
    width = result.timeline.width
    return every(round(width)) if width >= 1 else f"{width:g} s"


def _unit(result: SimulationResult) -> tuple[float, str]:
    """Return the seconds and the name of the unit in which time is best read."""
    return next((unit, name) for least, unit, name in UNITS if result.duration >= least)


def _over_time(result: SimulationResult, rows: list[Plot], y: Mapping[str, Any]) -> Plot:
    unit, name = _unit(result)
    end = len(result.timeline.came) * result.timeline.width / unit
    x = {"title": axis_title(f"time ({name})"), "type": "linear", "range": [0, end], "hoverformat": ".2~f"}
    return plot(rows, x, y, barmode="stack", hovermode="x unified")
