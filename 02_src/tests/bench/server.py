"""A server that answers as OpenAI and Anthropic do: fixed answers, as little work a request as Python can do.

Its own process, so that what it costs is not counted; lean, so that it does not eat the core beside the subject's.
The first part of a path says after how long it answers: "/500ms/v1/chat/completions". So does a prompt that holds
"[[wait 10]]", in seconds. A stream begins after that time, and its first piece says how long it was in truth.
`python -m bench.server` prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Any

from bench.cores import stay_on

TEXT = "A gateway queues, batches, paces and prices. " * 4
PIECES = 40  # of a stream
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 40,
    "total_tokens": 160,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 120, "output_tokens": 40},
}


def reply(answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\ncontent-length: %d\r\n\r\n"
        % len(body)
    )
    return head + body


def event(delta: dict[str, str], **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}]
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": choices,
    }
    return b"data: " + json.dumps(chunk | more).encode() + b"\n\n"


def piece(data: bytes) -> bytes:
    """Frame data as one chunk of HTTP."""
    return b"%x\r\n%s\r\n" % (len(data), data)


REPLIES = {b"chat/completions": reply(COMPLETION), b"messages": reply(MESSAGE)}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_REST = (
    b"".join(piece(event({"content": f" word {number}"})) for number in range(PIECES - 1))
    + piece(event({}, finish_reason="stop"))
    + piece(event({}, choices=[], usage=USAGE))
    + piece(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
STREAM_PAUSE = 0.002  # seconds from the first piece to the others
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
PATH = re.compile(rb"POST /(?:(\d+)ms/)?(?:v1/)?(chat/completions|messages)")
WAIT = re.compile(rb"\[\[wait ([0-9.]+)\]\]")
STREAMED = re.compile(rb'"stream": *true')


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after another."""

    def __init__(self) -> None:
        self.received = b""
        self.transport: asyncio.WriteTransport | None = None
        self.loop = asyncio.get_running_loop()

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
        request, self.received = self.received[:end], self.received[end:]
        self.answer(request, head_end)

    def answer(self, request: bytes, head_end: int) -> None:
        path = PATH.match(request)
        assert path is not None, request[:80]
        wait = WAIT.search(request, head_end)
        seconds = float(wait[1]) if wait else int(path[1] or 0) / 1e3
        if STREAMED.search(request, head_end):
            self.loop.call_later(seconds, self.begin, time.perf_counter())
        elif seconds:
            self.loop.call_later(seconds, self.write, REPLIES[path[2]])
        else:
            self.write(REPLIES[path[2]])

    def begin(self, since: float) -> None:
        """Begin a stream; its first word is the time since the request came, in seconds."""
        waited = f"{time.perf_counter() - since:.6f}"
        self.write(STREAM_HEAD + piece(event({"role": "assistant", "content": waited})))
        self.loop.call_later(STREAM_PAUSE, self.write, STREAM_REST)

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the parent learns the port
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, help="the core to stay on")
    stay_on(parser.parse_args().core)
    asyncio.run(serve())
