"""Anthropic's messages, as `POST /v1/messages` answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from fakes.emulator.dialect import MODELS, Json, Piece, arguments, arguments_object, pieces, usage_of
from fakes.emulator.limits import Standing
from fakes.emulator.script import Api, Call, Reply

ERRORS = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: {model}"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
CLIENT_ERROR = ("invalid_request_error", "The request could not be processed.")
SERVER_ERROR = ("api_error", "Internal server error")


class Anthropic:
    """The words of Anthropic."""

    api: Api = "anthropic"
    stream_type = "text/event-stream; charset=utf-8"
    required: tuple[str, ...] = ("model", "max_tokens", "messages")

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return a `message`."""
        blocks: list[Json] = [{"type": "text", "text": reply.text}] if reply.text else []
        blocks += [
            {
                "type": "tool_use",
                "id": self._tool_id(call, index),
                "name": tool["name"],
                "input": arguments_object(tool),
            }
            | ({"id": tool["id"]} if "id" in tool else {})
            for index, tool in enumerate(reply.tool_calls)
        ]
        usage = self._usage(call, reply)
        return self._message(call, usage) | {"content": blocks, "stop_reason": self._stop(reply)}

    def frames(self, call: Call, reply: Reply) -> list[bytes]:
        """Return `message_start` to `message_stop`; `no_finish` ends after the last block."""
        usage = self._usage(call, reply)
        start = self._message(call, usage | {"output_tokens": 1}) | {"content": [], "stop_reason": None}
        frames = [_event("message_start", message=start)]
        blocks: list[tuple[Json, list[Json]]] = []
        if reply.reasoning:
            thoughts: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(reply.reasoning)]
            signature = {"type": "signature_delta", "signature": "c2lnbmF0dXJl"}
            blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*thoughts, signature]))
        if reply.text:
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(reply.text)]
            blocks.append(({"type": "text", "text": ""}, deltas))
        for index, tool in enumerate(reply.tool_calls):
            identifier = tool.get("id", self._tool_id(call, index))
            head = {"type": "tool_use", "id": identifier, "name": tool["name"], "input": {}}
            inputs = ["", *pieces(arguments(tool))]  # the real API begins with nothing
            blocks.append((head, [{"type": "input_json_delta", "partial_json": piece} for piece in inputs]))
        for index, (head, deltas) in enumerate(blocks):
            frames.append(_event("content_block_start", index=index, content_block=head))
            if index == 0:
                frames.append(_event("ping"))
            frames += [_delta(index, delta) for delta in deltas]
            frames.append(_event("content_block_stop", index=index))
        if reply.fault == "no_finish":
            return frames
        end = {"stop_reason": self._stop(reply), "stop_sequence": None}
        # The real API repeats the counts here, but neither the split of the cache writes nor the tier.
        counts = {name: count for name, count in usage.items() if name.endswith(("_tokens", "_details"))}
        frames.append(_event("message_delta", delta=end, usage=counts))
        return frames if reply.fault == "no_last_event" else [*frames, _event("message_stop")]

    def error_frame(self, call: Call, reply: Reply) -> bytes:
        """Return an `error` event, `overloaded_error` if the reply names none."""
        return _event("error", **(reply.error or self.error(call, 529)))

    def odd_frame(self) -> bytes:
        """Return a delta of nothing."""
        return _event("content_block_delta", index=0)

    def error(self, call: Call, status: int, message: str | None = None) -> Json:
        """Return `{"type": "error", "error": {type, message}, "request_id": …}`."""
        kind, text = ERRORS.get(status, CLIENT_ERROR if status < 500 else SERVER_ERROR)
        details = {"type": kind, "message": message or text.replace("{model}", call.model)}
        return {"type": "error", "error": details, "request_id": self._request_id(call)}

    def limited(self, call: Call, resource: str, standing: Standing, *, too_large: bool) -> Json:
        """Return the body of `rate_limit_error`."""
        what = "This request alone exceeds" if too_large else "This request would exceed"
        quota = f"{standing.limit:,} {resource.replace('-', ' ')} per minute"
        return self.error(call, 429, f"{what} your organization's rate limit of {quota}.")

    def headers(self, call: Call) -> dict[str, str]:
        """Return the request id and the organization."""
        return {"request-id": self._request_id(call), "anthropic-organization-id": "org-emulator"}

    def limit_headers(self, standings: Mapping[str, Standing]) -> dict[str, str]:
        """Return `anthropic-ratelimit-*`; resets are instants (RFC 3339), remaining tokens rounded to thousands."""
        headers = {}
        for resource, standing in standings.items():
            instant = datetime.now(UTC) + timedelta(seconds=math.ceil(standing.reset))
            remaining = standing.remaining if resource == "requests" else round(standing.remaining, -3)
            headers[f"anthropic-ratelimit-{resource}-limit"] = str(standing.limit)
            headers[f"anthropic-ratelimit-{resource}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{resource}-reset"] = instant.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    def models(self) -> Json:
        """Return what `GET /v1/models` answers."""
        rows = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-10-01T00:00:00Z"} for name in MODELS
        ]
        return {"data": rows, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}

    def _message(self, call: Call, usage: Json) -> Json:
        return {
            "id": f"msg_{call.number:024x}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stop(self, reply: Reply) -> str | None:
        if reply.fault == "no_finish":
            return None
        return reply.finish_reason or ("tool_use" if reply.tool_calls else "end_turn")

    def _usage(self, call: Call, reply: Reply) -> Json:
        usage = usage_of(call, reply)
        written = usage["cache_write"] + usage["cache_write_1h"]
        details = {"output_tokens_details": {"thinking_tokens": usage["reasoning"]}} if usage["reasoning"] else {}
        return {
            "input_tokens": max(0, usage["input"] - usage["cache_read"] - written),  # what no cache had a part in
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": usage["cache_read"],
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage["cache_write"],
                "ephemeral_1h_input_tokens": usage["cache_write_1h"],
            },
            "output_tokens": usage["output"],
            "service_tier": "standard",
            **details,
        }

    def _tool_id(self, call: Call, index: int) -> str:
        return f"toolu_{call.number:020x}{index:04x}"

    def _request_id(self, call: Call) -> str:
        return f"req_{call.number:024x}"


def _delta(index: int, delta: Json) -> bytes:
    frame = _event("content_block_delta", index=index, delta=delta)
    carries = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
    return Piece(frame) if carries else frame


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind} | fields) + b"\n\n"
