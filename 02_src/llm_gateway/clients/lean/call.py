"""One call: a payload as LangChain built it goes out, and the answer comes back whole or record by record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

import aiohttp

from llm_gateway.clients.lean.coding import decode_object, encode
from llm_gateway.clients.lean.faults import AnswerTooLargeError
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.records import Framing

Record = dict[str, Any]
Reading = Callable[[bytes], tuple[Any, bool]]
"""Returns what LangChain is to get of one record, None for nothing, and whether it was the last of the answer.

Raises for a record that tells of an error."""

LONGEST_FAREWELL = 1.0  # seconds that a server gets to end the body of an answer that is whole
EXTRAS = ("extra_headers", "extra_query", "extra_body")  # what every SDK takes beside the body


async def answered(http: Http, target: Target, payload: Record, *, timeout: float | None = None) -> Record:  # noqa: ASYNC109 - aiohttp's own
    """Return the JSON object that answers a payload. `timeout` is as `Http.open` takes it."""
    target, body = prepared(target, payload)
    return decode_object(await http.post(target, body, timeout=timeout))


async def streamed(
    http: Http,
    target: Target,
    payload: Record,
    framing: Framing,
    reading: Reading,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 - aiohttp's own
) -> Records:
    """Return the records that answer a payload, as they come. `timeout` is as `Http.open` takes it."""
    target, body = prepared(target, payload)
    return Records(await http.open(target, body, timeout=timeout), framing, reading, http.largest)


def prepared(target: Target, payload: Record) -> tuple[Target, bytes]:
    """Return where a payload goes and what goes there, its extras in their places."""
    if any(name in payload for name in EXTRAS):
        headers, query, more = (payload.get(name) or {} for name in EXTRAS)
        payload = {name: value for name, value in payload.items() if name not in EXTRAS} | more
        target = target.varied(headers, query) if headers or query else target
    return target, encode(payload)


class Records:
    """The records of one answer, in their order. Closes its connection when it ends, however it ends.

    LangChain does not close the streams of every SDK, so one that is dropped closes itself.
    """

    def __init__(self, response: aiohttp.ClientResponse, framing: Framing, reading: Reading, largest: int) -> None:
        self._response = response
        self._framing = framing
        self._reading = reading
        self._left = self._largest = largest  # bytes
        self._raw: Iterator[bytes] = iter(())
        self._over = False  # the body is
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            while not self._ended:
                for raw in self._raw:
                    record, last = self._reading(raw)
                    if last:
                        await self._finish()
                    if record is not None:
                        return record
                    if last:
                        break
                else:
                    await self._read()
        except BaseException:
            self._response.close()
            raise
        raise StopAsyncIteration

    async def _read(self) -> None:
        if self._over:
            self._ended = True
            return
        piece = await self._response.content.readany()
        self._left -= len(piece)
        if self._left < 0:
            raise AnswerTooLargeError(self._largest)
        self._over = not piece
        self._raw = self._framing.rest() if self._over else self._framing.feed(piece)

    async def _finish(self) -> None:
        """Read the end of the body, so that its connection can serve again; the answer is whole without it."""
        self._ended = True
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(LONGEST_FAREWELL):
                while await self._response.content.readany():
                    pass
        self._response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    def __del__(self) -> None:
        self._response.close()
