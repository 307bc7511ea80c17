"""The journal's files: their names, when the next one begins, and how long they are kept."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from llm_gateway.config import LogSettings

FILE_NAME = re.compile(r"(\d{4}-\d\d-\d\d)-[\w-]+-\d+(?:-\d+)?(?:\.\d+)?\.jsonl", re.ASCII)
FIRST_BYTES = b'{"ts":"'
LONGEST_HOST = 40


@dataclass(frozen=True, slots=True)
class JournalFile:
    """A file that a journal wrote."""

    path: Path
    day: date
    size: int
    changed: float  # seconds since the epoch


def journal_files(folder: Path) -> list[JournalFile]:
    """Return the journal files in `folder`, the oldest first. Raises OSError if the folder cannot be read.

    A file is a journal's if its name, its kind and its first bytes are: nothing else in the folder is ever counted,
    read or removed. An empty one is of a process that ended before its first line.
    """
    found = [file for path in folder.iterdir() if (file := _recognised(path)) is not None]
    return sorted(found, key=lambda file: (file.day, file.changed, file.path.name))


def _recognised(path: Path) -> JournalFile | None:
    match = FILE_NAME.fullmatch(path.name)
    try:
        if match is None or path.is_symlink() or not path.is_file():
            return None
        status = path.stat()
        with path.open("rb") as file:
            if file.read(len(FIRST_BYTES)) not in {FIRST_BYTES, b""}:
                return None
        return JournalFile(path, date.fromisoformat(match[1]), status.st_size, status.st_mtime)
    except (OSError, ValueError):  # another process removed it just now; or a day such as the 99th
        return None


class JournalFiles:
    """Appends lines to a file of this process alone: `<day>-<host>-<process id>.jsonl`.

    A name that is taken, by another journal of this process or by a process of the same id before it, gets `-2`,
    `-3`, …; what would grow beyond `max_file_bytes` goes on in `.1`, `.2`, … before the suffix. Old files are removed
    whenever a file is opened. Not for two threads at once.
    """

    def __init__(
        self, folder: Path, settings: LogSettings, *, write: Callable[[int, memoryview], int] = os.write
    ) -> None:
        self.path: Path | None = None  # the file written last
        self._folder = folder
        self._settings = settings
        self._write = write
        self._descriptor: int | None = None
        self._day = date.min
        self._twin = 1
        self._part = 0  # of the next file of this day
        self._size = 0

    def append(self, day: date, lines: list[bytes]) -> None:
        """Write `lines`, all of `day`, and take them out of the list.

        Raises OSError; then what is still in the list is not in the file, not even in part.
        """
        while lines:
            descriptor = self._file_for(day, len(lines[0]))
            fitting, size = 1, self._size + len(lines[0])
            while fitting < len(lines) and size + len(lines[fitting]) <= self._settings.max_file_bytes:
                size += len(lines[fitting])
                fitting += 1
            self._put(descriptor, b"".join(lines[:fitting]))
            del lines[:fitting]

    def close(self) -> None:
        """Close the file. Safe to call twice; a later line opens the next part."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def _file_for(self, day: date, size: int) -> int:
        """Return the open file, or the next one if it is full, its day is over, or somebody removed it."""
        if self._descriptor is not None:
            full = self._size > 0 and self._size + size > self._settings.max_file_bytes
            # Later days only: a clock that is set back over midnight must not open a file for each line.
            if not full and day <= self._day and _exists(self._descriptor):
                return self._descriptor
            self.close()
        if day > self._day:
            self._day, self._twin, self._part = day, 1, 0
        return self._open()

    def _open(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Text that people wrote to a model is for the owner's eyes; without it the umask decides, as for any log.
        mode = 0o600 if self._settings.text else 0o666
        stem = f"{self._day.isoformat()}-{_host()}-{os.getpid()}"
        part = f".{self._part}" if self._part else ""
        while True:
            path = self._folder / f"{stem}{f'-{self._twin}' if self._twin > 1 else ''}{part}.jsonl"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode)
            except FileExistsError:
                self._twin += 1
            else:
                break
        self._descriptor, self.path, self._size = descriptor, path, 0
        self._part += 1
        self._remove_old()
        return descriptor

    def _put(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._write(descriptor, rest) :]
        except OSError:
            try:
                os.ftruncate(descriptor, self._size)  # take back the half line that a full disk left
            except OSError:
                self.close()  # it keeps its torn line; the next try opens another
            raise
        self._size += len(data)

    def _remove_old(self) -> None:
        """Keep `keep_days` and `keep_bytes`; never touch the file in use."""
        first = self._day - timedelta(days=self._settings.keep_days)
        with suppress(OSError):
            files = journal_files(self._folder)
            total = sum(file.size for file in files)
            for file in files:
                if file.path == self.path or (file.day >= first and total <= self._settings.keep_bytes):
                    continue
                with suppress(OSError):  # it is somebody else's now, or gone
                    file.path.unlink()
                    total -= file.size


def _exists(descriptor: int) -> bool:
    """Whether the open file still has a name to be found by."""
    try:
        return os.fstat(descriptor).st_nlink > 0
    except OSError:  # a network folder that was taken away
        return False


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname(), flags=re.ASCII)[:LONGEST_HOST] or "host"
