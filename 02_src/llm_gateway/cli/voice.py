"""What a run says of single rows and of its state, while it goes on."""

from __future__ import annotations

from rich.console import Console

from llm_gateway.errors import JobStoreBusyError
from llm_gateway.jobs.encoding import from_json
from llm_gateway.jobs.records import Lease, NewRow

MOST_COMPLAINTS = 10  # malformed lines that are told one by one


class Voice:
    """Speaks on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._refused = 0

    def refused(self, row: NewRow) -> None:
        """Tell of a row that cannot be asked, if there were not too many of them."""
        self._refused += 1
        if self._refused <= MOST_COMPLAINTS and row.failure is not None:
            self._console.print(f"line {row.number}: {from_json(row.failure.body)['message']}", style="yellow")
        elif self._refused == MOST_COMPLAINTS + 1:
            self._console.print("More lines are malformed; the output names them all.", style="yellow")

    def bug(self, lease: Lease, trace: str) -> None:
        """Tell of a bug that one row met."""
        self._console.print(f"line {lease.number} met a bug:\n{trace}")

    def complain(self, sentence: str) -> None:
        """Tell of something that has to be mended."""
        self._console.print(sentence, style="yellow")

    def paused(self, error: JobStoreBusyError) -> None:
        """Tell that nothing is sent for the moment."""
        self.complain(f"Paused: {error} Nothing is sent until it can; answers under way are kept in memory.")

    def resumed(self) -> None:
        """Tell that it goes on."""
        self._console.print("The job's state can be written again; going on.")
