"""However a body is cut into pieces on its way, the same records come out of it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.clients.lean.records import Events, Framing, JsonLines, Lines

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXT = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12).map(str.encode)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({min(cut, len(body)) for cut in cuts}), len(body)]
    return [body[start:end] for start, end in pairwise(places) if start < end]


def records(framing: Framing, parts: list[bytes]) -> list[bytes]:
    found = [record for part in parts for record in framing.feed(part)]
    return [*found, *framing.rest()]


@given(st.lists(st.tuples(TEXT, ENDS), max_size=20), TEXT, CUTS)
def test_lines_are_the_same_however_the_body_is_cut(
    lines: list[tuple[bytes, bytes]], last: bytes, cuts: list[int]
) -> None:
    body = b"".join(text + end for text, end in lines) + last
    framing = Lines()
    found = [line for part in pieces(body, cuts) for line in framing.feed(part)]
    rest = framing.rest()
    assert [*found, *([rest] if rest else [])] == body.splitlines()[: len(found) + bool(rest)]
    assert b"".join(found) + rest == body.replace(b"\r", b"").replace(b"\n", b"")


@given(st.lists(TEXT.filter(bytes.strip), max_size=10), ENDS, CUTS, st.booleans())
def test_json_lines_are_the_same_however_the_body_is_cut(
    lines: list[bytes],
    end: bytes,
    cuts: list[int],
    ended: bool,  # noqa: FBT001 - drawn
) -> None:
    body = (end * 2).join(lines) + (end if ended else b"")
    assert records(JsonLines(), pieces(body, cuts)) == lines


@given(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=8), ENDS, CUTS, st.booleans())
def test_events_are_the_same_however_the_body_is_cut(
    events: list[list[bytes]],
    end: bytes,
    cuts: list[int],
    ended: bool,  # noqa: FBT001 - drawn
) -> None:
    blocks = [
        b": comment" + end + b"event: x" + end + end.join(b"data: " + line for line in event) + end for event in events
    ]
    body = end.join(blocks) + (end if ended else b"")
    assert records(Events(), pieces(body, cuts)) == [b"\n".join(event) for event in events]
