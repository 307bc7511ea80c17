"""Limits shared through a real Redis by real processes: kills, hangs, restarts, flushes and bad networks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_gateway
from fakes.emulator import Emulator
from fakes.emulator_thread import emulator_in_a_thread
from fakes.redis_server import RedisServer
from fakes.shared_members import Ledger, Member
from fakes.tcp_proxy import TcpProxy
from llm_gateway import LLMGateway, LLMMessage, LLMRequest
from llm_gateway.errors import ConfigurationError
from llm_gateway.limits.shared.store import RedisStore

SOURCES = Path(llm_gateway.__file__).parent.parent
PATIENCE = 60.0  # seconds until a test gives up
CANARY = "sk-canary-77777777"


class Worker:
    """A process that shares limits, and what it printed."""

    def __init__(self, python: Path, url: str, out: Path, *, calls: int, takes: float, **options: Any) -> None:
        self._out = out
        path = os.pathsep.join([str(SOURCES), str(SOURCES / "tests")])
        with out.open("wb") as written:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [python, "-m", "fakes.shared_process", url, str(calls), str(takes), json.dumps(options)],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=written,
            )

    def said(self, key: str) -> list[Any]:
        lines = self._out.read_text().splitlines()
        return [line[key] for line in (json.loads(each) for each in lines if each.endswith("}")) if key in line]

    @property
    def began(self) -> list[float]:
        return self.said("began")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(timeout=PATIENCE)


class Crowd:
    """The workers of a test; the calls of all of them keep one limit."""

    def __init__(self, url: str, python: Path, folder: Path) -> None:
        self.url = url
        self._python = python
        self._folder = folder
        self.workers: list[Worker] = []

    def start(self, count: int, **options: Any) -> list[Worker]:
        given = {"calls": 100_000, "takes": 0.01, "max_concurrency": 10_000, **options}
        names = [f"worker{len(self.workers) + each}.jsonl" for each in range(count)]
        new = [Worker(self._python, self.url, self._folder / name, **given) for name in names]
        self.workers += new
        return new

    def excess(self, rate: float) -> float:
        """By how much the fullest window exceeds rate · window + one second of rate."""
        ledger, level, last = sorted(each for worker in self.workers for each in worker.began), 0.0, 0.0
        worst = 0.0
        for at in ledger:
            level = max(0.0, level - (at - last) * rate) + 1.0
            worst, last = max(worst, level - max(1.0, rate)), at
        return worst

    def begun(self, count: int) -> Callable[[], bool]:
        """Return whether every living worker has begun so many calls more than now."""
        alive = {worker: len(worker.began) + count for worker in self.workers if worker._process.poll() is None}
        return lambda: all(len(worker.began) >= goal for worker, goal in alive.items())

    def in_state(self, state: str) -> Callable[[], bool]:
        return lambda: all(worker.said("state")[-1:] == [state] for worker in self.workers)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may harm."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def crowd(server: RedisServer, warm: Path, tmp_path: Path) -> Iterator[Crowd]:
    crowd = Crowd(server.url, warm / "python", tmp_path)
    yield crowd
    for worker in crowd.workers:
        worker.kill()


RATE = {"rpm": 3000, "safety": 1.0}  # 50 a second


def test_four_processes_keep_one_quota_and_a_killed_one_takes_nothing_with_it(crowd: Crowd) -> None:
    workers = crowd.start(4, limits=RATE)
    wait_until(crowd.begun(20))
    workers[0].kill()
    wait_until(crowd.begun(40))
    assert crowd.excess(50.0) <= 1e-3
    assert [worker.end() for worker in workers[1:]] == [0, 0, 0]


def test_the_slots_of_a_killed_process_return_when_its_lease_is_over(crowd: Crowd) -> None:
    shared = {"lease_seconds": 1.0}
    (killed,) = crowd.start(1, calls=4, takes=1000.0, max_concurrency=4, shared=shared)
    wait_until(lambda: len(killed.began) == 4)
    killed.kill()
    (other,) = crowd.start(1, calls=20, takes=0.01, max_concurrency=4, shared=shared)
    wait_until(lambda: len(other.began) == 20)


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_while_redis_is_gone_each_takes_its_part_and_all_return_when_it_is_back(
    crowd: Crowd, server: RedisServer, how: str
) -> None:
    crowd.start(4, limits=RATE)
    wait_until(crowd.begun(10))
    getattr(server, how)()
    wait_until(crowd.in_state("alone"))
    wait_until(crowd.begun(20))
    {"kill": server.start, "pause": server.resume}[how]()
    wait_until(crowd.in_state("shared"))
    wait_until(crowd.begun(20))
    # A share that was granted in the last moment may be spent beside the first permits of those who are alone.
    assert crowd.excess(50.0) <= 0.02 * 50


def test_after_a_flush_four_processes_begin_with_a_ramp(crowd: Crowd, server: RedisServer) -> None:
    crowd.start(4, limits=RATE)
    wait_until(crowd.begun(20))
    server.flush()
    wait_until(crowd.begun(40))
    assert crowd.excess(50.0) <= 1e-3


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - of what other processes do no event tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["swallows", "refuses"])
async def test_behind_a_bad_network_calls_go_on_and_the_state_says_so(
    server: RedisServer, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TcpProxy.before(server.port) as proxy:
        proxy.delay = 0.02
        ledger = Ledger()
        member = Member(0, RedisStore(proxy.url), ledger, limits=RATE)
        member.flood(100_000, takes=0.01)
        await until(lambda: len(ledger.calls) > 20)
        assert member.state == "shared"
        setattr(proxy, fault, True)
        proxy.cut()
        await until(lambda: member.state == "alone")
        begun = len(ledger.calls)
        await until(lambda: len(ledger.calls) > begun + 10)
        setattr(proxy, fault, False)
        await until(lambda: member.state == "shared")
        assert ledger.excess(50.0, 50.0) <= 1.0
        assert "does not answer" in caplog.text
        assert str(proxy.port) not in caplog.text
        member.kill()
        await member.paces.aclose()


def config(emulator: Emulator, url: str) -> dict[str, Any]:
    return {
        "providers": {"openai": {"base_url": f"{emulator.url}/v1", "api_key": CANARY}},
        "models": {"m": {"provider": "openai", "model": "gpt-4o-mini", "limits": {"rpm": 60_000}, "max_tokens": 16}},
        "limits": {"redis_url": url},
        "logs": {"dir": False},
    }


def asked() -> LLMRequest:
    return LLMRequest(model="m", messages=[LLMMessage(role="user", content="hello")], deadline=30.0)


async def test_two_gateways_answer_through_one_store_and_say_so_in_their_statistics(
    server: RedisServer, emulator: Emulator
) -> None:
    given = {**config(emulator, server.url), "budgets": {"total": 5.0}}
    async with LLMGateway(given) as one, LLMGateway(given) as two:
        answers = await asyncio.gather(*(each.batch([asked() for _ in range(10)]) for each in (one, two)))
        assert [len(each) for each in answers] == [10, 10]
        assert '"state": "shared"' in json.dumps(one.get_stats())
        spent = sum(response.receipt.cost_usd or 0.0 for each in answers for response in each if response.receipt)
        await until(lambda: one.get_stats()["budgets"]["the gateway"]["spent"] == pytest.approx(spent))
    with server.client() as client:
        keys = client.keys("*")
        stored = [client.execute_command("DUMP", key, NEVER_DECODE=True) for key in keys]
    assert len(keys) == 2
    assert all(CANARY not in key for key in keys)
    assert all(CANARY.encode() not in each for each in stored)


async def test_a_request_is_answered_though_redis_hangs(server: RedisServer, emulator: Emulator) -> None:
    server.pause()
    async with LLMGateway(config(emulator, server.url)) as gateway:
        response = await gateway.request(asked())
        assert response.content
        assert '"state": "alone"' in json.dumps(gateway.get_stats())
    server.resume()


async def test_a_key_that_holds_something_else_counts_as_a_store_that_does_not_answer(
    server: RedisServer, emulator: Emulator
) -> None:
    async with LLMGateway(config(emulator, server.url)) as gateway:
        await gateway.request(asked())
        with server.client() as client:
            (key,) = client.keys("*")
            client.delete(key)
            client.lpush(key, "something else")
        await gateway.request(asked())
        await until(lambda: '"state": "alone"' in json.dumps(gateway.get_stats()))
        with server.client() as client:
            client.delete(key)
        await until(lambda: '"state": "shared"' in json.dumps(gateway.get_stats()))


def test_an_address_that_cannot_be_used_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.redis_url cannot be used"):
        RedisStore("redis://127.0.0.1:port")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"install llm-gateway\[redis\]"):
        RedisStore("redis://127.0.0.1:6379")


def test_a_gateway_goes_on_in_another_loop_and_leaves_no_connection_behind(server: RedisServer) -> None:
    async def ask(gateway: LLMGateway) -> str:
        return (await gateway.request(asked())).content

    with emulator_in_a_thread() as emulator:
        gateway = LLMGateway(config(emulator, server.url))
        assert asyncio.run(ask(gateway))
        assert connections(server) == 1  # the one that counts them
        assert asyncio.run(ask(gateway))


def connections(server: RedisServer) -> int:
    with server.client() as client:
        return len(client.client_list())


async def test_texts_of_many_callers_share_calls_and_slots_also_where_limits_are_shared(
    server: RedisServer, emulator: Emulator
) -> None:
    model = {"provider": "openai", "model": "text-embedding-3-small", "embedding": True, "max_concurrency": 1}
    given = config(emulator, server.url) | {"models": {"e": {**model, "limits": {"rpm": 60_000}}}}
    async with LLMGateway(given) as gateway:
        answers = await asyncio.gather(*(gateway.embed([f"text {n}"], model="e") for n in range(40)))
    assert len({tuple(answer.vectors[0]) for answer in answers}) > 1
    sizes = [len(call.body["input"]) for call in emulator.ledger]
    assert sum(sizes) == 40
    assert max(sizes) > 1  # one slot, and several callers in it
