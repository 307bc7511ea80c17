"""From a job's results to its output: every line once, whole, and from the right place after a crash."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llm_gateway.cli.output import KeptOutput, Output
from llm_gateway.cli.results import line_of
from llm_gateway.jobs.export import export_table
from llm_gateway.jobs.opening import Place
from llm_gateway.jobs.records import StoredResult
from llm_gateway.jobs.views import viewing

SYNC_PERIOD = 1.0  # seconds between two notes of how far the output is written
FULL_PAUSE = 2.0  # seconds before an output is tried again whose disk is full
FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer(Protocol):
    """Takes the results of a job, in the order of their recording."""

    name: str
    may_show: bool  # on a terminal, sooner or later

    async def write(self, results: Sequence[StoredResult], /) -> None:
        """Take some. Raises OSError."""

    async def end(self) -> None:
        """Finish the output. Raises OSError, GatewayError."""

    def close(self) -> None:
        """Close it."""


class Notes(Protocol):
    """Where a writer notes how far it is: a job, or its store."""

    async def note(self, facts: Mapping[str, Any], /) -> None:
        """Note JSON values, each in the place of an earlier one of its name."""


class NoWriter:
    """Leaves the results of a job in a database where they are."""

    may_show = False
    name = "none: `llm-gateway jobs export` writes one"

    async def write(self, results: Sequence[StoredResult], /) -> None:
        """Leave them."""

    async def end(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open."""


class StreamWriter:
    """Lines into a pipe, a terminal, or a file that no state knows."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.name = output.name
        self.may_show = output.may_show

    async def write(self, results: Sequence[StoredResult], /) -> None:
        """Hand their lines to the system."""
        await self._output.write(b"".join(map(line_of, results)))

    async def end(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Close the file."""
        self._output.close()


class KeptWriter:
    """Lines into a file, and into the job's state how far they reach.

    What the state knows to be written is on the disk. What is written beyond that is cut off when the job goes on.
    """

    may_show = False

    def __init__(
        self, output: KeptOutput, notes: Notes, *, fact: str = "output", complain: Callable[[str], None]
    ) -> None:
        self._output = output
        self._fact = fact  # under which the job notes how far the output is written
        self._notes = notes
        self._complain = complain
        self.name = output.name
        self._last: int | None = None  # id of the last result that is written; None: none in this run
        self._noted_at = time.monotonic()

    async def write(self, results: Sequence[StoredResult], /) -> None:
        """Write their lines; while the disk is full, say so once and try again."""
        lines = b"".join(map(line_of, results))
        complaint: str | None = f"The output {self.name} cannot grow: its disk is full. Waiting for room."
        if self._last is None:
            before = {"id": results[0].id - 1, "place": self._output.place, "clean": False}
            await self._notes.note({self._fact: before})
        while True:
            try:
                await self._output.write(lines)
                break
            except OSError as error:
                if error.errno not in FULL:
                    raise
            if complaint is not None:
                self._complain(complaint)
                complaint = None
            await asyncio.sleep(FULL_PAUSE)
        self._last = results[-1].id
        if time.monotonic() - self._noted_at >= SYNC_PERIOD:
            await self._note(clean=False)

    async def end(self) -> None:
        """Note that nobody has to cut anything off."""
        if self._last is not None:
            await self._note(clean=True)

    def close(self) -> None:
        """Close the file."""
        self._output.close()

    async def _note(self, *, clean: bool) -> None:
        await self._output.sync()
        await self._notes.note({self._fact: {"id": self._last, "place": self._output.place, "clean": clean}})
        self._noted_at = time.monotonic()


class TableWriter:
    """A CSV or Parquet file, written when the run ends; until then the job's state holds the results."""

    may_show = False

    def __init__(self, path: Path, state: Place, *, source: Path | None, schema: Mapping[str, Any] | None) -> None:
        self.name = str(path)
        self._path = path
        self._state = state
        self._source = source
        self._schema = schema

    async def write(self, results: Sequence[StoredResult], /) -> None:
        """Leave them where they are."""

    async def end(self) -> None:
        """Write all rows, in the order of the input."""
        await asyncio.to_thread(self._export)

    def close(self) -> None:
        """Nothing stays open."""

    def _export(self) -> None:
        with viewing(self._state) as view:
            export_table(view, self._path, source=self._source, schema=self._schema)
