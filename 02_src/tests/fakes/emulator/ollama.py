"""Ollama's chat, as `POST /api/chat` answers."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from fakes.emulator.dialect import MODELS, Json, Piece, arguments_object, pieces, usage_of, vector_of
from fakes.emulator.limits import Standing
from fakes.emulator.script import Api, Call, Reply

CREATED_AT = "2025-10-09T08:53:20.000000Z"  # any instant does; a fixed one keeps answers equal
ERRORS = {
    400: "invalid request",
    401: "unauthorized",
    404: "model '{model}' not found",
    429: "too many requests",
    503: "server busy, please try again.  maximum pending requests exceeded",
}


class Ollama:
    """The words of Ollama."""

    api: Api = "ollama"
    stream_type = "application/x-ndjson"
    required: tuple[str, ...] = ("model",)

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return the message and the counts in one object."""
        return self._line(call, reply.text, reply) | self._end(call, reply)

    def frames(self, call: Call, reply: Reply) -> list[bytes]:
        """Return one line a piece and the `done` line; `no_finish` ends without it."""
        lines = [self._line(call, "", thinking=piece) | {"done": False} for piece in pieces(reply.reasoning)]
        lines += [self._line(call, piece) | {"done": False} for piece in pieces(reply.text)]
        if reply.tool_calls:
            lines.append(self._line(call, "", reply) | {"done": False})
        frames: list[bytes] = [Piece(_frame(line)) for line in lines]
        if reply.fault == "no_finish":
            return frames
        return [*frames, _frame(self._line(call, "") | self._end(call, reply))]

    def error_frame(self, call: Call, reply: Reply) -> bytes:
        """Return a line that carries nothing but an error."""
        return _frame(reply.error or self.error(call, 500))

    def odd_frame(self) -> bytes:
        """Return a line whose message is none."""
        return _frame({"model": "m", "message": 5, "done": False})

    def error(self, call: Call, status: int, message: str | None = None) -> Json:
        """Return `{"error": "…"}`, all that Ollama says."""
        text = ERRORS.get(status, "invalid request" if status < 500 else "an error was encountered while running it")
        return {"error": message or text.replace("{model}", call.model)}

    def limited(self, call: Call, resource: str, standing: Standing, *, too_large: bool) -> Json:
        """Return the body of a 429."""
        how = "this request is larger than" if too_large else "reached"
        return self.error(call, 429, f"too many requests: {how} the limit of {standing.limit} {resource} a minute")

    def headers(self, call: Call) -> dict[str, str]:  # noqa: ARG002 - the seam's signature; Ollama gives no request id
        """Return nothing: Ollama adds no header of its own."""
        return {}

    def limit_headers(self, standings: Mapping[str, Standing]) -> dict[str, str]:  # noqa: ARG002 - the seam's signature
        """Return nothing: Ollama tells no limits."""
        return {}

    def models(self) -> Json:
        """Return what `GET /api/tags` answers."""
        details = {"format": "gguf", "family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"}
        rows = [
            {"name": name, "model": name, "modified_at": CREATED_AT, "size": 1, "digest": "0" * 64, "details": details}
            for name in MODELS
        ]
        return {"models": rows}

    def _line(self, call: Call, text: str, reply: Reply | None = None, *, thinking: str = "") -> Json:
        message: Json = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if reply and reply.tool_calls:
            message["tool_calls"] = [
                {
                    "id": tool.get("id", f"call_{call.number:04x}{index:04x}"),
                    "function": {"index": index, "name": tool["name"], "arguments": arguments_object(tool)},
                }
                for index, tool in enumerate(reply.tool_calls)
            ]
        return {"model": call.model, "created_at": CREATED_AT, "message": message}

    def _end(self, call: Call, reply: Reply) -> Json:
        if reply.fault == "no_finish":
            return {"done": False}
        usage = usage_of(call, reply)
        return {
            "done_reason": reply.finish_reason or "stop",
            "done": True,
            "total_duration": 2_000_000,  # durations in nanoseconds
            "load_duration": 500_000,
            "prompt_eval_count": usage["input"],
            "prompt_eval_duration": 500_000,
            "eval_count": usage["output"],
            "eval_duration": 1_000_000,
        }


class OllamaVectors(Ollama):
    """`POST /api/embed`."""

    required: tuple[str, ...] = ("model", "input")

    def answer(self, call: Call, reply: Reply) -> Json:
        """Return a vector of each text."""
        vectors = [vector_of(text).tolist() for text in call.body["input"]]
        return {"model": call.model, "embeddings": vectors, "prompt_eval_count": usage_of(call, reply)["input"]}


def _frame(line: Mapping[str, object]) -> bytes:
    return orjson.dumps(line) + b"\n"
