"""The lean transport's connections, against servers that say byte for byte what a test wants."""

from __future__ import annotations

import asyncio
import gc
import json
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from fakes.deployments import CANARY, KINDS, base_url, deployment, request, said
from llm_gateway.clients.base import ChatClient
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.clients.lean import call, http
from llm_gateway.clients.lean.faults import AnswerTooLargeError, RefusedError
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.records import JsonLines
from llm_gateway.config import Endpoint, endpoint_of, load_config
from llm_gateway.errors import ProviderError, ProviderTimeoutError

every_kind = pytest.mark.parametrize("kind", KINDS)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = OK + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(slots=True)
class Server:
    """Answers each request with what `says` yields for it, and notes what it got."""

    url: str = ""
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)  # no connection is open

    @property
    def headers(self) -> dict[str, str]:
        """Of the last request."""
        lines = self.heads[-1].split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


Says = Callable[[int], AsyncIterator[bytes | None]]
"""What comes in answer to the request of a number; None waits until the client has left."""


@asynccontextmanager
async def serving(says: Says | bytes) -> AsyncIterator[Server]:
    server = Server()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.open += 1
        server.quiet.clear()
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                server.heads.append(head)
                server.bodies.append(await reader.readexactly(int(server.headers.get("content-length", 0))))
                if isinstance(says, bytes):
                    writer.write(says)
                    continue
                async for part in says(len(server.heads)):
                    if part is None:
                        await reader.read()
                        return
                    writer.write(part)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            server.open -= 1
            if not server.open:
                server.quiet.set()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        await asyncio.wait_for(server.quiet.wait(), 20) if server.connections else None


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def endpoint(**settings: Any) -> Endpoint:
    return endpoint_of(load_config({"providers": {"openai": {"api_key": CANARY, **settings}}}), "openai", {})


@asynccontextmanager
async def pool(largest: int = 1000, **settings: Any) -> AsyncIterator[Http]:
    made = Http(endpoint(**settings), largest=largest)
    try:
        yield made
    finally:
        await made.aclose()


async def test_a_call_sends_its_body_and_headers_and_no_more() -> None:
    async with serving(whole(b"{}")) as server, pool() as connections:
        target = Target(f"{server.url}/v1/x", {"Authorization": f"Bearer {CANARY}"})
        assert await connections.post(target, b'{"a":1}') == b"{}"
    assert server.heads[0].startswith("POST /v1/x HTTP/1.1\r\n")
    assert server.bodies == [b'{"a":1}']
    assert server.headers["authorization"] == f"Bearer {CANARY}"
    assert server.headers["accept-encoding"] == "identity"
    assert server.headers["content-type"] == "application/json"


async def test_calls_one_after_another_share_a_connection() -> None:
    async with serving(whole(b"{}")) as server, pool() as connections:
        for _ in range(5):
            await connections.post(Target(server.url, {}), b"{}")
        assert (server.connections, len(server.heads)) == (1, 5)


async def test_a_cookie_is_not_kept() -> None:
    async with serving(whole(b"{}", "200 OK", "set-cookie: a=b")) as server, pool() as connections:
        for _ in range(2):
            await connections.post(Target(server.url, {}), b"{}")
    assert "cookie" not in server.headers


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
async def test_no_redirect_takes_the_key_to_another_host(status: str) -> None:
    async with serving(whole(b"{}")) as elsewhere:
        async with serving(whole(b"", status, f"location: {elsewhere.url}/")) as server, pool() as connections:
            with pytest.raises(RefusedError) as caught:
                await connections.post(Target(server.url, {"authorization": CANARY}), b"{}")
        assert caught.value.status_code == int(status[:3])
        assert elsewhere.connections == 0


async def test_a_body_of_many_mebibytes_goes_out_without_a_warning() -> None:
    body = b'"' + b"x" * 3_000_000 + b'"'
    async with serving(whole(b"{}")) as server, pool() as connections:
        await connections.post(Target(server.url, {}), body)
    assert server.bodies == [body]
    assert server.headers["content-length"] == str(len(body))


@pytest.mark.parametrize("size", [1000, 1001, 100_000])
async def test_an_answer_larger_than_the_limit_is_refused(size: int) -> None:
    async with serving(whole(b"x" * size)) as server, pool() as connections:
        if size <= 1000:
            assert len(await connections.post(Target(server.url, {}), b"{}")) == size
            return
        with pytest.raises(AnswerTooLargeError):
            await connections.post(Target(server.url, {}), b"{}")


async def test_a_stream_without_end_is_ended_by_the_limit() -> None:
    async def endless(_: int) -> AsyncIterator[bytes | None]:
        yield STREAM
        while True:
            yield chunk(b'{"a": "' + b"x" * 100 + b'"}\n')

    async with serving(endless) as server, pool() as connections:
        records = await call.streamed(connections, Target(server.url, {}), {}, JsonLines(), lambda raw: (raw, False))
        with pytest.raises(AnswerTooLargeError):
            [record async for record in records]
        await asyncio.wait_for(server.quiet.wait(), 20)


