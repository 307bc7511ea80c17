"""Connections: shared, bounded by nothing but the caller, closed at the end, and never in the wrong hands."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, base_url, connected, deployment, request, said
from fakes.emulator import Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.clients.transport import exchange
from llm_gateway.errors import ProviderError, ProviderTimeoutError

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
async def test_cancelling_a_call_closes_its_connection(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(fault="stall"))
    async with connected(emulator, kind) as client:
        call = asyncio.create_task(client.generate(request()))
        await emulator.arrived(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await emulator.settled()
    assert emulator.ledger[0].disconnected
    assert len(emulator.ledger) == 1


@every_kind
async def test_more_calls_than_a_pool_usually_holds_run_at_the_same_time(emulator: Emulator, kind: str) -> None:
    emulator.default = Reply(fault="stall")  # no call ends, so each needs a connection of its own
    async with connected(emulator, kind) as client:
        calls = [asyncio.create_task(client.generate(request())) for _ in range(130)]
        await emulator.arrived(130)
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@every_kind
async def test_a_provider_that_stays_silent_is_given_up(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(latency=30.0))
    async with connected(emulator, kind, timeout=0.2) as client:
        with pytest.raises(ProviderTimeoutError, match="raise \\[providers"):
            await client.generate(request())


@every_kind
async def test_deployments_of_one_endpoint_share_their_connections(emulator: Emulator, kind: str) -> None:
    clients = LangChainClients()
    url = base_url(emulator.url, kind)
    leases: list[Any] = []
    for options in ({}, {"max_tokens": 5}, {"key": "sk-other-0123456789"}):
        client: Any = clients.connect(deployment(kind, url, **options))
        leases.append(client._leases[0])
    same, as_well, other = (lease.client for lease in leases)
    assert same is as_well
    assert same is not other
    await clients.aclose()


@every_kind
async def test_what_is_shared_closes_with_its_last_user(emulator: Emulator, kind: str) -> None:
    clients = LangChainClients()
    first = clients.connect(deployment(kind, base_url(emulator.url, kind)))
    second = clients.connect(deployment(kind, base_url(emulator.url, kind), max_tokens=5))
    await first.generate(request())
    await first.aclose()
    await first.aclose()
    await second.generate(request())
    await second.aclose()
    with pytest.raises(ProviderError):
        await second.generate(request())
    await clients.aclose()
    await clients.aclose()


@every_kind
def test_two_loops_one_after_the_other_both_work_and_leave_nothing_open(kind: str) -> None:
    async def ask() -> str:
        async with Emulator.serve() as emulator, connected(emulator, kind) as client:
            await asyncio.gather(*(client.generate(request()) for _ in range(3)))
            return (await client.generate(request())).content

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["ok", "ok"]
    gc.collect()  # a connection left open would warn now, and warnings are errors


@every_kind
def test_two_threads_with_a_loop_each_work_at_the_same_time(kind: str) -> None:
    answers: list[str] = []
    both = threading.Barrier(2)

    async def ask() -> None:
        async with Emulator.serve() as emulator, connected(emulator, kind) as client:
            both.wait(30)
            answers.extend([(await client.generate(request())).content for _ in range(5)])

    threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == ["ok"] * 10


@every_kind
async def test_the_environment_leads_no_call_and_no_key_elsewhere(
    emulator: Emulator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANGSMITH_GATEWAY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL", "OLLAMA_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("LANGSMITH_GATEWAY_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("OLLAMA_API_KEY", CANARY)
    async with connected(emulator, kind, key=None, provider="at-home") as client:
        assert (await client.generate(request())).content == "ok"
    assert CANARY not in str(emulator.ledger[0].headers)


async def test_calls_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{address[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        clients = LangChainClients()
        for kind in KINDS:
            client = clients.connect(deployment(kind, base_url("http://provider.invalid", kind)))
            with pytest.raises(ProviderError, match="HTTP 503"):
                await client.generate(request())
        await clients.aclose()
    assert [line.split()[1].split(b"/v1")[0] for line in asked] == [
        b"http://provider.invalid", b"http://provider.invalid", b"http://provider.invalid/api/chat",
    ]  # fmt: skip


async def test_an_answer_is_noted_for_its_own_call_alone(emulator: Emulator) -> None:
    emulator.answer = lambda call: Reply(status=429, headers={"retry-after": call.body["messages"][0]["content"]})
    async with connected(emulator, "openai") as client:
        asked = [request(said("user", str(wait))) for wait in range(1, 9)]
        outcomes = await asyncio.gather(*(client.generate(each) for each in asked), return_exceptions=True)
    assert [error.retry_after for error in outcomes if isinstance(error, ProviderError)] == list(range(1, 9))
    with pytest.raises(LookupError):
        exchange.get()


FORGETFUL = """
import asyncio, sys
from llm_gateway import LLMGateway, LLMMessage, LLMRequest

