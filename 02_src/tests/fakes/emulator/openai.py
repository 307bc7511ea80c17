"""OpenAI's chat completions, as `POST /v1/chat/completions` answers."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson

from fakes.emulator.dialect import MODELS, Json, Piece, arguments, pieces, usage_of, vector_of
from fakes.emulator.limits import Standing
from fakes.emulator.script import Api, Call, Reply

CREATED = 1_760_000_000  # any instant does; a fixed one keeps answers equal
ABBREVIATIONS = {"requests": "RPM", "tokens": "TPM", "input-tokens": "TPM", "output-tokens": "TPM"}
ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("Invalid request.", "invalid_request_error", None),
    401: ("Incorrect API key provided: sk-…. Check your API key.", "invalid_request_error", "invalid_api_key"),
    403: (
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    404: (
        "The model `{model}` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    429: (
        "Rate limit reached for {model} on requests per min (RPM): Limit 3, Used 3, Requested 1.",
        "requests",
        "rate_limit_exceeded",
    ),
    503: ("The engine is currently overloaded, please try again later", "server_error", None),
}
CLIENT_ERROR = ("The request could not be processed.", "invalid_request_error", None)
SERVER_ERROR = ("The server had an error while processing your request. Sorry about that!", "server_error", None)


class OpenAI:
    """The words of OpenAI."""

    api: Api = "openai"
    stream_type = "text/event-stream; charset=utf-8"
    required: tuple[str, ...] = ("model", "messages")

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return a `chat.completion`."""
        message: Json = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
        if reply.tool_calls:
            message |= {"content": reply.text or None, "tool_calls": self._tool_calls(call, reply)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish(reply)}
        return self._envelope(call, "chat.completion") | {"choices": [choice], "usage": self._usage(call, reply)}

    def frames(self, call: Call, reply: Reply) -> list[bytes]:
        """Return `chat.completion.chunk` events, a usage chunk where it was asked for, and `[DONE]`."""
        deltas: list[Json] = [{"role": "assistant", "content": "", "refusal": None}]
        # Not OpenAI's own API tells this, but those of many servers that speak it.
        deltas += [{"reasoning_content": piece} for piece in pieces(reply.reasoning)]
        deltas += [{"content": piece} for piece in pieces(reply.text)]
        for index, tool in enumerate(self._tool_calls(call, reply)):
            function = tool["function"]
            start = tool | {"index": index, "function": {"name": function["name"], "arguments": ""}}
            deltas.append({"tool_calls": [start]})
            for piece in pieces(function["arguments"]):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        chunks = [self._chunk(call, delta) for delta in deltas]
        if reply.fault == "no_finish":
            return [*map(_event, chunks)]
        chunks.append(self._chunk(call, {}, self._finish(reply)))
        if (call.body.get("stream_options") or {}).get("include_usage"):
            last = {"choices": [], "usage": self._usage(call, reply)}
            chunks = [chunk | {"usage": None} for chunk in chunks]
            chunks.append(self._envelope(call, "chat.completion.chunk") | last)
        frames = [*map(_event, chunks)]
        return frames if reply.fault == "no_last_event" else [*frames, b"data: [DONE]\n\n"]

    def error_frame(self, call: Call, reply: Reply) -> bytes:
        """Return a `data:` event that carries an error object."""
        return _event(reply.error or self.error(call, 500))

    def odd_frame(self) -> bytes:
        """Return a list, where a chunk is an object."""
        return b"data: [5]\n\n"

    def error(self, call: Call, status: int, message: str | None = None) -> Json:
        """Return `{"error": …}` with message, type, param and code."""
        text, kind, code = ERRORS.get(status, CLIENT_ERROR if status < 500 else SERVER_ERROR)
        text = message or text.replace("{model}", call.model)
        return {"error": {"message": text, "type": kind, "param": None, "code": code}}

    def limited(self, call: Call, resource: str, standing: Standing, *, too_large: bool) -> Json:
        """Return the body of `rate_limit_exceeded`."""
        kind = "requests" if resource == "requests" else "tokens"
        which = f"for {call.model} in organization org-emulator on {kind} per min ({ABBREVIATIONS[resource]})"
        if too_large:
            text = f"Request too large {which}: Limit {standing.limit}, Requested {standing.requested}."
        else:
            used = standing.limit - standing.remaining
            text = (
                f"Rate limit reached {which}: Limit {standing.limit}, Used {used}, Requested {standing.requested}. "
                f"Please try again in {duration(standing.wait)}."
            )
        return {"error": {"message": text, "type": kind, "param": None, "code": "rate_limit_exceeded"}}

    def headers(self, call: Call) -> dict[str, str]:
        """Return the request id and the marks of the real API."""
        return {
            "x-request-id": f"req_{call.number:032x}",
            "openai-version": "2020-10-01",
            "openai-organization": "org-emulator",
            "openai-processing-ms": "1",
        }

    def limit_headers(self, standings: Mapping[str, Standing]) -> dict[str, str]:
        """Return `x-ratelimit-*`; resets are durations such as `6m0s` or `20ms`."""
        headers = {}
        for resource in ("requests", "tokens"):
            if standing := standings.get(resource):
                headers[f"x-ratelimit-limit-{resource}"] = str(standing.limit)
                headers[f"x-ratelimit-remaining-{resource}"] = str(standing.remaining)
                headers[f"x-ratelimit-reset-{resource}"] = duration(standing.reset)
        return headers

    def models(self) -> Json:
        """Return what `GET /v1/models` answers."""
        rows = [{"id": name, "object": "model", "created": CREATED, "owned_by": "system"} for name in MODELS]
        return {"object": "list", "data": rows}

    def _envelope(self, call: Call, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{call.number:024x}",
            "object": kind,
            "created": CREATED,
            "model": call.model,
            "service_tier": call.body.get("service_tier", "default"),
            "system_fingerprint": "fp_emulator",
        }

    def _chunk(self, call: Call, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._envelope(call, "chat.completion.chunk") | {"choices": [choice]}

    def _tool_calls(self, call: Call, reply: Reply) -> list[Json]:
        return [
            {
                "id": tool.get("id", f"call_{call.number:020x}{index:04x}"),
                "type": "function",
                "function": {"name": tool["name"], "arguments": arguments(tool)},
            }
            for index, tool in enumerate(reply.tool_calls)
        ]

    def _finish(self, reply: Reply) -> str | None:
        if reply.fault == "no_finish":
            return None
        return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")

    def _usage(self, call: Call, reply: Reply) -> Json:
        usage = usage_of(call, reply)
        return {
            "prompt_tokens": usage["input"],
            "completion_tokens": usage["output"],
            "total_tokens": usage["input"] + usage["output"],
            "prompt_tokens_details": {"cached_tokens": usage["cache_read"], "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": usage["reasoning"],
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class OpenAIVectors(OpenAI):
    """`POST /v1/embeddings`."""

    required: tuple[str, ...] = ("model", "input")

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return a vector of each text, the last text's first: the API promises an index, not an order."""
        rows = [
            {"object": "embedding", "index": place, "embedding": self._vector(call, text)}
            for place, text in enumerate(call.body["input"])
        ]
        tokens = usage_of(call, reply)["input"]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": rows[::-1], "model": call.model, "usage": usage}

    def _vector(self, call: Call, text: str) -> list[float] | str:
        numbers = vector_of(text)
        return b64encode(numbers).decode() if call.body.get("encoding_format") == "base64" else numbers.tolist()


def duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: `20ms`, `1.5s`, `6m0s`; rounded up to the millisecond."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _event(data: Mapping[str, Any]) -> bytes:
    frame = b"data: " + orjson.dumps(data) + b"\n\n"
    delta = data["choices"][0].get("delta", {}) if data.get("choices") else {}
    calls = delta.get("tool_calls") or [{"function": {}}]
    carries = delta.get("content") or delta.get("reasoning_content") or calls[0]["function"].get("arguments")
    return Piece(frame) if carries else frame
