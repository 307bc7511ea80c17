"""Where answers are kept: bounds, age, damage, locks, full disks, and two who share one file."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from llm_gateway.cache.entries import KeptAnswer, decoded, encoded
from llm_gateway.cache.sqlite import SqliteAnswerStore
from llm_gateway.cache.store import Bounds, CacheStoreError, Size
from llm_gateway.models import LLMToolCall, TokenUsage


class Wall:
    """The time of day, as told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def opened(path: Path | None, wall: Wall, **bounds: Any) -> SqliteAnswerStore:
    return SqliteAnswerStore(path, Bounds(**({"max_entries": 100, "max_bytes": 10**6} | bounds)), now=wall)


ANSWER = KeptAnswer(
    content="né",
    tool_calls=[LLMToolCall(id="1", name="t", arguments={"x": 2**70, "y": [None, float("inf")]})],
    finish_reason="stop",
    deployment="p/m",
    usage=TokenUsage(input_tokens=3),
    cost_usd=0.5,
)


def test_an_answer_survives_being_kept_and_damage_does_not() -> None:
    body = encoded(key(1), ANSWER)
    assert body is not None
    assert decoded(key(1), body) == ANSWER
    assert decoded(key(2), body) is None
    for place in range(0, len(body), 7):
        assert decoded(key(1), body[:place]) is None
        assert decoded(key(1), body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]) is None


@pytest.mark.parametrize(
    "changes",
    [{"content": 5}, {"usage": {"input_tokens": -1}}, {"tool_calls": [{"id": "1"}]}, {"surplus": 1}],
    ids=str,
)
def test_what_is_no_answer_any_more_is_passed_over(changes: dict[str, Any]) -> None:
    assert decoded(key(1), kept_by_another_version({})) == ANSWER
    assert decoded(key(1), kept_by_another_version(changes)) is None


def kept_by_another_version(changes: dict[str, Any]) -> bytes:
    text = json.dumps(ANSWER.model_dump() | changes).encode()
    return blake2b(text, digest_size=16, key=key(1)).digest() + text


def test_an_answer_of_the_wrong_types_is_not_kept() -> None:
    assert encoded(key(1), KeptAnswer.model_construct(**(dict(ANSWER) | {"content": 5}))) is None


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_what_was_used_least_recently_goes_first(where: str, tmp_path: Path) -> None:
    wall = Wall()
    store = opened(tmp_path / "a" / "b.sqlite" if where == "file" else None, wall, max_entries=3)
    for number in range(3):
        wall.now += 1
        await store.put(key(number), b"x" * 10)
    wall.now += 1
    assert await store.get(key(0)) == (b"x" * 10, 1_000_001.0)
    wall.now += 1
    await store.put(key(3), b"y")
    assert [await store.get(key(number)) is None for number in range(4)] == [False, True, False, False]
    assert await store.size() == Size(3, 21)
    assert await store.clear() == 3
    assert await store.size() == Size(0, 0)
    await store.aclose()
    await store.aclose()
    with pytest.raises(CacheStoreError, match="closed"):
        await store.get(key(0))


async def test_bytes_are_bounded_and_counted_when_an_answer_changes() -> None:
    wall = Wall()
    store = opened(None, wall, max_bytes=100)
    for size in (40, 60):
        wall.now += 1
        await store.put(key(0), b"x" * size)
    assert await store.size() == Size(1, 60)
    wall.now += 1
    await store.put(key(1), b"x" * 50)
    assert await store.size() == Size(1, 50)
    await store.aclose()


async def test_what_is_too_old_is_pruned_and_given_until_then() -> None:
    wall = Wall()
    store = opened(None, wall, ttl=10.0)
    await store.put(key(0), b"x")
    wall.now += 8
    await store.put(key(1), b"x")
    wall.now += 3
    assert await store.prune() == 1
    assert await store.get(key(0)) is None
    assert await store.get(key(1)) == (b"x", 1_000_008.0)
    await store.aclose()


