"""One line of an output: what became of a row, in the format that the row came in."""

from __future__ import annotations

import json
from typing import Any

import orjson

from llm_gateway.cli.rows import Malformed, Row
from llm_gateway.clock import utc_now
from llm_gateway.errors import ProviderError
from llm_gateway.models import LLMResponse, LLMToolCall, TokenUsage


def answered(row: Row, response: LLMResponse) -> bytes:
    """Return the line of a row that was answered."""
    if row.form == "openai":
        body = {"status_code": 200, "request_id": response.request_id, "body": _completion(response)}
        return _line(_batch_line(row.line, response.request_id, body, None))
    answer = response.model_dump()
    return _line({"request_id": response.request_id, "line": row.line, "status": "ok", "response": answer})


def failed(row: Row | Malformed, error: Exception) -> bytes:
    """Return the line of a row that has no answer."""
    request_id = row.request.request_id if isinstance(row, Row) else row.request_id
    kind, retryable = getattr(error, "kind", "bug"), bool(getattr(error, "retryable", False))
    if row.form == "gateway":
        told: dict[str, Any] = {"kind": kind, "message": str(error), "retryable": retryable}
        if isinstance(error, ProviderError):
            told["attempts"] = error.attempts
        return _line({"request_id": request_id, "line": row.line, "status": "error", "error": told})
    status = error.status if isinstance(error, ProviderError) else None
    if status is None:
        return _line(_batch_line(row.line, request_id, None, {"code": kind, "message": str(error)}))
    # OpenAI keeps `error` for rows that got no HTTP answer.
    body = {"error": {"message": str(error), "type": kind, "param": None, "code": kind}}
    return _line(
        _batch_line(row.line, request_id, {"status_code": status, "request_id": request_id, "body": body}, None)
    )


def _batch_line(line: int, custom_id: str | None, response: Any, error: Any) -> dict[str, Any]:
    return {"id": f"batch_req_{line}", "custom_id": custom_id, "response": response, "error": error}


def _completion(response: LLMResponse) -> dict[str, Any]:
    usage = response.receipt.usage if response.receipt else None
    calls = [_call(call) for call in response.tool_calls or ()]
    message: dict[str, Any] = {"role": "assistant", "content": response.content, "refusal": None}
    if response.finish_reason == "refusal":
        message |= {"content": None, "refusal": response.content}
    if calls:
        message |= {"content": response.content or None, "tool_calls": calls}
    reason = "stop" if response.finish_reason == "refusal" else response.finish_reason
    return {
        "id": f"chatcmpl-{response.request_id}",
        "object": "chat.completion",
        "created": int(utc_now().timestamp()),
        "model": response.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": _usage(usage) if usage else None,
    }


def _call(call: LLMToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _line(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a surrogate pair, as an answer that was cut in an emoji may hold; JSON can escape it
        return json.dumps(fields).encode() + b"\n"
