"""Every way a call can fail, per provider, over real HTTP: which error it becomes, and what that error says."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, connected, request
from fakes.emulator import Emulator, Reply, ToolCall
from llm_gateway.errors import (
    AuthenticationError,
    ContextLengthError,
    IncompleteResponseError,
    ModelNotFoundError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitError,
    RequestRejectedError,
)

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)


async def failure(emulator: Emulator, kind: str, reply: Reply, **options: Any) -> ProviderError:
    """What becomes of a call that the provider answers with `reply`; exactly one call is made."""
    emulator.script(reply)
    async with connected(emulator, kind, **options) as client:
        with pytest.raises(ProviderError) as caught:
            await client.generate(request(request_id="r1"))
    assert len(emulator.ledger) == 1
    return caught.value


@every_kind
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RequestRejectedError),
        (401, AuthenticationError),
        (402, QuotaExhaustedError),
        (403, AuthenticationError),
        (404, ModelNotFoundError),
        (405, RequestRejectedError),
        (408, ProviderTimeoutError),
        (409, ProviderUnavailableError),
        (413, RequestRejectedError),
        (422, RequestRejectedError),
        (429, RateLimitError),
        (500, ProviderUnavailableError),
        (502, ProviderUnavailableError),
        (503, ProviderUnavailableError),
        (504, ProviderUnavailableError),
        (529, ProviderOverloadedError),
    ],
)
async def test_a_status_becomes_one_error_after_one_call(
    emulator: Emulator, kind: str, status: int, expected: type[ProviderError]
) -> None:
    error = await failure(emulator, kind, Reply(status=status))
    assert type(error) is expected
    assert error.retryable is expected.retryable
    assert (error.status, error.provider, error.request_id) == (status, kind, "r1")
    assert f"(HTTP {status})" in str(error)
    assert error.__cause__ is not None


@every_kind
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("reset", ProviderUnavailableError),
        ("cut_body", IncompleteResponseError),
        ("stall", ProviderTimeoutError),
        ("html", IncompleteResponseError),
        ("bad_json", IncompleteResponseError),
        ("empty_object", IncompleteResponseError),
        ("no_finish", IncompleteResponseError),
    ],
)
async def test_a_broken_answer_is_never_returned_as_a_whole_one(
    emulator: Emulator, kind: str, fault: Any, expected: type[ProviderError]
) -> None:
    timeout = 0.3 if fault == "stall" else 20.0
    error = await failure(emulator, kind, Reply(text="a secret answer", fault=fault), timeout=timeout)
    assert type(error) is expected
    assert error.retryable
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("openai", IncompleteResponseError),
        ("anthropic", IncompleteResponseError),
        ("ollama", ProviderUnavailableError),
    ],
)
async def test_an_error_inside_a_success_is_a_failure(
    emulator: Emulator, kind: str, expected: type[ProviderError]
) -> None:
    error = await failure(emulator, kind, Reply(fault="error_event"))
    assert type(error) is expected
    assert error.retryable


def openai_error(code: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": "as the code says", "type": kind, "param": None, "code": code}}


def anthropic_error(kind: str, **details: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": "as the type says", "details": details or None}}


@pytest.mark.parametrize(
    ("kind", "status", "body", "expected"),
    [
        ("openai", 429, openai_error("insufficient_quota", "insufficient_quota"), QuotaExhaustedError),
        ("openai", 429, openai_error("billing_hard_limit_reached"), QuotaExhaustedError),
        ("openai", 429, openai_error("rate_limit_exceeded", "tokens"), RateLimitError),
        ("openai", 429, openai_error("resource_unavailable"), ProviderOverloadedError),
        ("openai", 503, openai_error("server_is_overloaded", "service_unavailable_error"), ProviderOverloadedError),
        ("openai", 400, openai_error("context_length_exceeded"), ContextLengthError),
        ("openai", 400, openai_error(None, "exceed_context_size_error"), ContextLengthError),
        ("openai", 400, openai_error("content_policy_violation"), RequestRejectedError),
        ("anthropic", 429, anthropic_error("rate_limit_error"), RateLimitError),
        (
            "anthropic",
            429,
            anthropic_error("rate_limit_error", error_code="enforced_spend_limit_reached"),
            QuotaExhaustedError,
        ),
        ("anthropic", 400, anthropic_error("billing_error"), QuotaExhaustedError),
        ("anthropic", 500, anthropic_error("overloaded_error"), ProviderOverloadedError),
    ],
)
async def test_a_code_tells_more_than_its_status(
    emulator: Emulator, kind: str, status: int, body: dict[str, Any], expected: type[ProviderError]
) -> None:
    error = await failure(emulator, kind, Reply(status=status, error=body))
    assert type(error) is expected
    assert error.retryable is expected.retryable


async def test_a_prompt_that_is_too_long_is_told_apart_as_langchain_does(emulator: Emulator) -> None:
    body = anthropic_error("invalid_request_error")
    body["error"]["message"] = "prompt is too long: 210000 tokens > 200000 maximum"
    error = await failure(emulator, "anthropic", Reply(status=400, error=body))
    assert type(error) is ContextLengthError
    assert "Shorten the messages" in str(error)


@every_kind
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "350"}, 0.35),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_the_providers_pause_is_passed_on(
    emulator: Emulator, kind: str, status: int, headers: dict[str, str], wait: float | None
) -> None:
    error = await failure(emulator, kind, Reply(status=status, headers=headers))
    assert error.retry_after == wait


@every_kind
@pytest.mark.parametrize(
    ("status", "word", "expected"), [(429, "false", "given up"), (400, "true", "retried"), (500, "maybe", "retried")]
)
async def test_the_providers_own_word_on_retrying_overrides_the_status(
    emulator: Emulator, kind: str, status: int, word: str, expected: str
) -> None:
    error = await failure(emulator, kind, Reply(status=status, headers={"x-should-retry": word}))
    assert ("retried" if error.retryable else "given up") == expected


async def test_an_empty_account_is_not_retried_whatever_the_headers_say(emulator: Emulator) -> None:
    body = openai_error("insufficient_quota", "insufficient_quota")
    reply = Reply(status=429, error=body, headers={"x-should-retry": "true", "retry-after": "1"})
    assert (await failure(emulator, "openai", reply)).retryable is False


@every_kind
@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_a_key_that_the_provider_echoes_is_nowhere_in_the_error(
    emulator: Emulator, kind: str, status: int
) -> None:
    text = f"Incorrect API key provided: {CANARY}, also known as {CANARY[:5]}***{CANARY[-4:]}."
    body = {"error": text} if kind == "ollama" else {"error": {"type": "x", "message": text}}
    error = await failure(emulator, kind, Reply(status=status, error=body))
    seen = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + str(error.__cause__)
    assert CANARY not in seen
    assert "[key], also known as [key]" in str(error)
    assert error.__context__ is None


async def test_long_words_of_the_provider_are_shortened(emulator: Emulator) -> None:
    body = openai_error(None)
    body["error"]["message"] = "word " * 1000
    error = await failure(emulator, "openai", Reply(status=400, error=body))
    assert len(str(error)) < 400
    assert str(error).endswith("…")


async def test_refusals_name_the_remedy(emulator: Emulator) -> None:
    refused = await failure(emulator, "openai", Reply(status=401))
    assert "Check [providers.openai] api_key." in str(refused)


async def test_an_unknown_model_names_the_place_to_correct(emulator: Emulator) -> None:
    missing = await failure(emulator, "anthropic", Reply(status=404))
    assert "has no model 'claude-haiku-4-5'" in str(missing)
    assert "Check [models.m] model and [providers.anthropic] base_url." in str(missing)


@every_kind
async def test_nobody_at_the_address_is_unavailable(kind: str) -> None:
    async with Emulator.serve() as gone:
        pass
    async with connected(gone, kind) as client:
        with pytest.raises(ProviderUnavailableError) as caught:
            await client.generate(request())
    assert gone.url.removeprefix("http://") in str(caught.value)


@every_kind
async def test_a_redirect_is_not_followed(emulator: Emulator, kind: str) -> None:
    reply = Reply(status=307, headers={"location": f"{emulator.url}/elsewhere"})
    error = await failure(emulator, kind, reply)
    assert not error.retryable
    assert error.status == 307


async def test_arguments_that_are_no_json_make_the_answer_unreadable(emulator: Emulator) -> None:
    reply = Reply(tool_calls=(ToolCall(name="weather", args='{"city": '),))
    error = await failure(emulator, "openai", reply)
    assert type(error) is IncompleteResponseError
    assert "call of tool 'weather'" in str(error)
