"""A simulation's result in the terminal and as a page."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from plotly.graph_objects import Figure
from rich.console import Console

from llm_gateway.simulation import Latency, LogNormal, SimulationResult, TracedRequest, Trouble, simulate
from llm_gateway.simulation.page import render_html
from llm_gateway.simulation.plots import plots
from llm_gateway.simulation.terminal import render_terminal
from llm_gateway.simulation.words import percent

QUICK = Latency(first_token=LogNormal(0.1, 0.2), speed=1000.0)
HOSTILE = "<script>alert(1)</script>"


def trace(number: int, seconds: float = 0.5, model: str = "gpt-4o-mini", **given: Any) -> list[TracedRequest]:
    names = ("high", "normal", "low")
    return [
        TracedRequest(
            at=place * seconds, model=model, priority=names[place % 3], input_tokens=100, output_tokens=50, **given
        )
        for place in range(number)
    ]


@pytest.fixture(scope="module")
def busy() -> SimulationResult:
    trouble = Trouble(kind="unavailable", start=20, end=60)
    return simulate(trace(200, max_tokens=50), limits={"rpm": 60}, latency=QUICK, troubles=[trouble])


def in_terminal(result: SimulationResult, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(render_terminal(result))
    return out.getvalue()


def test_the_terminal_shows_what_binds_the_waits_the_limits_and_the_errors(busy: SimulationResult) -> None:
    text = in_terminal(busy)
    assert "200 requests in 1 min 40 s" in text
    assert re.search(r"Binds +rpm of model 'gpt-4o-mini': \d+% of the waiting was for it", text)
    assert re.search(r"high +67 +\d+ ", text)
    assert re.search(r"rpm of model 'gpt-4o-mini' +60 a minute +\d+% +\d+% +\d+%", text)
    assert re.search(r"unavailable +\d+ +\d+", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_calm_simulation_says_that_nothing_waited() -> None:
    text = in_terminal(simulate(trace(1), latency=QUICK))
    assert "1 request in 0 s" in text
    assert "nothing: no request waited" in text
    assert "Errors" not in text


def test_prices_that_are_not_known_are_said_to_be_missing() -> None:
    mixed = [*trace(2), *trace(1, model="local-llama")]
    text = in_terminal(simulate(mixed, latency=QUICK))
    assert "The price of 1 answer is not known" in text
    assert "≥ $" in text
    assert "unknown" in in_terminal(simulate(trace(1, model="local-llama"), latency=QUICK))


def test_an_outage_has_no_cost_and_binds_no_limit() -> None:
    text = in_terminal(simulate(trace(3), troubles=[Trouble(kind="unavailable")], latency=QUICK))
    assert re.search(r"Cost +–", text)  # noqa: RUF001 - the dash for what does not exist
    assert "no limit: requests waited after errors" in text


def test_every_plot_is_a_figure_that_plotly_accepts(busy: SimulationResult) -> None:
    drawn = plots(busy)
    assert [title for title, _, _ in drawn] == [
        "Requests over time",
        "Use of the limits over time",
        "Waiting requests over time",
        "Waits by priority",
        "What requests waited for",
        "Failed calls over time",
    ]
    for _, _, figure in drawn:
        Figure(figure)


def test_a_simulation_without_answers_waits_or_errors_has_fewer_plots() -> None:
    calm = simulate(trace(1), latency=QUICK)
    assert len(plots(calm)) == 3
    failed = simulate(trace(30), troubles=[Trouble(kind="unavailable")], latency=QUICK)
    titles = [title for title, _, _ in plots(failed)]
    assert "Waits by priority" not in titles
    assert "Failed calls over time" in titles


@pytest.mark.parametrize(("seconds", "unit"), [(1.0, "seconds"), (10.0, "minutes"), (400.0, "hours"), (6000.0, "days")])
def test_time_is_told_in_the_unit_in_which_it_is_best_read(seconds: float, unit: str) -> None:
    figure = plots(simulate(trace(40, seconds), latency=QUICK))[0][2]
    assert figure["layout"]["xaxis"]["title"]["text"] == f"time ({unit})"


def test_the_page_needs_nothing_from_elsewhere_and_reads_no_name_as_html() -> None:
    config = {"models": {HOSTILE: {"provider": "openai", "model": "gpt-4o-mini"}}}
    page = render_html(simulate(trace(100, model=HOSTILE), config, limits={"rpm": 60}, latency=QUICK))
    assert "<title>LLM gateway simulation</title>" in page
    assert HOSTILE not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page.partition("<script>")[0])


def test_a_share_that_is_almost_nothing_is_not_called_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.005, 0.97)] == ["0%", "<1%", "0%", "97%"]
