"""Where the lines of results go: whole, in the order they come, and never holding up the event loop."""

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
            _check(Path(path), force=force, source=source)
            self._file = _open(path)
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


def _check(path: Path, *, force: bool, source: os.stat_result) -> None:
    if is_same_file(source, path):
        raise GatewayError(f"The output {path} is the input; give another file.")
    try:
        status = path.stat()
    except OSError:
        return  # opening it finds the words
    if stat.S_ISDIR(status.st_mode):
        raise GatewayError(f"The output {path} is a directory; give a file.")
    if stat.S_ISREG(status.st_mode) and status.st_size and not force:
        raise GatewayError(f"The output {path} exists; give another file, or --force to write over it.")


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except FileNotFoundError:
        folder = Path(path).parent
        raise GatewayError(
            f"The output {path} cannot be written: there is no folder {folder}; make it first."
        ) from None
    except OSError as error:
        raise GatewayError(f"The output {path} cannot be written: {error.strerror}.") from None


def _write(file: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]
