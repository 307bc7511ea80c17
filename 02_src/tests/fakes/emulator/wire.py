"""Putting an answer on the wire, whole or broken as asked."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from fakes.emulator.dialect import Dialect, Piece
from fakes.emulator.script import Call, Reply

JSON_TYPE = "application/json"
PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>"


async def send(
    request: web.BaseRequest, dialect: Dialect, call: Call, reply: Reply, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer `request` with `reply`; `call` learns the status and whether the answer went out whole."""
    if reply.fault == "reset" and reply.after is None:
        return _reset(request)
    call.status = reply.status
    content_type, parts = _body(dialect, call, reply)
    response = web.StreamResponse(
        status=reply.status, headers={"content-type": content_type, **headers, **reply.headers}
    )
    if len(parts) == 1:
        response.content_length = len(parts[0])
    await response.prepare(request)
    broken = reply.fault in {"cut_body", "stall", "reset"}
    for number, part in enumerate(_broken_off(parts, reply) if broken else parts):
        if number and reply.pace:
            await asyncio.sleep(reply.pace)
        await response.write(part)
        call.pieces += isinstance(part, Piece)
    if reply.fault == "stall":
        await asyncio.Event().wait()  # the client's leaving cancels this
    if reply.fault == "reset":
        return _reset(request)
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
    match reply.fault:
        case "bad_json":
            place = 0 if reply.after is None else _place(frames, reply)
            end = frames[place][len(frames[place].rstrip()) :]  # the event is framed well, its JSON is not
            return [*frames[:place], frames[place][: len(frames[place]) // 2] + end, *frames[place + 1 :]]
        case "error_event":
            return [*frames[: _place(frames, reply)], dialect.error_frame(call, reply)]
        case "odd_event":
            place = _place(frames, reply)
            return [*frames[:place], dialect.odd_frame(), *frames[place:]]
        case "no_finish" if reply.after is not None:
            return frames[: _place(frames, reply)]
        case _:
            return frames


def _place(frames: Sequence[bytes], reply: Reply) -> int:
    """Return how many frames go out before the fault: half of them, or those that bring `after` pieces."""
    if reply.after is None:
        return (len(frames) + 1) // 2 if len(frames) > 1 else 0
    pieces = [number for number, frame in enumerate(frames) if isinstance(frame, Piece)]
    if reply.after > len(pieces):
        raise ValueError(f"after={reply.after} is more than the {len(pieces)} pieces of this answer")
    return pieces[reply.after - 1] + 1 if reply.after else pieces[0]


def _broken_off(parts: Sequence[bytes], reply: Reply) -> Sequence[bytes]:
    """Return the parts before the fault and half of the next, so that a cut stream has carried some text."""
    whole = _place(parts, reply)
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
