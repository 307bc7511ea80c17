"""The emulator's HTTP server: who may call, what is answered, and the ledger of it all."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import orjson
from aiohttp import web

from fakes.emulator.anthropic import Anthropic
from fakes.emulator.batches import Batches
from fakes.emulator.dialect import Dialect, estimated_input, usage_of
from fakes.emulator.limits import Limits, Meter, Refusal
from fakes.emulator.ollama import Ollama, OllamaVectors
from fakes.emulator.openai import OpenAI, OpenAIVectors
from fakes.emulator.script import Call, Reply
from fakes.emulator.wire import JSON_TYPE, send

OPENAI, ANTHROPIC, OLLAMA = OpenAI(), Anthropic(), Ollama()
CHATS: dict[str, Dialect] = {
    "/v1/chat/completions": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/api/chat": OLLAMA,
    "/v1/embeddings": OpenAIVectors(),
    "/api/embed": OllamaVectors(),
}
LISTS: dict[str, Dialect] = {"/v1/models": OPENAI, "/api/tags": OLLAMA}
SHORTEST_GRACE = 0.01  # seconds; aiohttp takes 0 for "wait for ever"


class Emulator:
    """A provider that answers as a test tells it. Lives in the loop it was served in."""

    def __init__(self, *, limits: Limits | None, clock: Callable[[], float], record: bool) -> None:
        self.url = ""
        self.default = Reply()
        self.answer: Callable[[Call], Reply | None] | None = None  # asked first; None passes on to the script
        self.ledger: list[Call] = []
        self.batches = Batches()
        self._replies: deque[Reply] = deque()
        self._key: str | None = None
        self._clock = clock
        self._record = record
        self._count = 0
        self._encoded: dict[tuple[object, ...], tuple[bytes, str]] = {}  # the answers of `_encoded_for`
        self._encoded_for = self.default
        dialects = (OPENAI, ANTHROPIC, OLLAMA)
        self._meters = {dialect.api: Meter(limits, clock()) for dialect in dialects} if limits else {}
        self._changed = asyncio.Event()
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def serve(
        cls,
        port: int = 0,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        record: bool = True,
        grace: float = 0.0,
    ) -> AsyncIterator[Self]:
        """Serve on loopback until the block is left; calls still running then get `grace` seconds to end.

        Without `record` the ledger stays empty, and plain answers are encoded once and sent again and again.
        """
        emulator = cls(limits=limits, clock=clock, record=record)
        server = web.Server(emulator._handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=grace or SHORTEST_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
            emulator.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield emulator
        finally:
            emulator._closing = True
            await runner.cleanup()
            await emulator.settled()

    def script(self, *replies: Reply) -> None:
        """Answer the next chat calls with these, in order, after those scripted before."""
        self._replies.extend(replies)

    def check_key(self, key: str) -> None:
        """From now on answer 401 to every call that brings another key."""
        self._key = key

    async def arrived(self, count: int) -> None:
        """Wait until the ledger holds `count` calls."""
        await self._until(lambda: len(self.ledger) >= count)

    async def settled(self) -> None:
        """Wait until nothing more happens to any call in the ledger, also where its client left."""
        await self._until(lambda: all(call.ended for call in self.ledger))

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if (answer := await self.batches.handle(request)) is not None:
            return answer
        raw = await request.read()
        body = _parsed(raw)
        if not self._record and (encoded := self._plain(request, body)):
            if self.default.latency:
                await asyncio.sleep(self.default.latency)
            return web.Response(body=encoded[0], headers={"content-type": encoded[1]})
        self._count += 1
        call = Call(
            number=self._count,
            api=_dialect(request).api,
            path=request.path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            at=self._clock(),
        )
        if self._record:
            self.ledger.append(call)
        self._tell()
        try:
            return await self._respond(request, call)
        except (asyncio.CancelledError, ConnectionError):
            call.disconnected = not self._closing
            raise
        finally:
            call.ended = True
            self._tell()

    async def _respond(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        dialect = _dialect(request)
        headers = dialect.headers(call)
        if self._key is not None and call.key != self._key:
            return await send(request, dialect, call, Reply(status=401), headers)
        if request.method == "GET" and request.path in LISTS:
            call.status, call.finished = 200, True
            return web.json_response(dialect.models(), headers=headers)
        if problem := _problem(request, dialect, call):
            return await send(request, dialect, call, problem, headers)
        meter = self._meters.get(call.api)
        if meter and (refusal := meter.admit(_admission_costs(call), self._clock())):
            reply = _refused(dialect, call, refusal)
            return await send(request, dialect, call, reply, headers | dialect.limit_headers(meter.standings()))
        reply = self._choose(call)
        if reply.latency:
            await asyncio.sleep(reply.latency)
        if meter:
            meter.charge(_produced_costs(call, reply), self._clock())
            headers |= dialect.limit_headers(meter.standings())
        return await send(request, dialect, call, reply, headers)

    def _choose(self, call: Call) -> Reply:
        if self.answer and (reply := self.answer(call)):
            return reply
        return self._replies.popleft() if self._replies else self.default

    def _plain(self, request: web.BaseRequest, body: Any) -> tuple[bytes, str] | None:
        """Return the encoded default answer and its content type, if nothing asks for more than that."""
        dialect = CHATS.get(request.path)
        asked = self._replies or self.answer or self._meters or self._key is not None
        plain = self.default == Reply(text=self.default.text, latency=self.default.latency)
        if asked or not plain or not dialect or not isinstance(body, dict):
            return None
        if self._encoded_for is not self.default:
            self._encoded.clear()
            self._encoded_for = self.default
        key = (request.path, body.get("model"), body.get("stream"), "stream_options" in body)
        if key not in self._encoded:
            call = Call(number=0, api=dialect.api, path=request.path, headers={}, body=body, at=0.0)
            if call.streams:
                self._encoded[key] = (b"".join(dialect.frames(call, self.default)), dialect.stream_type)
            else:
                self._encoded[key] = (orjson.dumps(dialect.answer(call, self.default)), JSON_TYPE)
        return self._encoded[key]


def _dialect(request: web.BaseRequest) -> Dialect:
    if request.path == "/v1/models" and "anthropic-version" in request.headers:
        return ANTHROPIC
    return CHATS.get(request.path) or LISTS.get(request.path) or (OLLAMA if request.path[:5] == "/api/" else OPENAI)


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return None


def _problem(request: web.BaseRequest, dialect: Dialect, call: Call) -> Reply | None:
    """Return what the real API answers to a call it cannot take."""
    if request.path not in CHATS or request.method != "POST":
        message = f"Invalid URL ({request.method} {request.path})"
        return Reply(status=404, error=dialect.error(call, 404, message))
    if not isinstance(call.body, dict):
        return Reply(status=400, error=dialect.error(call, 400, "The body of your request is not valid JSON."))
    missing = [name for name in dialect.required if name not in call.body]
    if missing:
        return Reply(status=400, error=dialect.error(call, 400, f"{missing[0]}: Field required"))
    return None


def _admission_costs(call: Call) -> dict[str, float]:
    """Return what a call is charged before it runs: OpenAI counts on `max_tokens`, the others see input alone."""
    prompt = float(estimated_input(call.body))
    tokens = prompt
    if call.api == "openai":
        tokens = max(prompt, float(call.body.get("max_completion_tokens") or call.body.get("max_tokens") or 0))
    return {"requests": 1.0, "tokens": tokens, "input-tokens": prompt}


def _produced_costs(call: Call, reply: Reply) -> dict[str, float]:
    """Return what the answer is charged on top, once it exists; cached input is given back."""
    if reply.status >= 400:
        return {}
    usage = usage_of(call, reply)
    correction = float(usage["input"] - usage["cache_read"] - estimated_input(call.body))
    output = float(usage["output"])
    if call.api == "openai":  # charged at admission, never trued up
        return {"output-tokens": output}
    return {"tokens": output + correction, "input-tokens": correction, "output-tokens": output}


def _refused(dialect: Dialect, call: Call, refusal: Refusal) -> Reply:
    body = dialect.limited(call, refusal.resource, refusal.standing, too_large=refusal.too_large)
    reply = Reply(status=429, error=body)
    if refusal.too_large:
        return reply
    wait = refusal.standing.wait
    hints = {"retry-after": str(-int(-wait // 1))}  # whole seconds, rounded up
    if call.api == "openai":
        hints["retry-after-ms"] = str(-int(-wait * 1000 // 1))
    return replace(reply, headers=hints)
