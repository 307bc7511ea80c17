"""The lines of an input, read as they are needed, in bounded memory; compressed ones are unpacked on the way."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import AsyncIterator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from llm_gateway.cli.background import in_background
from llm_gateway.errors import GatewayError

STANDARD_INPUT = "-"
CHUNK = 64 * 1024
LONGEST_LINE = 32 * 1024 * 1024  # bytes; a row with some images fits, a file with no line ends does not fill the memory
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
NOT_LINES = {
    b"\xff\xfe": "is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it on the way: zstd -dc FILE | llm-gateway run -",
    b"PK\x03\x04": "is a ZIP archive; unpack it first",
}


class LineSplitter:
    """Cuts chunks into lines. A line longer than `longest` is dropped while it passes; it comes out as None."""

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Take a chunk and yield the lines that it ends, without their ends."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if others:
            yield self._take()
            rest = others.pop()
            for line in others:
                yield line if len(line) <= self._longest else None
            self._keep(rest)

    def end(self) -> Iterator[bytes | None]:
        """Yield the last line if it had no end."""
        if self._length:
            yield self._take()

    def _keep(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > self._longest:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> bytes | None:
        line = None if self._length > self._longest else b"".join(self._parts)
        self._parts.clear()
        self._length = 0
        return line


class Gunzip:
    """Unpacks chunks of a gzip stream, which may have several members."""

    def __init__(self, name: str) -> None:
        """Take the input's name, for sentences."""
        self._name = name
        self._member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` adds. Raises GatewayError."""
        parts = []
        try:
            while chunk:
                if self._member.eof:
                    self._member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
                parts.append(self._member.decompress(chunk))
                chunk = self._member.unused_data.lstrip(b"\0")  # some tools pad members
        except zlib.error:
            raise GatewayError(f"The input {self._name} is damaged: its gzip data cannot be unpacked.") from None
        return b"".join(parts)

    def end(self) -> None:
        """Raise GatewayError if more should have come."""
        if not self._member.eof:
            raise GatewayError(f"The input {self._name} is damaged: its gzip data breaks off.")


class Survey(NamedTuple):
    """What is known of an input before it is read."""

    digest: str  # of its bytes
    rows: int  # lines, blank ones included


class Input:
    """A file of lines, or standard input. Raises GatewayError, one sentence, for what cannot be read."""

    def __init__(self, path: str) -> None:
        """Open `path`; a regular file is looked into at once, so that a wrong one fails before anything is sent."""
        self.name = "standard input" if path == STANDARD_INPUT else path
        try:
            self._file = 0 if path == STANDARD_INPUT else os.open(path, os.O_RDONLY)
            self.status = os.fstat(self._file)
        except OSError as error:
            raise GatewayError(f"The input {path} cannot be read: {error.strerror}.") from None
        if stat.S_ISDIR(self.status.st_mode):
            raise GatewayError(f"The input {path} is a directory; give a file of JSON lines.")
        self._is_regular = stat.S_ISREG(self.status.st_mode)
        self._start = os.lseek(self._file, 0, os.SEEK_CUR) if self._is_regular else 0
        if self._is_regular:
            self._check(os.pread(self._file, CHUNK, self._start))

    @property
    def is_kept(self) -> bool:
        """Whether it can be read a second time."""
        return self._is_regular

    async def rows(self, after: int = 0) -> AsyncIterator[tuple[int, bytes | None]]:
        """Yield (number, line) from 1, those with a number above `after`; None for a line longer than LONGEST_LINE."""
        splitter = LineSplitter()
        number = 0
        async for chunk in self._text():
            for line in splitter.feed(chunk):
                number += 1
                if number > after:
                    yield number, line
        for line in splitter.end():
            number += 1
            if number > after:
                yield number, line

    def survey(self) -> Survey | None:
        """Read a regular file through, before its lines are; None for what can be read but once."""
        if not self._is_regular:
            return None
        digest, ends, last, at, unpack = blake2b(digest_size=16), 0, b"\n", self._start, None
        while chunk := os.pread(self._file, 1024 * 1024, at):
            if at == self._start and chunk.startswith(GZIP):
                unpack = Gunzip(self.name)
            at += len(chunk)
            digest.update(chunk)
            text = unpack.feed(chunk) if unpack is not None else chunk
            ends += text.count(b"\n")
            last = text[-1:] or last
        return Survey(digest.hexdigest(), ends + (last != b"\n"))

    def close(self) -> None:
        """Close a file that was opened here."""
        if self._file:
            os.close(self._file)

    async def _text(self) -> AsyncIterator[bytes]:
        """Yield the input in chunks, unpacked if it is compressed."""
        chunk = await in_background(self._read)
        unpack = Gunzip(self.name) if chunk.startswith(GZIP) else None
        is_first = True
        while chunk:
            text = unpack.feed(chunk) if unpack is not None else chunk
            if text and is_first:
                self._check(text)
                text = text.removeprefix(BOM)
                is_first = False
            if text:
                yield text
            chunk = await in_background(self._read)
        if unpack is not None:
            unpack.end()

    def _read(self) -> bytes:
        try:
            return os.read(self._file, CHUNK)
        except OSError as error:
            raise GatewayError(f"The input {self.name} cannot be read: {error.strerror}.") from None

    def _check(self, start: bytes) -> None:
        if start.startswith(GZIP):
            return  # looked into once it is unpacked
        for magic, what in NOT_LINES.items():
            if start.startswith(magic):
                raise GatewayError(f"The input {self.name} {what}.")
        if b"\0" in start:
            raise GatewayError(f"The input {self.name} is binary; give a file of JSON lines in UTF-8.")


def is_same_file(one: os.stat_result, path: Path) -> bool:
    """Whether `path` is the regular file whose status is `one`."""
    try:
        return stat.S_ISREG(one.st_mode) and os.path.samestat(one, path.stat())
    except OSError:
        return False
