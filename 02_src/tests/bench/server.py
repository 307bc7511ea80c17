"""A server that answers at once: one fixed OpenAI chat completion, as little work a request as Python can do.

Its own process, so that what it costs is not counted; lean, so that it does not eat the core beside the subject's.
A prompt that holds "[[wait 10]]" is answered after ten seconds. `python -m bench.server` prints its port.
"""

from __future__ import annotations

import asyncio
import json
import re

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A gateway queues, batches, paces and prices. " * 4},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 120,
            "completion_tokens": 40,
            "total_tokens": 160,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
).encode()
REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n"
    b"content-length: " + str(len(ANSWER)).encode() + b"\r\n\r\n" + ANSWER
)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
WAIT = re.compile(rb"\[\[wait ([0-9.]+)\]\]")


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after another."""

    def __init__(self) -> None:
        self.received = b""
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.received += data
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = LENGTH.search(self.received, 0, head_end)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self.received) < end:
            return
        wait = WAIT.search(self.received, head_end, end)
        self.received = self.received[end:]
        if wait:
            asyncio.get_running_loop().call_later(float(wait[1]), self.reply)
        else:
            self.reply()

    def reply(self) -> None:
        if self.transport is not None:
            self.transport.write(REPLY)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the parent learns the port
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