async def test_a_refusal_that_is_too_long_is_told_by_its_status_alone() -> None:
    async with serving(whole(b"x" * 70_000, "429 Slow")) as server, pool() as connections:
        with pytest.raises(RefusedError) as caught:
            await connections.post(Target(server.url, {}), b"{}")
    assert (caught.value.status_code, caught.value.body) == (429, None)


async def silent(_: int) -> AsyncIterator[bytes | None]:
    yield None


async def after_the_head(_: int) -> AsyncIterator[bytes | None]:
    yield STREAM + chunk(b'{"half":')
    yield None


async def dripping(_: int) -> AsyncIterator[bytes | None]:
    yield STREAM
    while True:
        yield chunk(b" ")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("says", "settings"),
    [(silent, {"timeout": 0.1}), (after_the_head, {"timeout": 0.1}), (dripping, {"total_timeout": 0.3})],
    ids=["no first byte", "no next byte", "no end"],
)
@every_kind
async def test_a_server_that_takes_too_long_is_given_up(kind: str, says: Says, settings: dict[str, float]) -> None:
    async with serving(says) as server:
        async with client_of(kind, base_url(server.url, kind), **settings) as client:
            with pytest.raises(ProviderTimeoutError):
                await client.generate(request())
        await asyncio.wait_for(server.quiet.wait(), 20)


@asynccontextmanager
async def client_of(kind: str, url: str, **settings: Any) -> AsyncIterator[ChatClient]:
    made = deployment(kind, url, transport="lean")
    clients = LangChainClients()
    try:
        yield clients.connect(_with(made, settings))
    finally:
        await clients.aclose()


def _with(made: Any, settings: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(made, endpoint=made.endpoint.model_copy(update=settings))


async def test_an_address_that_never_answers_a_handshake_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    async with client_of("openai", "http://127.0.0.1:9/v1", timeout=0.1) as client:
        with pytest.raises(ProviderTimeoutError):
            await client.generate(request())


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield


PROXY_PASSWORD = "canary-of-the-proxy"


async def test_the_proxys_credentials_go_to_the_proxy_and_stand_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(whole(b"{}")) as proxy:
        address = proxy.url.replace("http://", f"http://user:{PROXY_PASSWORD}@")
        with environment(monkeypatch, HTTP_PROXY=address, HTTPS_PROXY=address):
            async with pool() as connections:
                await connections.post(Target("http://provider.invalid/v1", {}), b"{}")
                await connections.post(Target("http://provider.invalid/v1", {}), b"{}")
    assert proxy.heads[0].startswith("POST http://provider.invalid/v1 ")
    assert proxy.headers["proxy-authorization"].startswith("Basic ")
    with environment(monkeypatch, HTTP_PROXY=address, HTTPS_PROXY=address):  # nobody is there any more
        for url in ("http://provider.invalid", "https://provider.invalid"):
            async with client_of("openai", f"{url}/v1") as client:
                with pytest.raises(ProviderError) as caught:
                    await client.generate(request())
            error = caught.value
            chained = [repr(each) for each in (error, error.__cause__, error.__context__)]
            assert PROXY_PASSWORD not in "".join([*traceback.format_exception(error), *chained])


async def test_a_tunnel_is_asked_for_with_the_proxys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(whole(b"", "407 No")) as proxy:
        address = proxy.url.replace("http://", "http://user:word@")
        with environment(monkeypatch, HTTPS_PROXY=address):
            async with pool() as connections:
                with pytest.raises(aiohttp.ClientHttpProxyError):
                    await connections.post(Target("https://provider.invalid/v1", {"authorization": CANARY}), b"{}")
    assert proxy.heads[0].startswith("CONNECT provider.invalid:443 ")
    assert proxy.headers["proxy-authorization"].startswith("Basic ")
    assert CANARY not in proxy.heads[0]


async def test_a_host_that_needs_no_proxy_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(whole(b"{}")) as server, pool() as connections:
        with environment(monkeypatch, ALL_PROXY="http://127.0.0.1:9", NO_PROXY="example.com,127.0.0.1"):
            assert await connections.post(Target(server.url, {}), b"{}") == b"{}"


async def test_a_name_and_password_in_the_address_become_a_header() -> None:
    async with serving(whole(b"{}")) as server, pool() as connections:
        target = Target(server.url.replace("http://", f"http://me:{CANARY}@"), {"Authorization": "Bearer x"})
        await connections.post(target, b"{}")
    assert CANARY not in str(target.url)
    assert server.headers["authorization"].startswith("Basic ")


@every_kind
async def test_a_key_shows_in_no_repr(kind: str) -> None:
    clients = LangChainClients()
    client: Any = clients.connect(deployment(kind, base_url("http://127.0.0.1:9", kind), transport="lean"))
    seen = [repr(each) for each in (client, client._model, client._leases[0].client, vars(client._leases[0].client))]
    with pytest.raises(ProviderError) as caught:
        await client.generate(request())
    seen += traceback.format_exception(caught.value)
    assert CANARY not in "".join(seen)
    await clients.aclose()


NDJSON = json.dumps({"message": {"content": "hi"}, "done": False}).encode() + b"\n"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}}]}\n\n'
BEGINNING = b'data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}\n\n'
FIRST = {"openai": EVENT, "anthropic": BEGINNING, "ollama": NDJSON}


