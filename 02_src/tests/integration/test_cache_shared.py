"""The cache in a real Redis, and in one file of two processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import llm_gateway
from fakes.provider import FakeProvider, ask, gateway_over
from fakes.redis_server import RedisServer
from llm_gateway import ConfigurationError, LLMGateway
from llm_gateway.cache.answers import Answers, CacheFigures
from llm_gateway.cache.entries import KeptAnswer
from llm_gateway.cache.redis import AT_ONCE, RedisAnswerStore
from llm_gateway.cache.sqlite import SqliteAnswerStore
from llm_gateway.cache.store import Bounds, CacheStoreError, Size

SOURCES = Path(llm_gateway.__file__).parent.parent
CANARY = "sk-canary-redis-0123456789"
ANSWER = KeptAnswer(content="kept", tool_calls=None, finish_reason="stop", deployment="p/m", usage=None, cost_usd=0.5)


class Wall:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def until(happened: Callable[[], object]) -> None:
    def wait() -> None:
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    await asyncio.to_thread(wait)


@asynccontextmanager
async def opened(
    server: RedisServer, prefix: str, now: Callable[[], float], **bounds: Any
) -> AsyncIterator[RedisAnswerStore]:
    given = {"max_entries": 100, "max_bytes": 10**6} | bounds
    store = RedisAnswerStore(server.url, prefix, Bounds(**given), now=now)
    try:
        yield store
        await store.clear()
    finally:
        store.abandon()
        await store.aclose()


async def test_redis_keeps_within_the_bounds_what_was_used_last(redis_server: RedisServer) -> None:
    wall = Wall()
    async with opened(redis_server, "lru", wall, max_entries=3, max_bytes=1000) as store:
        for number in range(3):
            wall.now += 1
            await store.put(key(number), b"\0\xff%d" % number)
        wall.now += 1
        assert await store.get(key(0)) == (b"\0\xff0", 1_000_001.0)
        await store.put(key(3), b"x" * 10)
        assert [await store.get(key(number)) is None for number in range(4)] == [False, True, False, False]
        assert (await store.size()).entries == 3
        wall.now += 1
        await store.put(key(4), b"x" * 985)
        assert await store.size() == Size(1, 993)
        await store.put(key(4), b"x")
        assert await store.size() == Size(1, 9)
        assert await store.clear() == 1
        assert await store.size() == Size(0, 0)


async def test_what_the_server_let_go_is_swept_up(redis_server: RedisServer) -> None:
    wall = Wall()
    async with opened(redis_server, "old", wall, max_entries=10**6, ttl=0.02) as store:
        for number in range(3):
            await store.put(key(number), b"x")
        with redis_server.client() as client:
            await until(lambda: not client.keys("{old:cache}:\0*"))
        assert await store.get(key(0)) is None
        assert (await store.size()).entries == 2
        assert await store.prune() == 2
        await asyncio.gather(*(store.put(key(number), b"x") for number in range(20)))
    with redis_server.client() as client:
        assert [name for name in client.keys("{old:cache}:*") if not name.endswith(":bytes")] == []


async def test_a_long_sweep_goes_in_steps(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AT_ONCE == 1000
    async with opened(redis_server, "many", Wall(), max_entries=10**6) as store:
        for first in range(0, 1100, 50):
            await asyncio.gather(*(store.put(key(first + number), b"x") for number in range(50)))
        assert await store.prune() == 0
        monkeypatch.setattr(store, "_bounds", Bounds(max_entries=100, max_bytes=10**6))
        assert await store.prune() == 1000


async def test_gateways_share_their_answers_through_redis_and_prefixes_tell_them_apart(
    redis_server: RedisServer,
) -> None:
    provider = FakeProvider(latency=lambda _: 0.0)

    def sharing(prefix: str) -> LLMGateway:
        return gateway_over(provider, cache={"redis_url": redis_server.url}, limits={"prefix": prefix})

    for prefix in ("one", "one", "two"):
        async with sharing(prefix) as gateway:
            await gateway.request(ask(prefix))
    assert provider.sent == ["one", "two"]


async def test_a_redis_that_is_gone_costs_one_warning_and_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    provider = FakeProvider(latency=lambda _: 0.0)
    url = server.url.replace("redis://", f"redis://user:{CANARY}@")
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "user", "on", f">{CANARY}", "~*", "+@all")
    async with gateway_over(provider, cache={"redis_url": url}) as gateway:
        await gateway.request(ask("a"))
        await until(lambda: gateway.get_stats()["cache"]["kept"] > 0)
        assert (await gateway.request(ask("b"))).receipt.cached  # type: ignore[union-attr]
        server.kill()
        for name in "cde":
            assert (await gateway.request(ask(name, text=name))).content == "ok"
        figures = gateway.get_stats()["cache"]
    assert provider.sent == ["a", "c", "d", "e"]
    assert (figures["hits"], figures["unavailable"]) == (1, 3)
    assert len([each for each in caplog.records if "the answer cache in Redis" in each.message]) == 1
    assert CANARY not in caplog.text


async def test_a_redis_that_hangs_holds_a_request_up_for_a_moment_only(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = RedisAnswerStore(server.url, "hang", Bounds(max_entries=9, max_bytes=9999))
    figures = CacheFigures()
    answers = Answers(store, "in Redis", ttl=None, max_bytes=9999, figures=figures)
    assert await answers.find(key(0)) is None
    server.pause()
    assert await answers.find(key(0)) is None
    answers.keep(key(0), ANSWER)
    server.resume()
    await answers.aclose()
    server.kill()
    assert (figures.misses, figures.unavailable) == (1, 1)


async def test_no_address_of_redis_is_told_with_its_password(redis_server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match=r"cache\.redis_url cannot be used") as caught:
        RedisAnswerStore(f"redis://:{CANARY}@h:port", "x", Bounds(max_entries=1, max_bytes=1))
    assert CANARY not in str(caught.value)
    store = RedisAnswerStore(
        f"redis://nobody:{CANARY}@127.0.0.1:{redis_server.port}", "x", Bounds(max_entries=1, max_bytes=1)
    )
    with pytest.raises(CacheStoreError) as refused:
        await store.get(key(0))
    assert CANARY not in str(refused.value)
    await store.aclose()


WRITER = """
import asyncio, sys
from pathlib import Path
from llm_gateway.cache.sqlite import SqliteAnswerStore
from llm_gateway.cache.store import Bounds

