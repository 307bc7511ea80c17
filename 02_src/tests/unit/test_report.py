"""The report: what a journal adds up to, in the terminal and as a page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from plotly.graph_objects import Figure
from rich.console import Console

from fakes import sample_journal
from fakes.sample_journal import MODELS, write_hour
from llm_gateway.errors import ConfigurationError, MissingDependencyError
from llm_gateway.report import JournalData, read_journal, render_html, render_terminal, report
from llm_gateway.report.drawing import every
from llm_gateway.report.figures import MOST_SLICES, Timeline
from llm_gateway.report.plots import plots
from llm_gateway.report.words import duration, period, short

NAME = "2026-11-22-host-1.jsonl"
HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "[red]x[/] \x1b[31m", "2024-05-01")


def item(**given: Any) -> dict[str, Any]:
    line = {
        "ts": "2026-11-22T12:00:00.000000Z",
        "event": "item_done",
        "model": "m",
        "priority": "normal",
        "outcome": "ok",
        "attempt": 1,
        "queue_wait": 0.5,
        "provider_time": 1.5,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": 0.25,
        **given,
    }
    return {name: value for name, value in line.items() if value is not None}


def event(name: str, **given: Any) -> dict[str, Any]:
    return {"ts": "2026-11-22T12:00:01.000000Z", "event": name, "model": "m", **given}


def journal(folder: Path, lines: Iterable[dict[str, Any]], *, tail: bytes = b"", name: str = NAME) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + tail)
    return folder


def in_terminal(data: JournalData, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width).print(render_terminal(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> JournalData:
    folder = tmp_path_factory.mktemp("hour")
    write_hour(folder, items=1500)
    return read_journal(folder)


# --- reading --------------------------------------------------------------------------------------------------


def test_every_line_is_counted_once_for_all_and_for_its_model(tmp_path: Path) -> None:
    lines = [
        item(model="a", attempt=2),
        item(model="a", outcome="cancelled", attempt=0, input_tokens=None, output_tokens=None, cost_usd=None),
        item(model="b", outcome="timeout", input_tokens=None, output_tokens=None, cost_usd=None),
        event("error", model="a", kind="timeout"),
        event("retry_scheduled", model="a", kind="timeout"),
        event("batch_opened"),
        event("batch_closed", size=3, why="size"),
        event("shutdown"),
    ]
    data = read_journal(journal(tmp_path, lines))
    total, first = data.total, data.models["a"]
    assert (total.requests, total.ok, total.cancelled, total.failed) == (3, 1, 1, 1)
    assert (total.attempts, total.errors, total.retries) == (3, 1, 1)
    assert (total.input_tokens, total.output_tokens, total.cost_usd) == (10, 5, 0.25)
    assert (first.requests, first.errors, first.retries, first.latency.count) == (2, 1, 1, 1)
    assert first.latency.largest == 2.0
    assert (data.lines, data.unread, data.files) == (8, 0, 1)
    assert data.batches == {("size", 3): 1}
    assert data.failures == {"timeout": 1}


def test_the_hours_of_a_providers_batch_are_no_latency(tmp_path: Path) -> None:
    lines = [item(), item(price_lane="flex"), item(price_lane="batch", provider_time=7200.0)]
    total = read_journal(journal(tmp_path, lines)).total
    assert (total.ok, total.cost_usd, total.latency.count, total.latency.largest) == (3, 0.75, 2, 2.0)


def test_torn_and_foreign_lines_are_counted_and_count_for_nothing(tmp_path: Path) -> None:
    foreign: list[dict[str, Any]] = [
        {"ts": "2026-11-22T12:00:00Z"},
        {"ts": 5, "event": "item_done"},
        {"ts": "yesterday", "event": "error"},
        event("of_another_program"),
        item(priority="urgent"),
        item(queue_wait="long"),
        event("lines_lost"),
    ]
    tail = b'[1, 2]\n\xff\xfe\n{"ts":"2026-11-22T12:00:0'
    data = read_journal(journal(tmp_path, [item(), *foreign], tail=tail))
    assert (data.lines, data.unread) == (1, len(foreign) + 3)
    assert data.total.requests == 1
    assert f"{len(foreign) + 3} lines could not be read" in in_terminal(data)


def test_lines_that_a_full_disk_lost_are_told(tmp_path: Path) -> None:
    data = read_journal(journal(tmp_path, [item(), event("lines_lost", lines=1234)]))
    assert data.lost == 1234
    assert "1,234 lines were lost" in in_terminal(data)


def test_all_files_of_a_folder_are_read_but_no_others(tmp_path: Path) -> None:
    journal(tmp_path, [item()])
    journal(tmp_path, [item()], name="2026-11-23-host-1.2.jsonl")
    journal(tmp_path, [item()], name="results.jsonl")
    (tmp_path / "2026-11-23-results-1.jsonl").write_text('{"prompt": "x"}\n')
    data = read_journal(tmp_path)
    assert (data.files, data.total.requests, data.unread) == (2, 2, 0)


def test_single_files_can_be_read_and_one_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    path = journal(tmp_path, [item()]) / NAME
    assert read_journal(path).total.requests == 1
    assert read_journal([path, tmp_path / "gone.jsonl"]).total.requests == 1


@pytest.mark.parametrize("what", ["no folder", "no journal", "no line", "no file", "a folder for a file"])
def test_nothing_to_read_is_one_sentence(tmp_path: Path, what: str) -> None:
    where: Path | list[Path] = tmp_path
    if what == "no folder":
        where = tmp_path / "missing"
    elif what == "no line":
        journal(tmp_path, [], tail=b'{"ts":"torn')
    elif what == "no file":
        where = []
    elif what == "a folder for a file":
        where = [tmp_path]
    with pytest.raises(ConfigurationError) as caught:
        read_journal(where)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_a_folder_that_cannot_be_listed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        read_journal(tmp_path)


# --- time -----------------------------------------------------------------------------------------------------


def test_slices_of_time_stay_few_and_lose_nothing() -> None:
    timeline = Timeline()
    for second in range(0, 10 * 86_400, 600):
        timeline.at(1.79e9 + second)["ok"] += 1
    timeline.at(1.79e9 - 5)["ok"] += 1
    rows = timeline.rows()
    assert len(rows) <= MOST_SLICES
    assert sum(counters["ok"] for _, counters in rows) == 1441
    assert [start for start, _ in rows] == list(range(rows[0][0], rows[-1][0] + 1, timeline.width))


def test_an_instant_far_away_only_makes_slices_longer() -> None:
    timeline = Timeline()
    for year in (1970, 2026, 9999):
        timeline.at(datetime(year, 1, 2).timestamp())["ok"] += 1  # noqa: DTZ001 - any zone will do
    assert sum(counters["ok"] for _, counters in timeline.rows()) == 3
    assert len(timeline.rows()) <= MOST_SLICES


def test_no_time_at_all_has_no_slices() -> None:
    assert Timeline().rows() == []


# --- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),  # noqa: RUF001
        (0.0, "0 s"),
        (0.0123, "12.3 ms"),
        (0.99951, "1 s"),
        (1.234, "1.23 s"),
        (59.96, "1 min"),
        (245.0, "4 min 5 s"),
        (7800.0, "2 h 10 min"),
        (3 * 86_400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_a_duration_reads_well(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (950, "950"), (999.7, "1k"), (4.56e6, "4.56M"), (3e15, "3e+03T")]
)
def test_a_count_reads_well(number: float, words: str) -> None:
    assert short(number) == words


@pytest.mark.parametrize(("width", "words"), [(1, "second"), (15, "15 seconds"), (3600, "hour"), (172_800, "2 days")])
def test_a_slice_of_time_reads_well(width: int, words: str) -> None:
    assert every(width) == words


def test_a_period_names_the_second_day(tmp_path: Path) -> None:
    lines = [item(), item(ts="2026-11-23T13:00:00.000000Z")]
    words = period(read_journal(journal(tmp_path, lines)))
    assert words == "2026-11-22 12:00:00 to 2026-11-23 13:00:00 UTC (1 d 1 h)"


# --- terminal -------------------------------------------------------------------------------------------------


def test_the_terminal_shows_every_figure_in_80_columns_without_colour(hour: JournalData) -> None:
    text = in_terminal(hour)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in (f"{hour.total.requests:,}", "claude-sonnet", "rate_limit", "p99", "unknown", "≥ $", "idle", "high"):
        assert word in text


@pytest.mark.parametrize(
    ("costs", "words"),
    [((None, None), "unknown"), ((0.5, None), "≥ $0.500"), ((0.5, 0.25), "$0.750"), ((0.0, 0.0), "$0.00")],
)
def test_an_unknown_price_is_unknown_and_never_nothing(
    tmp_path: Path, costs: tuple[float | None, ...], words: str
) -> None:
    data = read_journal(journal(tmp_path, [item(cost_usd=cost) for cost in costs]))
    assert re.search(r"^Cost +(.*?) *$", in_terminal(data), re.MULTILINE)[1] == words  # type: ignore[index]
    assert f"<strong>{words}</strong>" in render_html(data)


def test_a_journal_of_failures_alone_has_no_latency_and_no_cost(tmp_path: Path) -> None:
    failed = item(outcome="authentication", input_tokens=None, output_tokens=None, cost_usd=None)
    data = read_journal(journal(tmp_path, [failed, event("error", kind="authentication")]))
    assert re.search(r"^m +1 +0 +1 +0 +0( +–){4}", in_terminal(data), re.MULTILINE)  # noqa: RUF001
    titles = [title for title, _, _ in plots(data)]
    assert titles == ["Requests over time", "Waits by priority", "Errors and retries over time", "Errors by kind"]


def test_a_journal_without_a_finished_request_is_shown_all_the_same(tmp_path: Path) -> None:
    data = read_journal(journal(tmp_path, [event("batch_closed", size=2, why="idle"), event("retry_scheduled")]))
    assert "idle" in in_terminal(data)
    assert "Wait in the queue" not in in_terminal(data)
    assert [title for title, _, _ in plots(data)] == ["Batch sizes", "Errors and retries over time"]
    render_html(data)


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    text = in_terminal(read_journal(journal(tmp_path, [item(model=name) for name in HOSTILE])), width=120)
    assert "<script>alert(1)</s…" in text
    assert "[red]x[/] �[31m" in text
    assert "\x1b" not in text


# --- page -----------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element of a page, with the text of scripts apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag not in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
        else:
            self.text += data


def test_the_page_has_every_plot_with_titles_on_all_axes(hour: JournalData) -> None:
    drawn = plots(hour)
    assert [title for title, _, _ in drawn] == [
        "Requests over time",
        "Tokens over time",
        "Batch sizes",
        "Waits by priority",
        "Errors and retries over time",
        "Errors by kind",
        "Cost by model",
    ]
    for title, _, figure in drawn:
        Figure(figure)  # raises for what plotly does not know
        assert figure["layout"]["xaxis"]["title"]["text"], title
        assert figure["layout"]["yaxis"]["title"]["text"], title
        assert figure["data"], title


def test_the_plots_hold_every_request_and_token(hour: JournalData) -> None:
    found = {title: figure for title, _, figure in plots(hour)}
    assert sum(sum(row["y"]) for row in found["Requests over time"]["data"]) == hour.total.requests
    assert sum(sum(row["y"]) for row in found["Tokens over time"]["data"]) == hour.total.tokens
    assert sum(sum(row["y"]) for row in found["Batch sizes"]["data"]) == hour.batches.total()
    errors = found["Errors and retries over time"]["data"]
    assert sum(sum(row["y"]) for row in errors) == hour.total.errors + hour.total.retries
    assert sum(found["Cost by model"]["data"][0]["x"]) == pytest.approx(hour.total.cost)
    assert "unknown" in found["Cost by model"]["data"][0]["text"]


def test_the_page_needs_nothing_from_elsewhere(hour: JournalData) -> None:
    page = Elements(render_html(hour))
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "base"})
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'")
    assert "plotly.js" in page.scripts[1]


def test_hostile_names_stay_text_in_the_page(tmp_path: Path) -> None:
    models = tuple(replace(model, name=name) for model, name in zip(MODELS, HOSTILE, strict=True))
    write_hour(tmp_path, items=300, models=models)
    data = read_journal(tmp_path)
    clean = Elements(render_html(data))
    counts = [sum(tag == each for tag, _ in clean.tags) for each in ("script", "img", "b")]
    assert counts == [3, 0, 0]
    assert "<script>alert(1)</script>" in clean.text
    figures = next(script for script in clean.scripts if script.startswith("["))
    assert "<" not in figures
    # Plotly reads a little HTML itself, and takes a name that looks like a date for one.
    cost = json.loads(figures)[-1]
    assert "&lt;script&gt;alert(1)&lt;/scrip…" in [name.strip("\u200b") for name in cost["data"][0]["y"]]
    assert cost["layout"]["yaxis"]["type"] == "category"


def test_a_name_that_looks_like_a_place_in_the_page_is_none(tmp_path: Path) -> None:
    data = read_journal(journal(tmp_path, [item(model="@PLOTS@")]))
    assert "@PLOTS@" in Elements(render_html(data)).text


def test_names_that_are_cut_alike_remain_two_bars(tmp_path: Path) -> None:
    data = read_journal(journal(tmp_path, [item(model="x" * 40 + end) for end in "ab"]))
    cost = plots(data)[-1][2]["data"][0]
    assert len(set(cost["y"])) == 2


def test_an_unknown_reason_for_closing_is_drawn_too(tmp_path: Path) -> None:
    data = read_journal(journal(tmp_path, [event("batch_closed", size=2, why=why) for why in ("idle", "whim")]))
    assert [row["name"] for row in plots(data)[0][2]["data"]] == ["idle", "whim"]


# --- the command's part ---------------------------------------------------------------------------------------


def test_the_report_prints_its_tables_and_writes_the_page(tmp_path: Path) -> None:
    out, page = StringIO(), tmp_path / "report.html"
    report(journal(tmp_path / "logs", [item()]), page, Console(file=out, width=80))
    assert "By model" in out.getvalue()
    assert out.getvalue().endswith(f"Page: {page}\n")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_a_page_only_the_tables_are_printed_and_plotly_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    out = StringIO()
    report(journal(tmp_path, [item()]), None, Console(file=out, width=80))
    assert "Page:" not in out.getvalue()


def test_a_page_without_plotly_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-gateway\[report\]'"):
        report(journal(tmp_path, [item()]), tmp_path / "x.html", Console(file=StringIO()))


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be written: No such file or directory\."):
        report(journal(tmp_path, [item()]), tmp_path / "no" / "x.html", Console(file=StringIO()))


def test_a_journal_needs_an_event_to_have_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        sample_journal.write(tmp_path, [])
