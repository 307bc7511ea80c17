"""The connections to one endpoint, and one POST over them. No retry, no redirect, no cookie."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from llm_gateway.clients.lean.coding import decode
from llm_gateway.clients.lean.environment import proxy_of
from llm_gateway.clients.lean.faults import AnswerTooLargeError, RefusedError, refusal
from llm_gateway.clients.messages import UnreadableAnswerError
from llm_gateway.clients.transport import CONNECT_TIMEOUT, KEEPALIVE, PoolLease, Pools, exchange, tls
from llm_gateway.config import Endpoint

LARGEST_ANSWER = 64 * 1024 * 1024  # bytes; the longest answers of today's models have less than one MiB
LARGEST_REFUSAL = 64 * 1024  # bytes of an error's body that are read
LARGEST_PLAIN_BODY = 1024 * 1024  # bytes; aiohttp wants more than that as a file, to send it in pieces
NAMES_KEPT = 60.0  # seconds that a resolved address is used again
FIRST_BAD_STATUS = 300
# Answers are small, and a stream's pieces must not wait until a compressor has filled a block.
UNCOMPRESSED = {"accept-encoding": "identity"}


class Target:
    """Where a kind of call goes: an address, and the headers that every call carries, the key among them.

    A name and a password in the address become a header, as httpx makes one of them: no error shows an address's own.
    `too_long` are words by which LangChain tells, from the refusals of this API, that of a prompt that is too long.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, too_long: Sequence[str] = ()) -> None:
        self.too_long = too_long
        address = URL(url)
        self.url = address.with_user(None) if address.user is not None else address
        self.headers = CIMultiDict({"content-type": "application/json"} | UNCOMPRESSED)
        self.headers.update(headers)
        if address.user is not None:
            self.headers["authorization"] = basic(address)

    def varied(self, headers: Mapping[str, str], query: Mapping[str, Any]) -> Target:
        """Return a copy with more headers and a longer query."""
        copy = Target(str(self.url.update_query(query)), self.headers, too_long=self.too_long)
        copy.headers.update(headers)
        return copy


def sdk_headers(told: Mapping[str, object]) -> dict[str, str]:
    """Return the headers that an SDK sends with every call, without those that tell what machine it runs on."""
    named = {name.lower(): value for name, value in told.items()}
    return {name: value for name, value in named.items() if isinstance(value, str) and name[:12] != "x-stainless-"}


def basic(address: URL) -> str:
    """Return the value of a header that carries the name and the password of an address."""
    return "Basic " + b64encode(f"{address.user}:{address.password or ''}".encode()).decode()


class Http:
    """A pool of connections to one endpoint, made in the event loop of its first call."""

    def __init__(self, endpoint: Endpoint, *, largest: int = LARGEST_ANSWER) -> None:
        self.client: aiohttp.ClientSession | None = None  # under this name `sockets.abandon` looks for it
        self.largest = largest
        self._timeouts = aiohttp.ClientTimeout(
            total=endpoint.total_timeout,
            sock_connect=min(endpoint.timeout, CONNECT_TIMEOUT),
            sock_read=endpoint.timeout,  # from one byte to the next, the first one included
        )
        self._proxies: dict[URL, tuple[URL | None, CIMultiDict[str] | None]] = {}
        self._closed = False

    async def post(self, target: Target, body: bytes, *, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - aiohttp's own
        """Return the body of the answer. Raises RefusedError, AnswerTooLargeError, TimeoutError, ClientError."""
        response = await self.open(target, body, timeout=timeout)
        try:
            return await whole(response, self.largest)
        finally:
            # Closes the connection, unless the answer was read to its end: then it is back in the pool already.
            response.close()

    async def open(self, target: Target, body: bytes, *, timeout: float | None = None) -> aiohttp.ClientResponse:  # noqa: ASYNC109 - aiohttp's own
        """Return an answer of which the headers have come; who gets it closes it. Raises as `post` does.

        `timeout` is the seconds without a byte after which the call has failed; None: as the endpoint says.
        """
        session = self._session()
        proxy, proxy_headers = self._proxy(target.url)
        headers = target.headers
        if proxy_headers and target.url.scheme == "http":  # without a tunnel, the proxy reads the request itself
            headers, proxy_headers = headers.copy(), None
            headers.update(self._proxies[target.url.origin()][1] or {})
        response = await session.post(
            target.url,
            data=body if len(body) <= LARGEST_PLAIN_BODY else io.BytesIO(body),
            headers=headers,
            allow_redirects=False,  # a key goes to no host that it was not given for
            proxy=proxy,
            proxy_headers=proxy_headers,
            timeout=self._timeouts if timeout is None else self._patient(timeout),
        )
        seen = exchange.get(None)
        if seen is not None:
            seen.status, seen.headers = response.status, response.headers
        if response.status < FIRST_BAD_STATUS:
            return response
        try:
            raise await _refusal(response, target.too_long)
        finally:
            response.close()

    def _patient(self, timeout: float) -> aiohttp.ClientTimeout:
        own = self._timeouts
        return aiohttp.ClientTimeout(total=own.total, sock_connect=own.sock_connect, sock_read=timeout)

    def _proxy(self, url: URL) -> tuple[URL | None, CIMultiDict[str] | None]:
        """Return the proxy of an address without its credentials, and a header that holds them."""
        origin = url.origin()
        if origin not in self._proxies:
            proxy = proxy_of(url)
            headers = None
            if proxy is not None and proxy.user is not None:
                headers = CIMultiDict({"proxy-authorization": basic(proxy)})
                proxy = proxy.with_user(None)
            self._proxies[origin] = (proxy, headers)
        return self._proxies[origin]

    def _session(self) -> aiohttp.ClientSession:
        if self.client is None and not self._closed:
            connector = aiohttp.TCPConnector(
                limit=0,  # the lanes bound the calls; a second queue would only let them time out in it
                ssl=tls(),
                keepalive_timeout=KEEPALIVE,
                ttl_dns_cache=int(NAMES_KEPT),
            )
            self.client = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeouts,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # proxies are found once, not for each call, and nobody reads .netrc
            )
        if self.client is None or self.client.closed:
            raise aiohttp.ClientConnectionError("the client has been closed")
        return self.client

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        self._closed = True
        if self.client is not None:
            await self.client.close()


def lease(endpoint: Endpoint, pools: Pools) -> PoolLease:
    """Return a share in the endpoint's pool of connections."""

    def make() -> tuple[Http, Callable[[], Awaitable[None]]]:
        http = Http(endpoint)
        return http, http.aclose

    return pools.lease((endpoint, Http), make)


async def whole(response: aiohttp.ClientResponse, largest: int) -> bytes:
    """Return the rest of a body. Raises AnswerTooLargeError once it is longer than `largest`."""
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        size += len(part)
        if size > largest:
            raise AnswerTooLargeError(largest)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _refusal(response: aiohttp.ClientResponse, too_long: Sequence[str]) -> RefusedError:
    """Read what a refusal says; one that does not say it whole is told by its status alone."""
    try:
        text = await whole(response, LARGEST_REFUSAL)
    except (AnswerTooLargeError, aiohttp.ClientError, TimeoutError):
        return refusal(response.status, None)
    try:
        body: Any = decode(text)
    except UnreadableAnswerError:
        body = text.decode("utf-8", "replace").strip()
    return refusal(response.status, body, too_long)