async def test_uses_are_written_down_in_groups_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_gateway.cache.sqlite.MOST_UNTOLD", 2)
    wall, path = Wall(), tmp_path / "c.sqlite"
    store = opened(path, wall)
    for number in range(3):
        await store.put(key(number), b"x")
    wall.now += 50
    for number in range(3):
        await store.get(key(number))
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM answers WHERE used > stored").fetchone() == (2,)
    await store.aclose()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM answers WHERE used > stored").fetchone() == (3,)


async def test_two_share_one_file_and_see_what_the_other_keeps(tmp_path: Path) -> None:
    wall, path = Wall(), tmp_path / "c.sqlite"
    one, two = opened(path, wall, max_entries=20), opened(path, wall, max_entries=20)
    await asyncio.gather(*(store.put(key(n), b"%d" % n) for n, store in enumerate([one, two] * 15)))
    assert (await one.size()).entries == (await two.size()).entries == 20
    seen = [await store.get(key(n)) for n in range(30) for store in (one, two)]
    assert seen[::2] == seen[1::2]
    await one.clear()
    assert await two.get(key(29)) is None
    one.abandon()
    one.abandon()
    await two.aclose()


async def test_a_locked_file_can_be_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    store = opened(path, Wall())
    await store.put(key(0), b"x")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheStoreError, match="locked"):
            await store.put(key(1), b"x")
        assert await store.get(key(0)) is not None
        other.execute("ROLLBACK")
    await store.put(key(1), b"x")
    await store.aclose()


async def test_a_full_disk_is_told_and_takes_nothing_away(tmp_path: Path) -> None:
    store = opened(tmp_path / "c.sqlite", Wall())
    await store.put(key(0), b"x")

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    await store._read_soon(fill)
    with pytest.raises(CacheStoreError, match="its disk is full"):
        await store.put(key(1), b"x" * 100_000)
    assert await store.get(key(0)) is not None
    await store.aclose()


@pytest.mark.parametrize("trouble", ["garbage", "other database", "other version", "folder", "no folder", "cut"])
async def test_what_is_no_cache_is_told_and_left_as_it_is(trouble: str, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    if trouble in {"other version", "cut"}:
        store = opened(path, Wall())
        for number in range(50):
            await store.put(key(number), b"x" * 500)
        await store.aclose()
    match trouble:
        case "garbage":
            path.write_bytes(b"what is this?" * 1000)
        case "other database" | "other version":
            with closing(sqlite3.connect(path)) as other:
                other.execute("CREATE TABLE mine (x)" if "data" in trouble else "PRAGMA user_version = 99")
        case "folder":
            path.mkdir()
        case "no folder":
            path.parent.joinpath("file").touch()
            path = tmp_path / "file" / "c.sqlite"
        case _:
            os.truncate(path, 8192)
    before = path.read_bytes() if path.is_file() else None
    store = opened(path, Wall())
    for _ in range(2):
        with pytest.raises(CacheStoreError):
            await store.put(key(99), b"x" * 9000)
    await store.aclose()
    assert (path.read_bytes() if path.is_file() else None) == before


async def test_a_file_that_was_mended_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"what is this?" * 1000)
    store = opened(path, Wall())
    with pytest.raises(CacheStoreError, match="not a database"):
        await store.get(key(0))
    path.unlink()
    await store.put(key(0), b"x")
    assert await store.get(key(0)) is not None
    assert path.stat().st_mode & 0o777 == 0o600
    await store.aclose()


async def test_what_waits_when_the_store_closes_is_refused_and_who_left_is_forgotten() -> None:
    store = opened(None, Wall())
    await store.put(key(0), b"x")
    looking = [asyncio.ensure_future(store.get(key(0))) for _ in range(2)]
    await asyncio.sleep(0)
    looking[0].cancel()
    await store.aclose()
    outcomes = await asyncio.gather(*looking, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert isinstance(outcomes[1], CacheStoreError)
