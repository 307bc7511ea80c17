"""Reading a body that comes in pieces: lines, and the events or JSON records that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Framing(Protocol):
    """Cuts a body into records. `feed` may be called with pieces of any size."""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Return the records that this piece completes."""

    def rest(self) -> Iterator[bytes]:
        """Return what stood at the end without the mark of an end; the body is over."""


class Lines:
    """Cuts bytes into lines that end in LF, CRLF or CR; keeps what is not a whole line yet."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that this piece completes, without their ends."""
        if b"\n" not in piece and b"\r" not in piece and not self._waits():
            self._parts.append(piece)  # joined once the line is whole: a long one costs no more than its length
            return []
        text = b"".join((*self._parts, piece))
        # A CR that comes last may be half of a CRLF.
        end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, len(text) - 1)) + 1
        self._parts = [text[end:]] if end < len(text) else []
        return text[:end].splitlines()

    def _waits(self) -> bool:
        return bool(self._parts) and self._parts[-1].endswith(b"\r")

    def rest(self) -> bytes:
        """Return the line that nothing ended."""
        text = b"".join(self._parts)
        self._parts = []
        return text.rstrip(b"\r")


class JsonLines:
    """One record a line (NDJSON); empty lines are none."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Return the records that this piece completes."""
        return (line for line in self._lines.feed(piece) if line.strip())

    def rest(self) -> Iterator[bytes]:
        """Return the last record where no line feed ends it."""
        last = self._lines.rest()
        return iter([last] if last.strip() else [])


class Events:
    """The data of server-sent events (WHATWG HTML, 9.2); their names are told again in the data of every API here."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Return the data of the events that this piece completes."""
        for line in self._lines.feed(piece):
            if line:
                self._take(line)
            elif self._data:
                yield self._flush()

    def rest(self) -> Iterator[bytes]:
        """Return the data of an event that no empty line ends; the standard drops it, some servers mean it."""
        self._take(self._lines.rest())
        if self._data:
            yield self._flush()

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))

    def _flush(self) -> bytes:
        data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
        self._data.clear()
        return data
