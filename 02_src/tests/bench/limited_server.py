"""A server with true limits: continuous buckets, as providers keep them, and a ledger of who was let in and when.

Its own process, and a bare protocol: what it costs must not be what is measured. A prompt begins with
"[[answer SECONDS TOKENS]]", which is how long and how large its answer will be. Requests are charged when they arrive,
and so are input tokens; the answer's tokens when it has been produced, however many are left. A call that does not fit
gets a 429 that says when it would, and is not charged. `python -m bench.limited_server --rpm 6000` prints its port;
`GET /ledger` returns what happened, instants in seconds on the machine's monotonic clock; `GET /refused` only how many
calls were refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import time
from functools import partial
from typing import Any

from bench.workload import MARK, input_tokens

from fakes.emulator.limits import Limits, Meter

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
FIRST_LINE = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"


class Ledger:
    """The limits and what became of each call. Calls without a mark are charged and not counted: they warm up."""

    def __init__(self, limits: Limits) -> None:
        self.began = time.monotonic()
        self._meter = Meter(limits, self.began)
        self.arrived: list[float] = []
        self.statuses: list[int] = []
        self.tokens: list[int] = []

    def admit(self, body: dict[str, Any], now: float) -> tuple[float, int, int] | float:
        """Return seconds, input and output tokens of the answer; of a call that does not fit the seconds until then."""
        text = "".join(message["content"] for message in body["messages"])
        marked = MARK.search(text)
        seconds, output = (float(marked[1]), int(marked[2])) if marked else (0.0, 1)
        tokens = input_tokens(text)
        refusal = self._meter.admit({"requests": 1.0, "tokens": float(tokens)}, now)
        if marked:
            self.arrived.append(now)
            self.statuses.append(429 if refusal else 200)
            self.tokens.append(0 if refusal else tokens + output)
        return (seconds, tokens, output) if refusal is None else refusal.standing.wait

    def produced(self, output: int, now: float) -> None:
        """Charge an answer, whether there are tokens left or not."""
        self._meter.charge({"tokens": float(output)}, now)

    def told(self) -> bytes:
        return json.dumps({"arrived": self.arrived, "statuses": self.statuses, "tokens": self.tokens}).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after another."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
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
        head, body = self.received[:head_end], self.received[head_end + 4 : end]
        self.received = self.received[end:]
        if head.startswith(b"GET /refused"):
            self.send(b"200 OK", b"%d" % self.ledger.statuses.count(429))
        elif head.startswith(b"GET /ledger"):
            self.send(b"200 OK", self.ledger.told())
        else:
            self.answer(json.loads(body))

    def answer(self, body: dict[str, Any]) -> None:
        admitted = self.ledger.admit(body, time.monotonic())
        if isinstance(admitted, float):
            hint = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (math.ceil(admitted), math.ceil(admitted * 1000))
            self.send(b"429 Too Many Requests", REFUSAL, hint)
            return
        seconds, tokens, output = admitted
        asyncio.get_running_loop().call_later(seconds, self.produce, tokens, output)

    def produce(self, tokens: int, output: int) -> None:
        self.ledger.produced(output, time.monotonic())
        usage = {"prompt_tokens": tokens, "completion_tokens": output, "total_tokens": tokens + output}
        self.send(b"200 OK", ANSWER % json.dumps(usage).encode())

    def send(self, status: bytes, body: bytes, headers: bytes = b"") -> None:
        if self.transport is not None:
            self.transport.write(FIRST_LINE % (status, headers, len(body)) + body)


ANSWER = (
    b'{"id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18", '
    b'"choices": [{"index": 0, "message": {"role": "assistant", "content": "A gateway waits its turn."}, '
    b'"logprobs": null, "finish_reason": "stop"}], "usage": %s}'
)
REFUSAL = json.dumps(
    {"error": {"message": "Rate limit reached.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
).encode()


async def serve(limits: Limits) -> None:
    ledger = Ledger(limits)
    server = await asyncio.get_running_loop().create_server(partial(Connection, ledger), "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the parent learns the port
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--tpm", type=float)
    parser.add_argument("--burst-seconds", type=float, default=1.0)
    given = parser.parse_args()
    asyncio.run(serve(Limits(rpm=given.rpm, tpm=given.tpm, burst_seconds=given.burst_seconds)))


if __name__ == "__main__":
    main()
