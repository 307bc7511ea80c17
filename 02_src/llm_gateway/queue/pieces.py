"""The pieces of a streamed answer, on their way from the call to the caller."""

from __future__ import annotations

import asyncio
from collections import deque

from llm_gateway.models import LLMResponse, StreamDelta, TextDelta

MOST_WAITING = 256  # pieces; a caller that is slower than its provider makes the provider wait


class Pieces:
    """What came and was not taken yet. One call puts, one caller takes; not for several of either."""

    def __init__(self, reply: asyncio.Future[LLMResponse]) -> None:
        self._reply = reply
        self._waiting: deque[StreamDelta] = deque()
        self._text: list[str] = []
        self._wake: asyncio.Future[None] | None = None  # of whoever waits: the call for room, the caller for a piece
        self.count = 0
        reply.add_done_callback(lambda _: self._rouse())

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(self._text)

    async def put(self, piece: StreamDelta) -> None:
        """Hand on a piece; wait while the caller is far behind."""
        self.count += 1
        if isinstance(piece, TextDelta):
            self._text.append(piece.text)
        self._waiting.append(piece)
        self._rouse()
        while len(self._waiting) >= MOST_WAITING and not self._reply.done():
            await self._sleep()

    async def take(self) -> StreamDelta | None:
        """Return the next piece; None once there will be no more: the reply is settled."""
        while not self._waiting:
            if self._reply.done():
                return None
            await self._sleep()
        piece = self._waiting.popleft()
        if len(self._waiting) == MOST_WAITING // 2:
            self._rouse()
        return piece

    async def _sleep(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _rouse(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)