async def main():
    store = SqliteAnswerStore(Path(sys.argv[1]), Bounds(max_entries=500, max_bytes=10**8))
    number = int(sys.argv[2])
    while True:
        await store.put(number.to_bytes(32, "big"), b"%d" % number * 100)
        print(number, flush=True)
        number += 2

asyncio.run(main())
"""


def writing(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, "-c", WRITER, str(path), "0"],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.PIPE,
    )


async def test_a_process_that_is_killed_leaves_the_file_to_the_other(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    writer = writing(path)
    assert writer.stdout is not None
    store = SqliteAnswerStore(path, Bounds(max_entries=500, max_bytes=10**8))
    first = int(await asyncio.to_thread(writer.stdout.readline))
    for number in range(1, 101, 2):
        while True:
            try:
                await store.put(key(number), b"mine")
                break
            except CacheStoreError as error:  # the other one writes without a pause
                assert "locked" in str(error)  # noqa: PT017
    told = [first] + [int(await asyncio.to_thread(writer.stdout.readline)) for _ in range(50)]
    writer.kill()
    told += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    writer.wait()
    writer.stdout.close()
    found = [await store.get(key(number)) for number in told[-50:]]
    assert [each[0] for each in found if each] == [b"%d" % number * 100 for number in told[-50:]]
    size = await store.size()
    await store.put(key(999_999), b"x")
    assert (await store.size()).entries <= min(500, size.entries + 1)
    await store.aclose()
