"""What stands in a line of an output."""

from __future__ import annotations

import json
from typing import Any

from fakes.provider import unavailable
from llm_gateway import InvalidRequestError, LLMResponse, LLMToolCall, QueueFullError, Receipt, TokenUsage
from llm_gateway.cli.results import line_of
from llm_gateway.cli.rows import Form
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.encoding import response_json
from llm_gateway.jobs.records import StoredResult

RECEIPT = Receipt(
    queue_wait=0.5,
    attempts=2,
    provider_time=1.5,
    deployment="openai/gpt-4o-mini",
    usage=TokenUsage(input_tokens=10, output_tokens=5, cache_read_tokens=4, reasoning_tokens=2),
    cost_usd=0.01,
)


def stored(form: Form, kind: str | None, body: bytes, *, key: str | None = "a", attempts: int = 1) -> StoredResult:
    return StoredResult(
        id=1,
        number=3,
        key=key,
        form=form,
        kind=kind,
        body=body,
        asked=attempts > 0,
        attempts=attempts,
        input_tokens=0,
        output_tokens=0,
        cost_usd=0.0,
        unpriced=0,
    )


def answered(form: Form, response: LLMResponse) -> bytes:
    return line_of(stored(form, None, response_json(response)))


def failed(form: Form, error: Exception, *, key: str | None = "a", attempts: int = 1) -> bytes:
    failure = failure_of(error)
    return line_of(stored(form, failure.kind, failure.body, key=key, attempts=attempts))


def response(**fields: Any) -> LLMResponse:
    given = {"request_id": "a", "content": "hi", "model": "gpt-4o-mini", "finish_reason": "stop", "receipt": RECEIPT}
    return LLMResponse(**{**given, **fields})


def line(text: bytes) -> Any:
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    return json.loads(text)


def test_an_answer_is_the_whole_response() -> None:
    told = line(answered("gateway", response()))
    assert {name: told[name] for name in ("request_id", "line", "status")} == {
        "request_id": "a",
        "line": 3,
        "status": "ok",
    }
    assert LLMResponse(**told["response"]) == response()


def test_half_a_character_does_not_lose_the_answer() -> None:
    assert line(answered("gateway", response(content="cut \ud83d")))["response"]["content"] == "cut \ud83d"


def test_a_failure_tells_its_kind_and_whether_it_could_pass() -> None:
    told = line(failed("gateway", unavailable(), attempts=5))
    assert told == {
        "request_id": "a",
        "line": 3,
        "status": "error",
        "error": {"kind": "unavailable", "message": "down", "retryable": True, "attempts": 5},
    }


def test_a_malformed_line_tells_its_number_where_it_has_no_id() -> None:
    told = line(failed("gateway", InvalidRequestError("not JSON."), key=None, attempts=0))
    assert told == {
        "request_id": None,
        "line": 3,
        "status": "error",
        "error": {"kind": "invalid_request", "message": "not JSON.", "retryable": False},
    }


def test_a_bug_is_told_as_one() -> None:
    assert line(failed("gateway", KeyError("x")))["error"]["kind"] == "bug"


def test_a_line_of_openai_gets_a_line_of_openais_output() -> None:
    told = line(answered("openai", response()))
    body = told["response"]["body"]
    assert (told["id"], told["custom_id"], told["error"]) == ("batch_req_3", "a", None)
    assert (told["response"]["status_code"], told["response"]["request_id"]) == (200, "a")
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-4o-mini")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def test_tool_calls_and_refusals_stand_where_openai_puts_them() -> None:
    calls = [LLMToolCall(id="c", name="weather", arguments={"city": "Rome"})]
    called = line(answered("openai", response(content="", tool_calls=calls, finish_reason="tool_calls")))
    message = called["response"]["body"]["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    ]
    refused = line(answered("openai", response(content="no", finish_reason="refusal", receipt=None)))
    choice = refused["response"]["body"]["choices"][0]
    assert (choice["message"]["content"], choice["message"]["refusal"], choice["finish_reason"]) == (None, "no", "stop")
    assert refused["response"]["body"]["usage"] is None


def test_an_http_error_stands_in_the_response_and_any_other_beside_it() -> None:
    http = line(failed("openai", unavailable()))
    assert (http["response"]["status_code"], http["error"]) == (503, None)
    assert http["response"]["body"]["error"]["message"] == "down"
    other = line(failed("openai", QueueFullError("m", depth=1, limit=1)))
    assert (other["response"], other["error"]["code"]) == (None, "queue_full")
