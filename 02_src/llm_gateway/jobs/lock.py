"""One process at a time works on a job; the lock of one that was killed is gone with it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from llm_gateway.errors import JobError


class JobLock:
    """An exclusive lock beside a job's state."""

    def __init__(self, state: Path) -> None:
        """Take it. Raises JobError if another process has it."""
        self._path = state.with_name(f"{state.name}.lock")
        while True:
            self._file = self._open()
            self._take(state)
            if self._is_there():
                break
            os.close(self._file)  # whoever had it has just taken it away
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let others work on the job. Safe to call twice."""
        if self._file >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JobError(f"The lock {self._path} cannot be made: {error.strerror}.") from None

    def _take(self, state: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise JobError(f"Another process (id {holder}) works on the job {state}; wait for it or stop it.") from None

    def _is_there(self) -> bool:
        """Whether the file that is locked is still the one that others would open."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False


def is_locked(state: Path) -> bool:
    """Whether a process works on a job at this moment."""
    try:
        file = os.open(state.with_name(f"{state.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(file)
