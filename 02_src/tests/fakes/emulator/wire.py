"""Putting an answer on the wire, whole or broken as asked."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from fakes.emulator.dialect import Dialect
from fakes.emulator.script import Call, Reply

JSON_TYPE = "application/json"
PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>"


async def send(
    request: web.BaseRequest, dialect: Dialect, call: Call, reply: Reply, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer `request` with `reply`; `call` learns the status and whether the answer went out whole."""
    if reply.fault == "reset":
        return _reset(request)
    call.status = reply.status
    content_type, parts = _body(dialect, call, reply)
    response = web.StreamResponse(
        status=reply.status, headers={"content-type": content_type, **headers, **reply.headers}
    )
    if len(parts) == 1:
        response.content_length = len(parts[0])
    broken = reply.fault in {"cut_body", "stall"}
    await response.prepare(request)
    for part in _half(parts) if broken else parts:
        await response.write(part)
    if reply.fault == "stall":
        await asyncio.Event().wait()  # the client's leaving cancels this
    if broken:
        _close(request)
        return response
    await response.write_eof()
    call.finished = True
    return response


def _body(dialect: Dialect, call: Call, reply: Reply) -> tuple[str, Sequence[bytes]]:
    """Return the content type and the parts of the answer; one part is sent with its length, several in chunks."""
    if reply.status >= 400:
        return JSON_TYPE, [orjson.dumps(reply.error or dialect.error(call, reply.status))]
    if reply.fault == "html":
        return "text/html; charset=utf-8", [PAGE]
    if reply.fault == "empty_object":
        return JSON_TYPE, [b"{}"]
    if call.streams:
        return dialect.stream_type, _stream(dialect, call, reply)
    if reply.fault == "error_event":
        return JSON_TYPE, [orjson.dumps(reply.error or dialect.error(call, 500))]
    whole = orjson.dumps(dialect.answer(call, reply))
    return JSON_TYPE, [whole[: len(whole) // 2] if reply.fault == "bad_json" else whole]


def _stream(dialect: Dialect, call: Call, reply: Reply) -> Sequence[bytes]:
    frames = dialect.frames(call, reply)
    if reply.fault == "bad_json":
        end = frames[0][len(frames[0].rstrip()) :]  # the event is framed well, its JSON is not
        return [frames[0][: len(frames[0]) // 2] + end, *frames[1:]]
    if reply.fault == "error_event":
        return [*frames[: (len(frames) + 1) // 2], dialect.error_frame(call, reply)]
    return frames


def _half(parts: Sequence[bytes]) -> Sequence[bytes]:
    """Return the first half of the parts and half of the next, so that a cut stream has carried some text."""
    whole = (len(parts) + 1) // 2 if len(parts) > 1 else 0
    return [*parts[:whole], parts[whole][: len(parts[whole]) // 2]]


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    if transport := request.transport:
        # Lingering for zero seconds makes the close a RST instead of a FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    return web.Response()


def _close(request: web.BaseRequest) -> None:
    if transport := request.transport:
        transport.close()
