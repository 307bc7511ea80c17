"""Figures, progress and summaries as people read them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llm_gateway.cli.console import count, duration
from llm_gateway.cli.progress import Bar, Lines, Pace, display_on, facts, rows
from llm_gateway.cli.summary import print_summary
from llm_gateway.cli.tally import Tally
from llm_gateway.jobs.records import Ledger, StoredResult
from llm_gateway.sentences import dollars


def result(cost: float | None = 0.0, *, kind: str | None = None) -> StoredResult:
    return StoredResult(
        id=1,
        number=1,
        key="a",
        form="gateway",
        kind=kind,
        body=b"{}",
        asked=True,
        attempts=1,
        input_tokens=0 if kind else 1000,
        output_tokens=0 if kind else 234,
        cost_usd=cost or 0.0,
        unpriced=int(cost is None),
    )


def tally_of(*costs: float | None, total: int | None = None) -> Tally:
    tally = Tally(total=total)
    tally.count([result(cost) for cost in costs])
    return tally


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown"),
        (0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.25, "$0.250"),
        (0.0123, "$0.0123"),
        (2e-6, "$0.00000200"),
    ],
)
def test_small_amounts_keep_three_digits(amount: float | None, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (1.234, "1.23 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3780, "1 h 3 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_no_plural() -> None:
    assert (count(1, "row"), count(0, "row"), count(1200, "retry", "retries")) == ("1 row", "0 rows", "1,200 retries")


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.rate(0) == 0.0
    for second in range(1, 61):
        now = float(second)
        rate = pace.rate(10 * second if second <= 30 else 300)  # stalls after thirty seconds
        if second == 30:
            assert rate == pytest.approx(10.0)
    assert rate == 0.0


def test_progress_says_what_is_left_and_what_it_costs() -> None:
    tally = tally_of(0.5, 0.25, total=100)
    assert rows(tally) == "2/100 rows"
    assert facts(tally, rate=2.0) == ["49 s left", "2.0 rows/s", "2,468 tokens", "$0.750", "0 errors"]
    assert facts(tally, rate=0.5)[0] == "3 min 16 s left"


def test_progress_claims_nothing_that_it_does_not_know() -> None:
    tally = tally_of(None)
    tally.count([result(kind="invalid_request")])
    assert rows(tally) == "2 rows"
    assert facts(tally, rate=2.0) == ["2.0 rows/s", "1,234 tokens", "cost unknown", "1 error"]
    assert facts(Tally(), rate=0.0) == ["0.0 rows/s", "0 tokens", "0 errors"]


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_a_terminal_gets_a_bar_that_leaves_room_for_what_is_typed() -> None:
    console = terminal()
    display = display_on(console, answers_may_show=False)
    assert isinstance(display, Bar)
    display.show(tally_of(0.5, total=4))
    display.close()
    lines = [line for line in re.split(r"[\r\n]", shown(console)) if line]
    assert any("1/4 rows" in line for line in lines)
    assert max(map(len, lines)) <= 97  # of 100: "^C" must not break the line


@pytest.mark.parametrize("kind", ["answers on the terminal", "no terminal"])
def test_elsewhere_progress_is_a_line(kind: str) -> None:
    console = terminal() if kind == "answers on the terminal" else Console(file=io.StringIO(), width=100)
    display = display_on(console, answers_may_show=True)
    assert isinstance(display, Lines)
    display.show(tally_of(0.5, total=4))
    display.close()
    assert shown(console).startswith("1/4 rows · ")


LEDGER = Ledger(
    done=2,
    malformed=1,
    failed={"unavailable": 1, "bug": 1},
    examples={"unavailable": "down", "bug": "'x'"},
    asked=4,
    calls=8,
    answered=2,
    refused=4,
    unsent=1,
    input_tokens=2000,
    output_tokens=468,
    cost_usd=0.5,
    unpriced=1,
    rows=5,
)


def summary(ledger: Ledger, journal: Path | None = None, state: Path | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_summary(console, ledger, new=5, seconds=4.0, output="out.jsonl", journal=journal, state=state)
    return shown(console)


def test_a_summary_tells_all_that_happened_and_where_to_look() -> None:
    assert LEDGER.adds_up
    assert summary(LEDGER, Path("logs/today.jsonl"), Path("out.jsonl.job")).splitlines() == [
        "rows       5",
        "answered   2",
        "failed     unavailable 1: down",
        "failed     bug 1: 'x'",
        "malformed  1",
        "calls      7 (3 retries): 2 paid, 4 failed, 1 in doubt (sent perhaps, no answer known)",
        "tokens     2,000 in, 468 out",
        "cost       $0.500, and that of 1 answer is unknown",
        "time       4.00 s, 1.2 rows/s",
        "output     out.jsonl",
        "state      out.jsonl.job",
        "journal    logs/today.jsonl",
    ]


def test_a_summary_says_what_is_left_and_what_does_not_add_up() -> None:
    text = summary(replace(LEDGER, pending=3, leased=2, rows=11))
    assert "pending    3" in text
    assert "asked now  2" in text
    assert "these figures do not add up" in text


def test_a_summary_says_unknown_where_no_price_is_known_and_none_where_nothing_is_kept() -> None:
    text = summary(Ledger(done=2, asked=2, calls=2, answered=2, unpriced=2, rows=2))
    assert "cost      unknown" in text
    assert "state     none: " in text
    assert "journal   off" in text
