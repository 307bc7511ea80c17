"""One line of an output: what became of a row, in the format that the row came in."""

from __future__ import annotations

import json
from typing import Any

from llm_gateway.clock import utc_now
from llm_gateway.jobs.encoding import from_json, to_json
from llm_gateway.jobs.records import StoredResult
from llm_gateway.models import LLMResponse, LLMToolCall, TokenUsage


def line_of(result: StoredResult) -> bytes:
    """Return the line of a row that has ended."""
    if result.form == "openai":
        return _line(_of_openai(result))
    ok = result.kind is None
    head = to_json({"request_id": result.key, "line": result.number, "status": "ok" if ok else "error"})[:-1]
    if ok:  # the answer is JSON already
        return b'%b,"response":%b}\n' % (head, result.body)
    told = from_json(result.body)
    error = {name: told[name] for name in ("kind", "message", "retryable")}
    if result.attempts:
        error["attempts"] = result.attempts
    return b'%b,"error":%b}\n' % (head, to_json(error))


def _of_openai(result: StoredResult) -> dict[str, Any]:
    told = from_json(result.body)
    if result.kind is None:
        response = LLMResponse(**told)
        body = {"status_code": 200, "request_id": response.request_id, "body": _completion(response)}
        return _batch_line(result.number, response.request_id, body, None)
    kind, message, status = told["kind"], told["message"], told.get("status")
    if status is None:
        return _batch_line(result.number, result.key, None, {"code": kind, "message": message})
    # OpenAI keeps `error` for rows that got no HTTP answer.
    answer = {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    answered = {"status_code": status, "request_id": result.key, "body": answer}
    return _batch_line(result.number, result.key, answered, None)


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
    return to_json(fields) + b"\n"