url, runs, transport = sys.argv[1], int(sys.argv[2]), sys.argv[3]
urls = {"openai": url + "/v1", "anthropic": url, "ollama": url}
models = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "ollama": "llama3.2"}
gateway = LLMGateway({
    "logs": {"dir": False},
    "providers": {
        kind: {"base_url": urls[kind], "api_key": "sk-canary-0123456789", "transport": transport} for kind in urls
    },
    "models": {kind: {"provider": kind, "model": models[kind]} for kind in urls},
})

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60
    for kind in urls:
        answer = await gateway.request(LLMRequest(model=kind, messages=[LLMMessage(role="user", content="hi")]))
        print(answer.content)

for _ in range(runs):
    asyncio.run(main())
"""


@pytest.mark.parametrize("flags", [(), ("-W", "error")])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_program_that_never_shuts_down_ends_without_a_word(
    flags: tuple[str, ...], runs: int, transport: str, warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1" if flags else "")
    with emulator_in_a_thread() as emulator:
        command = [str(warm / "python"), *flags, "-c", FORGETFUL, emulator.url, str(runs), transport]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ok"] * 3 * runs, "")


@every_kind
def test_connections_can_be_abandoned_when_their_loop_is_closed(kind: str) -> None:
    clients = LangChainClients()
    with emulator_in_a_thread() as emulator:

        async def ask() -> None:
            client = clients.connect(deployment(kind, base_url(emulator.url, kind)))
            await asyncio.gather(*(client.generate(request()) for _ in range(3)))

        asyncio.run(ask())
        clients.abandon()
        clients.abandon()
    gc.collect()  # a connection left open would warn now, and warnings are errors
    asyncio.run(clients.aclose())


@every_kind
async def test_abandoning_ends_the_calls_under_way(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(fault="stall"))
    clients = LangChainClients()
    client = clients.connect(deployment(kind, base_url(emulator.url, kind)))
    call = asyncio.create_task(client.generate(request()))
    await emulator.arrived(1)
    clients.abandon()
    with pytest.raises(ProviderError):
        await call
    await emulator.settled()
    assert emulator.ledger[0].disconnected
    await client.aclose()
    await clients.aclose()


@every_kind
async def test_another_thread_may_abandon_the_connections_of_a_running_loop(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(fault="stall"))
    clients = LangChainClients()
    client = clients.connect(deployment(kind, base_url(emulator.url, kind)))
    call = asyncio.create_task(client.generate(request()))
    await emulator.arrived(1)
    await asyncio.to_thread(clients.abandon)
    with pytest.raises(ProviderError):
        await call


@every_kind
def test_what_nobody_can_reach_any_more_is_abandoned(kind: str) -> None:
    with emulator_in_a_thread() as emulator:

        async def ask() -> None:
            client = LangChainClients().connect(deployment(kind, base_url(emulator.url, kind)))
            gc.collect()  # a client that is still there keeps its connections, though its factory is gone
            assert (await client.generate(request())).content == "ok"

        asyncio.run(ask())
        gc.collect()
