"""Every way a stream can fail, per provider, over real HTTP: before its first piece and after it, never as a whole."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, connected, request, tool
from fakes.emulator import Emulator, Reply, ToolCall, Usage
from fakes.streams import Streamed, streamed
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
    StreamInterruptedError,
)

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)
TEXT = "a secret answer of six words"
STALL_TIMEOUT = 0.3


async def outcome(emulator: Emulator, kind: str, reply: Reply, **options: Any) -> Streamed:
    """What becomes of a stream that the provider answers with `reply`; exactly one call is made, and nothing leaks."""
    emulator.script(reply)
    async with connected(emulator, kind, **options) as client:
        seen = await streamed(client, request(request_id="r1", tools=[tool("look")]))
        await emulator.settled()
    assert len(emulator.ledger) == 1
    return seen


@every_kind
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RequestRejectedError),
        (401, AuthenticationError),
        (402, QuotaExhaustedError),
        (404, ModelNotFoundError),
        (413, RequestRejectedError),
        (429, RateLimitError),
        (500, ProviderUnavailableError),
        (503, ProviderUnavailableError),
        (529, ProviderOverloadedError),
    ],
)
async def test_a_refusal_is_the_error_that_a_plain_call_gets(
    emulator: Emulator, kind: str, status: int, expected: type[ProviderError]
) -> None:
    emulator.default = Reply(status=status, headers={"retry-after": "7", "x-ratelimit-remaining-requests": "0"})
    async with connected(emulator, kind) as client:
        seen = await streamed(client, request(request_id="r1"))
        with pytest.raises(ProviderError) as plain:
            await client.generate(request(request_id="r1"))
    error = seen.failure
    assert seen.pieces == []
    assert type(error) is expected
    assert (str(error), vars(error)) == (str(plain.value), vars(plain.value))
    assert (error.status, error.retry_after, error.headers) == (status, 7.0, {"x-ratelimit-remaining-requests": "0"})
    assert error.__cause__ is not None
    assert len(emulator.ledger) == 2


BROKEN = {
    "reset": ProviderUnavailableError,
    "cut_body": IncompleteResponseError,
    "stall": ProviderTimeoutError,
    "bad_json": IncompleteResponseError,
    "odd_event": IncompleteResponseError,
    "no_finish": IncompleteResponseError,
}


@every_kind
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("fault", BROKEN)
async def test_a_stream_that_breaks_keeps_its_pieces_and_is_never_whole(
    emulator: Emulator, kind: str, fault: Any, after: int
) -> None:
    timeout = STALL_TIMEOUT if fault == "stall" else 20.0
    seen = await outcome(emulator, kind, Reply(text=TEXT, fault=fault, after=after), timeout=timeout)
    if fault == "reset":  # it may overtake what was sent before
        assert TEXT.startswith(seen.text)
    else:
        assert seen.texts == TEXT.replace(" ", "| ").split("|")[:after]
    error = seen.failure
    assert type(error) in {BROKEN[fault], IncompleteResponseError} if fault == "reset" else type(error) is BROKEN[fault]
    assert error.retryable
    assert (error.provider, error.request_id) == (kind, "r1")
    assert "secret" not in str(error)


@every_kind
@pytest.mark.parametrize("after", [0, 3])
async def test_an_error_event_after_status_200_is_the_providers_error(
    emulator: Emulator, kind: str, after: int
) -> None:
    seen = await outcome(emulator, kind, Reply(text=TEXT, fault="error_event", after=after))
    assert len(seen.texts) == after
    expected = {"anthropic": ProviderOverloadedError}.get(kind, ProviderUnavailableError)
    assert type(seen.failure) is expected
    assert seen.failure.retryable


def openai_error(code: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": "as the code says", "type": kind, "param": None, "code": code}}


def anthropic_error(kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": "as the type says"}}


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("openai", openai_error("rate_limit_exceeded", "tokens"), RateLimitError),
        ("openai", openai_error("insufficient_quota", "insufficient_quota"), QuotaExhaustedError),
        ("openai", openai_error("context_length_exceeded"), ContextLengthError),
        ("openai", openai_error(None, "server_error"), ProviderUnavailableError),
        ("anthropic", anthropic_error("rate_limit_error"), RateLimitError),
        ("anthropic", anthropic_error("api_error"), ProviderUnavailableError),
        ("anthropic", anthropic_error("timeout_error"), ProviderTimeoutError),
        ("anthropic", anthropic_error("invalid_request_error"), RequestRejectedError),
        ("ollama", {"error": "llama runner process has terminated"}, ProviderUnavailableError),
    ],
)
async def test_the_code_in_an_error_event_says_what_it_is(
    emulator: Emulator, kind: str, body: dict[str, Any], expected: type[ProviderError]
) -> None:
    seen = await outcome(emulator, kind, Reply(text=TEXT, fault="error_event", after=2, error=body))
    assert type(seen.failure) is expected
    assert seen.failure.retryable is expected.retryable
    assert seen.text == "a secret"


@every_kind
@pytest.mark.parametrize("fault", ["html", "empty_object", "bad_json", "reset", "cut_body"])
async def test_what_is_no_stream_at_all_is_a_failure(emulator: Emulator, kind: str, fault: Any) -> None:
    seen = await outcome(emulator, kind, Reply(text="one", fault=fault))
    assert isinstance(seen.failure, ProviderUnavailableError)
    assert seen.failure.retryable


@every_kind
async def test_a_stream_without_any_event_is_a_failure(
    emulator: Emulator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("openai.OpenAI", "anthropic.Anthropic", "ollama.Ollama"):
        monkeypatch.setattr(f"fakes.emulator.{name}.frames", lambda *_: [])
    seen = await outcome(emulator, kind, Reply())
    assert type(seen.failure) is IncompleteResponseError


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_stream_may_break_within_a_tool_call(emulator: Emulator, kind: str) -> None:
    calls = (ToolCall(name="look", args={"where": "up above the world"}),)
    seen = await outcome(emulator, kind, Reply(text="", tool_calls=calls, fault="no_finish", after=2))
    assert type(seen.failure) is IncompleteResponseError
    [(_, name, arguments)] = seen.calls()
    assert name == "look"
    assert "world" not in arguments


async def test_arguments_that_are_no_json_make_the_answer_unreadable(emulator: Emulator) -> None:
    seen = await outcome(emulator, "openai", Reply(tool_calls=(ToolCall(name="look", args='{"where": '),)))
    assert type(seen.failure) is IncompleteResponseError
    assert "call of tool 'look'" in str(seen.failure)


@pytest.mark.parametrize("args", ["[1]", "5", "[" * 100_000])
async def test_arguments_that_are_no_object_make_the_answer_unreadable(emulator: Emulator, args: str) -> None:
    seen = await outcome(emulator, "openai", Reply(text="", tool_calls=(ToolCall(name="look", args=args),)))
    assert type(seen.failure) is IncompleteResponseError


@every_kind
async def test_a_broken_event_closes_the_connection_while_its_error_is_kept(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text=TEXT, fault="odd_event", after=2, pace=0.02))
    async with connected(emulator, kind) as client:
        error = (await streamed(client, request())).failure
        await emulator.settled()
        [call] = emulator.ledger
        assert (call.disconnected, call.finished) == (True, False)
    assert type(error) is IncompleteResponseError


@every_kind
async def test_a_broken_stream_leaves_its_client_as_good_as_before(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text=TEXT, fault="cut_body"), Reply(text=TEXT, fault="error_event"), Reply(text="fine"))
    async with connected(emulator, kind) as client:
        for _ in range(2):
            assert (await streamed(client, request())).failure.retryable
        assert (await streamed(client, request())).whole.content == "fine"


@every_kind
@pytest.mark.parametrize("after", [0, 2])
async def test_a_key_that_an_error_event_echoes_is_nowhere_in_the_error(
    emulator: Emulator, kind: str, after: int
) -> None:
    text = f"Incorrect API key provided: {CANARY}."
    body: dict[str, Any] = {"error": text} if kind == "ollama" else {"error": {"type": "x", "message": text}}
    if kind == "anthropic":
        body["type"] = "error"
    error = (await outcome(emulator, kind, Reply(text=TEXT, fault="error_event", after=after, error=body))).failure
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + str(error.__cause__)
    assert CANARY not in shown
    assert "provided: [key]." in str(error)
    assert error.__context__ is None


@every_kind
async def test_nobody_at_the_address_is_unavailable(kind: str) -> None:
    async with Emulator.serve() as gone:
        pass
    async with connected(gone, kind) as client:
        seen = await streamed(client, request())
    assert type(seen.failure) is ProviderUnavailableError


async def test_what_an_interrupted_stream_says(emulator: Emulator) -> None:
    seen = await outcome(emulator, "anthropic", Reply(text=TEXT, fault="error_event", after=3, usage=Usage(input=5)))
    error = StreamInterruptedError(seen.failure, partial=seen.text)
    assert str(error) == (
        "The answer broke off after 15 characters, which are in `.partial`: anthropic is overloaded: Overloaded."
    )
    assert (error.partial, error.retryable, error.request_id) == ("a secret answer", True, "r1")
    assert "secret" not in error.summary
    assert error.cause is seen.failure
