"""What every provider's client shares: TLS, pools, timeouts, and what the last HTTP answer said.

SDKs of the newer kind speak through httpx2, Ollama through httpx. Pools belong to one event loop.
"""

from __future__ import annotations

import functools
import ssl
import weakref
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from llm_gateway.clients import sockets
from llm_gateway.clients.resumption import resuming
from llm_gateway.config import Endpoint

CONNECT_TIMEOUT = 10.0  # seconds; a host that is there answers a SYN much sooner
# The lanes bound the calls; a pool that is smaller than a lane would only let its calls time out in a second queue.
MOST_CONNECTIONS = 65_535
# Less than the 5 s after which uvicorn, and so vLLM, hangs up: no call meets a connection that is just being closed.
KEEPALIVE = 4.0


@dataclass(slots=True)
class Exchange:
    """What came back over HTTP for one call; empty while nothing has."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


# Set for the time of one call. LangChain runs the call in a task of its own, which inherits the same object.
exchange: ContextVar[Exchange] = ContextVar("exchange")


async def note_response(response: Any) -> None:
    """Remember status and headers of an answer; the event hook of every HTTP client, called before the body."""
    current = exchange.get(None)
    if current is not None:
        current.status = response.status_code
        current.headers = response.headers


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the process's one TLS context (making it takes 45 ms); it heeds SSL_CERT_FILE and SSL_CERT_DIR."""
    import httpx2

    return resuming(httpx2.create_ssl_context())


def timeouts(endpoint: Endpoint) -> dict[str, float | None]:
    """Return the arguments of `httpx.Timeout`: of each read and write, of connecting, and none of the pool."""
    each = endpoint.timeout
    return {"read": each, "write": each, "connect": min(each, CONNECT_TIMEOUT), "pool": None}


def common_options(*, trust_env: bool = True) -> dict[str, Any]:
    """Return what all HTTP clients are made with. Proxies come from the environment if `trust_env`.

    Redirects are not followed: a key goes to no host that it was not given for.
    """
    return {
        "verify": tls(),
        "follow_redirects": False,
        "trust_env": trust_env,
        "event_hooks": {"response": [note_response]},
    }


def httpx2_options(endpoint: Endpoint, *, trust_env: bool = True) -> dict[str, Any]:
    """Return the arguments of an httpx2 client, as the SDKs' aiohttp clients are."""
    import httpx2

    limits = httpx2.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=KEEPALIVE)
    timeout = httpx2.Timeout(**timeouts(endpoint))
    return common_options(trust_env=trust_env) | {"limits": limits, "timeout": timeout}


def httpx_options(endpoint: Endpoint) -> dict[str, Any]:
    """Return the arguments of an httpx client."""
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=MOST_CONNECTIONS, keepalive_expiry=KEEPALIVE)
    return common_options() | {"limits": limits, "timeout": httpx.Timeout(**timeouts(endpoint))}


class Lease(Protocol):
    """A share in something that is closed when its last user has left."""

    async def aclose(self) -> None:
        """Leave. Safe to call twice."""


@dataclass(slots=True)
class _Pool:
    client: Any
    close: Callable[[], Awaitable[None]]
    users: int = 0


class Pools:
    """The HTTP clients of one event loop, one for each key, made when first asked for.

    Those that nobody closed are abandoned when nobody can reach them any more, and when the interpreter exits.
    """

    def __init__(self) -> None:
        self._pools: dict[Hashable, _Pool] = {}
        weakref.finalize(self, _abandon_all, self._pools)

    def lease(self, key: Hashable, make: Callable[[], tuple[Any, Callable[[], Awaitable[None]]]]) -> PoolLease:
        """Return a share of the client of `key`; `make` returns a new client and what closes it."""
        if key not in self._pools:
            self._pools[key] = _Pool(*make())
        self._pools[key].users += 1
        return PoolLease(self, key, self._pools[key].client)

    async def leave(self, key: Hashable) -> None:
        """Count one user less, and close the client after the last."""
        pool = self._pools.get(key)
        if pool is None:
            return
        pool.users -= 1
        if pool.users == 0:
            del self._pools[key]
            await pool.close()

    async def aclose(self) -> None:
        """Close every client, also those in use. Safe to call twice."""
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.close()

    def abandon(self) -> None:
        """Close every client at once, without its event loop, which may be closed. Safe to call twice."""
        _abandon_all(self._pools)


def _abandon_all(pools: dict[Hashable, _Pool]) -> None:
    while pools:
        _, pool = pools.popitem()
        sockets.abandon(pool.client)


class PoolLease:
    """One user's share in a client."""

    def __init__(self, pools: Pools, key: Hashable, client: Any) -> None:
        self.client = client
        self._pools = pools
        self._key = key
        self._left = False

    async def aclose(self) -> None:
        """Leave. Safe to call twice."""
        if not self._left:
            self._left = True
            await self._pools.leave(self._key)
