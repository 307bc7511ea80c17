"""Lines in, lines out: bounded, whole, and refused before anything is sent where that can be known."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_gateway.cli import lines as lines_module
from llm_gateway.cli.background import in_background
from llm_gateway.cli.lines import Input, LineSplitter
from llm_gateway.cli.output import Output
from llm_gateway.errors import GatewayError


async def read(path: Path) -> list[tuple[int, bytes | None]]:
    source = Input(str(path))
    try:
        return [each async for each in source.rows()]
    finally:
        source.close()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_however_the_chunks_fall(size: int) -> None:
    text = b"one\n\nthree\r\nfour"
    splitter = LineSplitter()
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    found = [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.end())
    assert found == [b"one", b"", b"three\r", b"four"]


def test_a_line_that_is_too_long_is_dropped_alone() -> None:
    splitter = LineSplitter(longest=3)
    chunks = (b"abc\nab", b"cd\nab\nabcd", b"efg")
    assert [line for chunk in chunks for line in splitter.feed(chunk)] == [b"abc", None, b"ab"]
    assert list(splitter.end()) == [None]


async def test_lines_are_numbered_and_the_mark_of_utf8_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\nb")
    assert await read(path) == [(1, b"a\r"), (2, b""), (3, b"b")]


async def test_a_file_that_takes_many_reads_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "CHUNK", 16)
    path = tmp_path / "in"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(100)))
    assert await read(path) == [(number + 1, b"line %d" % number) for number in range(100)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}".encode("utf-16"), "is UTF-16; convert it first"),
        ("{}".encode("utf-16-be").replace(b"\0{", b"\xfe\xff\0{"), "is UTF-16"),
        (b"\x28\xb5\x2f\xfd", "is compressed; unpack it on the way: zstd"),
        (b"PK\x03\x04rest", "is a ZIP archive"),
        (b"{}\n\0\1\2", "is binary"),
    ],
)
def test_what_is_no_text_is_refused_when_it_is_opened(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(content)
    with pytest.raises(GatewayError, match=reason):
        Input(str(path))


async def test_what_is_no_text_is_refused_when_it_comes_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = in_background(lambda: path.write_bytes(b"\x28\xb5\x2f\xfd"))
    source = await in_background(lambda: Input(str(path)))
    with pytest.raises(GatewayError, match="is compressed"):
        await anext(source.rows())
    assert source.survey() is None
    await writer
    source.close()


def test_a_directory_and_a_missing_file_are_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match=f"^The input {tmp_path} is a directory; give a file of JSON lines.$"):
        Input(str(tmp_path))
    with pytest.raises(GatewayError, match=r"none cannot be read: No such file or directory\.$"):
        Input(str(tmp_path / "none"))


async def test_a_read_that_fails_on_the_way_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\n")
    source = Input(str(path))

    def broken(_file: int, _size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(GatewayError, match=r"cannot be read: Input/output error\."):
        await anext(source.rows())
    source.close()


@pytest.mark.parametrize(("content", "rows"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"a\n" * 99, 99)])
def test_the_lines_of_a_file_are_counted_ahead(tmp_path: Path, content: bytes, rows: int) -> None:
    path = tmp_path / "in"
    path.write_bytes(content)
    for text in (content, gzip.compress(content, mtime=0)):
        path.write_bytes(text)
        source = Input(str(path))
        survey = source.survey()
        assert survey is not None
        assert survey.rows == rows
        source.close()


async def test_a_compressed_file_is_unpacked_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "CHUNK", 7)
    path = tmp_path / "in"
    members = (gzip.compress(text, mtime=0) for text in (b"\xef\xbb\xbfone\ntw", b"o\nthree"))
    path.write_bytes(b"".join(members))
    assert await read(path) == [(1, b"one"), (2, b"two"), (3, b"three")]


@pytest.mark.parametrize(
    ("damage", "reason"), [(lambda text: text[:-9], "breaks off"), (lambda text: text[:12] + b"!" * 20, "unpacked")]
)
async def test_damaged_gzip_data_are_one_sentence(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "in"
    path.write_bytes(damage(gzip.compress(bytes(range(97, 123)) * 20, mtime=0)))
    with pytest.raises(GatewayError, match=reason):
        await read(path)


def test_what_changes_a_file_changes_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "in"
    digests = set()
    for content in (b"a\n", b"a\nb\n", b"A\n"):
        path.write_bytes(content)
        source = Input(str(path))
        survey = source.survey()
        assert survey is not None
        digests.add(survey.digest)
        source.close()
    assert len(digests) == 3


# --- output -----------------------------------------------------------------------------------------------------

NOWHERE = Path("/dev/null").stat()  # the status of an input that is no file


async def test_lines_of_many_writers_come_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    output = Output(str(path), force=False, source=NOWHERE)
    await asyncio.gather(*(output.write(b"%d\n" % number) for number in range(200)))
    output.close()
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(200))


async def test_a_write_that_fails_fails_for_all_who_write() -> None:
    output = Output("/dev/full", force=False, source=NOWHERE)
    outcomes = await asyncio.gather(*(output.write(b"x\n") for _ in range(3)), return_exceptions=True)
    assert [getattr(each, "strerror", None) for each in outcomes] == ["No space left on device"] * 3
    with pytest.raises(OSError, match="No space left"):
        await output.write(b"later\n")
    output.close()


async def test_an_output_that_holds_something_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"precious")
    with pytest.raises(GatewayError, match="exists; give another file, or --force to write over it"):
        Output(str(path), force=False, source=NOWHERE)
    assert path.read_bytes() == b"precious"
    Output(str(path), force=True, source=NOWHERE).close()
    assert path.read_bytes() == b""
    Output(str(path), force=False, source=NOWHERE).close()  # nothing in it that could be lost


async def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_bytes(b"{}")
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(GatewayError, match="is the input; give another file"):
            Output(str(name), force=True, source=path.stat())
    assert path.read_bytes() == b"{}"


async def test_places_that_cannot_be_written_are_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="is a directory; give a file"):
        Output(str(tmp_path), force=False, source=NOWHERE)
    with pytest.raises(GatewayError, match=r"there is no folder .*/none; make it first\."):
        Output(str(tmp_path / "none" / "out"), force=False, source=NOWHERE)
    with pytest.raises(GatewayError, match=r"cannot be written: File name too long\."):
        Output(str(tmp_path / ("x" * 1000)), force=False, source=NOWHERE)


# --- threads ----------------------------------------------------------------------------------------------------


async def test_a_call_in_the_background_tells_how_it_ended() -> None:
    assert await in_background(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_background(lambda: 1 // 0)


async def test_a_call_in_the_background_that_nobody_waits_for_disturbs_nobody() -> None:
    read_end, write_end = os.pipe()
    future = in_background(lambda: os.read(read_end, 1))
    future.cancel()
    os.write(write_end, b"x")
    assert await in_background(lambda: 5) == 5
    os.close(write_end)
    os.close(read_end)
