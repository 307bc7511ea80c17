"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_gateway.cli.console import MINUTE, count, duration
from llm_gateway.cli.tally import Tally
from llm_gateway.sentences import dollars

BAR_PERIOD = 0.25  # seconds between two looks at the tally
LINE_PERIOD = 10.0
RATE_WINDOW = 30.0  # seconds over which the rate is measured


class Display(Protocol):
    """Shows a tally from time to time."""

    period: float

    def show(self, tally: Tally) -> None:
        """Show where the run stands."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Pace:
    """Rows a second, of late."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._marks: deque[tuple[float, int]] = deque([(now(), 0)])

    def rate(self, done: int) -> float:
        """Note that `done` rows are done by now; return rows a second over the last half minute."""
        now = self._now()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - RATE_WINDOW:  # noqa: PLR2004 - the two ends
            self._marks.popleft()
        since, before = self._marks[0]
        return (done - before) / (now - since) if now > since else 0.0


def facts(tally: Tally, rate: float) -> list[str]:
    """Return what is worth a look, in the order of its weight."""
    shown = []
    if tally.total is not None and rate > 0 and tally.total > tally.done:
        left = (tally.total - tally.done) / rate
        shown.append(f"{left:.0f} s left" if left < MINUTE else f"{duration(left)} left")
    shown += [f"{rate:.1f} rows/s", f"{tally.input_tokens + tally.output_tokens:,} tokens"]
    if tally.answered:
        cost = tally.known_cost
        shown.append("cost unknown" if cost is None else dollars(cost))
    return [*shown, count(tally.errors, "error")]


def rows(tally: Tally) -> str:
    """Return "12/40 rows"; without the whole while it is not known."""
    return count(tally.done, "row") if tally.total is None else f"{tally.done:,}/{count(tally.total, 'row')}"


class Bar:
    """A bar that stays at the bottom of a terminal."""

    period = BAR_PERIOD

    def __init__(self, console: Console, pace: Pace) -> None:
        self._pace = pace
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, tally: Tally) -> None:
        """Draw it anew."""
        # Where the line is full, the terminal's ^C breaks it, and a part of it would stay behind.
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.width = self._live.console.width - len("^C") - 1
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        words = " · ".join([rows(tally), *facts(tally, self._pace.rate(tally.done))])
        grid.add_row(ProgressBar(total=tally.total, completed=tally.done), Text(words))
        self._live.update(grid, refresh=True)

    def close(self) -> None:
        """Take it off the terminal; the summary says the rest."""
        self._live.stop()


class Lines:
    """A line now and then, for logs."""

    period = LINE_PERIOD

    def __init__(self, console: Console, pace: Pace) -> None:
        self._console = console
        self._pace = pace

    def show(self, tally: Tally) -> None:
        """Print one."""
        self._console.print(" · ".join([rows(tally), *facts(tally, self._pace.rate(tally.done))]))

    def close(self) -> None:
        """Nothing stays behind."""


def display_on(console: Console, *, answers_may_show: bool) -> Display:
    """Return the display that fits: a bar would mix with answers that show on the same terminal."""
    if console.is_interactive and not answers_may_show:
        return Bar(console, Pace())
    return Lines(console, Pace())
