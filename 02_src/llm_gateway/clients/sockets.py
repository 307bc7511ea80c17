"""Closing HTTP clients whose event loop may be gone: with no await, no task, and no warning afterwards.

Nothing public in the HTTP libraries closes a client without its loop, so this walks their private attributes down to
asyncio's transports. Where a name has moved, the walk finds nothing and leaves the sockets to the garbage collector; a
test fails then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

# From an SDK's client, through those of httpx and httpx2, to what holds sockets: `client` and `_connector` are
# aiohttp's, `_pool` to `_stream` httpcore's, `transport_stream` anyio's TLS over TCP, `_ssl_protocol` asyncio's.
STEPS = (
    "_client", "_transport", "_mounts", "client", "_connector", "_conns", "_acquired", "transport", "_pool",
    "connections", "_connection", "_network_stream", "_stream", "transport_stream", "_ssl_protocol",
)  # fmt: skip


def abandon(client: Any) -> None:
    """Close the sockets of an HTTP client at once, or as soon as its loop, if that runs in another thread, lets it.

    Its calls under way fail. Safe to call twice, and in any thread.
    """
    found = list(_walk(client))
    transports = [each for each in found if isinstance(each, asyncio.BaseTransport)]
    for loop in {getattr(each, "_loop", None) for each in transports}:
        if loop is not None and loop.is_running() and loop is not _running_loop():
            with suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(abandon, client)
            return
    for each in transports:
        _sever(each)
    for each in found:
        if hasattr(each, "detach") and hasattr(each, "_connector"):
            _retire(each)


def _walk(root: Any) -> Iterator[Any]:
    """Return what can be reached over STEPS, the nearer first; each object once."""
    seen = {id(root)}
    waiting = deque([root])
    while waiting:
        each = waiting.popleft()
        yield each
        if isinstance(each, Mapping):
            inner = list(each.values())
        elif isinstance(each, list | tuple | set | deque):
            inner = list(each)
        else:
            inner = [getattr(each, name, None) for name in STEPS]
        for part in inner:
            if part is not None and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


def _sever(transport: Any) -> None:
    loop = getattr(transport, "_loop", None)
    with suppress(RuntimeError):  # its loop is closed, and cannot call what closes the socket
        transport.abort()
    if loop is not None and loop.is_closed() and hasattr(transport, "_call_connection_lost"):
        with suppress(Exception):  # the protocol above may want its loop; the socket is closed all the same
            transport._call_connection_lost(None)  # noqa: SLF001 - see above


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _retire(session: Any) -> None:
    """Mark an aiohttp session and its connector as closed, so that they do not complain to a loop that is gone."""
    connector = session._connector  # noqa: SLF001 - see above
    session.detach()
    # Those in use are severed; were they closed too, whoever reads from one would never hear that it broke.
    getattr(connector, "_acquired", set()).clear()
    close = getattr(connector, "_close", None)
    if close is not None:
        with suppress(RuntimeError):
            close()