@every_kind
@pytest.mark.parametrize("ending", ["body ends", "connection ends"])
async def test_a_stream_that_breaks_off_is_no_answer(kind: str, ending: str) -> None:
    async def broken(_: int) -> AsyncIterator[bytes | None]:
        yield STREAM + chunk(FIRST[kind])
        if ending == "body ends":
            yield b"0\r\n\r\n"
            return
        raise ConnectionError

    async with serving(broken) as server, client_of(kind, base_url(server.url, kind)) as client:
        with pytest.raises(ProviderError) as caught:
            [piece async for piece in client.stream(request())]
    assert caught.value.kind == "incomplete_response"


@every_kind
async def test_after_the_last_event_nobody_waits_for_a_server_that_does_not_end_the_body(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {
        "openai": b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
        "anthropic": b'data: {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, '
        b'"usage": {"output_tokens": 3}}\n\ndata: {"type": "message_stop"}\n\n',
        "ollama": b'{"message": {"content": ""}, "done": true, "done_reason": "stop"}\n',
    }

    async def open_ended(_: int) -> AsyncIterator[bytes | None]:
        yield STREAM + chunk(FIRST[kind]) + chunk(last[kind])
        yield None

    monkeypatch.setattr(call, "LONGEST_FAREWELL", 0.05)
    async with serving(open_ended) as server, client_of(kind, base_url(server.url, kind)) as client:
        *_, completion = [piece async for piece in client.stream(request())]
        await asyncio.wait_for(server.quiet.wait(), 20)
    assert getattr(completion, "content", None) == "hi"


@every_kind
async def test_an_answer_in_pieces_of_one_byte_is_an_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakes.emulator import Emulator, Reply, wire

    send = wire._body
    monkeypatch.setattr(wire, "_body", lambda *given: _bytewise(*send(*given)))
    async with Emulator.serve() as emulator:
        emulator.default = Reply(text="Ünïcödé 🎈")
        async with client_of(kind, base_url(emulator.url, kind)) as client:
            assert (await client.generate(request())).content == "Ünïcödé 🎈"
            *_, completion = [piece async for piece in client.stream(request())]
    assert getattr(completion, "content", None) == "Ünïcödé 🎈"


def _bytewise(content_type: str, parts: Any) -> tuple[str, list[bytes]]:
    return content_type, [bytes([byte]) for part in parts for byte in part]


@every_kind
async def test_after_closing_no_task_and_no_socket_is_left(kind: str) -> None:
    def transports() -> int:
        gc.collect()
        return len(getattr(asyncio.get_running_loop(), "_transports"))  # noqa: B009 - the loop's own, by file descriptor

    body = {
        "openai": whole(b'{"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}'),
        "anthropic": whole(
            b'{"content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", '
            b'"usage": {"input_tokens": 1, "output_tokens": 1}}'
        ),
        "ollama": whole(b'{"message": {"content": "hi"}, "done": true, "done_reason": "stop"}'),
    }
    before = asyncio.all_tasks()
    open_before = transports()
    async with serving(body[kind]) as server:
        async with client_of(kind, base_url(server.url, kind)) as client:
            answers = await asyncio.gather(*(client.generate(request()) for _ in range(20)))
            assert {answer.content for answer in answers} == {"hi"}
        await asyncio.wait_for(server.quiet.wait(), 20)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert transports() == open_before


async def test_a_closed_pool_says_so() -> None:
    made = Http(endpoint())
    await made.aclose()
    await made.aclose()
    with pytest.raises(aiohttp.ClientConnectionError, match="closed"):
        await made.post(Target("http://127.0.0.1:9", {}), b"{}")


async def test_an_answer_that_is_too_large_is_a_failure_that_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LARGEST_ANSWER", 10)
    monkeypatch.setattr(Http.__init__, "__kwdefaults__", {"largest": 10})
    async with serving(whole(b'{"a": "many words"}')) as server, client_of("openai", f"{server.url}/v1") as client:
        with pytest.raises(ProviderError, match="larger than 10 bytes") as caught:
            await client.generate(request(said("user", "hello")))
    assert not caught.value.retryable
