"""Where the lines of results go: whole, in the order they come, and never holding up the event loop.

An output that is kept is part of a job: what stands in it beyond the place that the job's state knows is written anew
when the job goes on, so that no line is torn or doubled.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from llm_gateway.cli.background import in_background
from llm_gateway.cli.lines import is_same_file
from llm_gateway.errors import GatewayError

STANDARD_OUTPUT = "-"


class Output:
    """A file, or standard output."""

    def __init__(self, path: str, *, force: bool, source: os.stat_result) -> None:
        """Open `path`. Raises GatewayError, one sentence, for what cannot or must not be written.

        `source` is the status of the input, which is never written over, not even by `force`.
        """
        self.name = "standard output" if path == STANDARD_OUTPUT else path
        self._pending: list[bytes] = []
        self._turn = asyncio.Lock()
        self._broken: OSError | None = None
        self._file = 1
        if path != STANDARD_OUTPUT:
            check_output(Path(path), force=force, source=source)
            self._file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        # Also what goes into a pipe may end on the terminal, through `head` or `tee`.
        self.may_show = os.isatty(self._file) or stat.S_ISFIFO(os.fstat(self._file).st_mode)

    async def write(self, line: bytes) -> None:
        """Return when `line` has been handed to the system. Raises OSError: this or an earlier line was not."""
        self._pending.append(line)
        async with self._turn:
            # Whoever has the turn writes for all who wait.
            chunk = b"".join(self._pending)
            self._pending.clear()
            if chunk and self._broken is None:
                try:
                    await in_background(lambda: _write(self._file, chunk))
                except OSError as error:
                    self._broken = error
        if self._broken is not None:
            raise self._broken

    def close(self) -> None:
        """Close a file that was opened here."""
        if self._file != 1:
            os.close(self._file)


class KeptOutput:
    """A file that another process may go on with, from a place that it was told."""

    may_show = False

    def __init__(self, path: Path, *, place: int) -> None:
        """Open `path` and cut off what stands behind `place`, in bytes. Raises GatewayError."""
        self.name = str(path)
        self._file = _open(str(path), os.O_WRONLY | os.O_CREAT)
        self.place = place
        os.ftruncate(self._file, place)

    async def write(self, lines: bytes) -> None:
        """Return when `lines` have been handed to the system. Raises OSError, and then no part of them is kept."""
        try:
            await in_background(lambda: _write(self._file, lines, self.place))
        except OSError:
            os.ftruncate(self._file, self.place)
            raise
        self.place += len(lines)

    async def sync(self) -> None:
        """Return when all lines are on the disk. Raises OSError."""
        await in_background(lambda: os.fsync(self._file))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def size_of(path: Path) -> int:
    """Return how many bytes a file holds, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_output(path: Path, *, force: bool, source: os.stat_result) -> None:
    """Raise GatewayError, one sentence, for what must not be written: the input, a folder, a file without `force`."""
    if is_same_file(source, path):
        raise GatewayError(f"The output {path} is the input; give another file.")
    if not path.parent.is_dir():
        raise GatewayError(f"The output {path} cannot be written: there is no folder {path.parent}; make it first.")
    try:
        status = path.stat()
    except OSError:
        return  # opening it finds the words
    if stat.S_ISDIR(status.st_mode):
        raise GatewayError(f"The output {path} is a directory; give a file.")
    if stat.S_ISREG(status.st_mode) and status.st_size and not force:
        raise GatewayError(f"The output {path} exists; give another file, or --force to write over it.")


def _open(path: str, how: int) -> int:
    try:
        return os.open(path, how | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise GatewayError(f"The output {path} cannot be written: {error.strerror}.") from None


def _write(file: int, chunk: bytes, place: int | None = None) -> None:
    """Write all of `chunk`, at `place` where one is given."""
    rest = memoryview(chunk)
    while rest:
        done = os.write(file, rest) if place is None else os.pwrite(file, rest, place)
        place = None if place is None else place + done
        rest = rest[done:]
