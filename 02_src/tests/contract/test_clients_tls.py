"""TLS: whom we trust, and what the second connection to a host costs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.deployments import deployment, request
from llm_gateway.clients import transport
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.clients.resumption import resuming
from llm_gateway.errors import ProviderError

BODY = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Vouches for this run's server; made anew, so that no key lies in the repository."""
    return trustme.CA()


@asynccontextmanager
async def tls_server(authority: trustme.CA, resumed: list[bool]) -> AsyncIterator[str]:
    """Answers one request a connection, and notes whether its session was known."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        writer.write(ANSWER + BODY)
        await writer.drain()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pem = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    transport.tls.cache_clear()
    yield
    transport.tls.cache_clear()


@pytest.mark.usefixtures("trusted", "transport")
async def test_an_authority_of_the_environment_is_trusted_and_its_sessions_are_taken_up_again(
    authority: trustme.CA,
) -> None:
    resumed: list[bool] = []
    clients = LangChainClients()
    async with tls_server(authority, resumed) as url:
        client = clients.connect(deployment("openai", url))
        for _ in range(3):
            assert (await client.generate(request())).content == "hi"
    await clients.aclose()
    assert resumed == [False, True, True]


@pytest.mark.usefixtures("transport")
async def test_a_certificate_that_nobody_vouches_for_is_refused_for_good(authority: trustme.CA) -> None:
    clients = LangChainClients()
    async with tls_server(authority, []) as url:
        client = clients.connect(deployment("openai", url))
        with pytest.raises(ProviderError, match="certificate") as caught:
            await client.generate(request())
    await clients.aclose()
    assert not caught.value.retryable


def test_a_context_of_another_make_is_left_alone() -> None:
    class Other(ssl.SSLContext):
        """As truststore's, which looks at every handshake itself."""

    made: Any = Other(ssl.PROTOCOL_TLS_CLIENT)
    assert "wrap_bio" not in vars(resuming(made))
