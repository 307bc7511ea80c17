"""The lean transport and the SDK's, side by side: what is sent and what comes of it is the same, field by field."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, connected, request, said, tool
from fakes.emulator import Call, Emulator, Reply, ToolCall, Usage
from llm_gateway.clients.base import Completion
from llm_gateway.errors import ProviderError
from llm_gateway.models import LLMRequest, LLMToolCall, StreamDelta

every_kind = pytest.mark.parametrize("kind", KINDS)
LOOK = tool("look", {"where": {"type": "string"}}, required=["where"])
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LIMITS = {"X-RateLimit-Remaining-Requests": "7", "anthropic-ratelimit-tokens-limit": "1000", "retry-after": "3"}
CONVERSATION = [
    said("system", "Be brief. Ünïcödé 🎈"),
    said("user", "Where?"),
    said("assistant", "I look.", tool_calls=[LLMToolCall(id="call_1", name="look", arguments={"where": "up"})]),
    said("tool", "clouds", tool_call_id="call_1"),
    said("user", "And now?"),
]
PICTURE = said(
    "user",
    [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ],
)
REQUESTS = {
    "plain": request(request_id="r"),
    "all": request(*CONVERSATION, tools=[LOOK], stop=["END"], max_tokens=9, temperature=0.5, request_id="r"),
    "picture": request(PICTURE, request_id="r"),
    "schema": request(response_format=SCHEMA, request_id="r"),
    "forced": request(tools=[LOOK], tool_choice="none", request_id="r"),
    "long": request(said("user", "word " * 100_000), request_id="r"),
    "huge number": request(
        said("user", "?"),
        said("assistant", "", tool_calls=[LLMToolCall(id="c", name="look", arguments={"where": 10**30})]),
        said("tool", "up", tool_call_id="c"),
        tools=[LOOK],
        request_id="r",
    ),
}
REPLIES = {
    "text": Reply(text="One, two,\n three 🎈 ", headers=LIMITS),
    "usage": Reply(usage=Usage(input=100, output=20, cache_read=40, cache_write=10, cache_write_1h=5, reasoning=7)),
    "nonsense usage": Reply(usage=Usage(input=3, output=-5)),
    "tools": Reply(text="", tool_calls=(ToolCall(name="look", args={"where": "up"}, id="a"),)),
    "broken tool": Reply(
        text="", tool_calls=(ToolCall(name="look", args='{"where": ', id="a"),), finish_reason="length"
    ),
    "empty": Reply(text=""),
    "thinking": Reply(text="Yes.", reasoning="Well. "),
    "cut": Reply(text="and so on", finish_reason="length"),
}
FAILURES = {
    **{f"status {status}": Reply(status=status, headers=LIMITS) for status in (307, 400, 401, 404, 413, 429, 500, 529)},
    "no words": Reply(status=400, error={"error": {"code": "context_length_exceeded"}}),
    "a prompt too long": Reply(status=400, error={"error": {"message": "prompt is too long: 9 > 8", "type": "x"}}),
    "a key": Reply(status=401, error={"error": {"message": f"no such key: {CANARY}", "type": "x"}}),
    "html": Reply(fault="html"),
    "bad_json": Reply(fault="bad_json"),
    "empty_object": Reply(fault="empty_object"),
    "no_finish": Reply(fault="no_finish"),
    "error_event": Reply(fault="error_event"),
    "cut_body": Reply(fault="cut_body"),
    "reset": Reply(fault="reset"),
}
# Where the provider says nothing, each library has words of its own for what it met.
OWN_WORDS = {"status 307", "no words", "html", "bad_json", "empty_object", "error_event", "cut_body", "reset"}


async def asked(
    emulator: Emulator, kind: str, reply: Reply, request: LLMRequest, transport: str, **options: Any
) -> tuple[Completion | ProviderError, Call]:
    emulator.script(reply)
    async with connected(emulator, kind, transport=transport, **options) as client:
        try:
            outcome: Completion | ProviderError = await client.generate(request)
        except ProviderError as error:
            outcome = error
    return outcome, emulator.ledger[-1]


async def both(
    emulator: Emulator, kind: str, reply: Reply, request: LLMRequest = REQUESTS["plain"], **options: Any
) -> tuple[Completion | ProviderError, Completion | ProviderError]:
    """What becomes of one call over each transport; the calls themselves must be the same."""
    (lean, sent), (sdk, sent_by_sdk) = [
        await asked(emulator, kind, reply, request, transport, **options) for transport in ("lean", "sdk")
    ]
    assert sent.body == sent_by_sdk.body
    assert (sent.path, sent.key) == (sent_by_sdk.path, sent_by_sdk.key)
    return lean, sdk


def told(outcome: Completion | ProviderError, kind: str) -> dict[str, Any]:
    """All that a caller can see of an outcome, but ids: the emulator counts calls in them, or LangChain draws them."""
    if isinstance(outcome, Completion):
        calls = [call.model_dump(exclude={"id"}) for call in outcome.tool_calls]
        headers = dict(outcome.headers)
        return asdict(replace(outcome, tool_calls=(), headers={})) | {"calls": calls, "headers": headers, "kind": kind}
    return vars(outcome) | {"type": type(outcome), "retryable": outcome.retryable, "text": str(outcome)}


@every_kind
@pytest.mark.parametrize("case", REPLIES)
async def test_answers_over_both_transports_are_equal(emulator: Emulator, kind: str, case: str) -> None:
    reply = REPLIES[case]
    if kind == "anthropic" and reply.finish_reason == "length":
        reply = replace(reply, finish_reason="max_tokens")
    if kind != "openai" and case in {"broken tool", "nonsense usage"}:
        reply = replace(reply, tool_calls=(), usage=None)  # what the emulator's other APIs cannot say
    lean, sdk = await both(emulator, kind, reply)
    assert isinstance(lean, Completion)
    assert told(lean, kind) == told(sdk, kind)


@every_kind
@pytest.mark.parametrize("case", REQUESTS)
async def test_requests_over_both_transports_are_equal(emulator: Emulator, kind: str, case: str) -> None:
    model = {"model": "claude-opus-5-5"} if kind == "anthropic" and case == "schema" else {}
    lean, sdk = await both(emulator, kind, Reply(text="ok"), REQUESTS[case], **model)
    assert told(lean, kind) == told(sdk, kind)


@every_kind
@pytest.mark.parametrize("case", FAILURES)
async def test_failures_over_both_transports_are_equal(emulator: Emulator, kind: str, case: str) -> None:
    reply = FAILURES[case]
    if kind == "ollama" and reply.error:
        reply = replace(reply, error={"error": reply.error["error"].get("message", "no")})
    lean, sdk = await both(emulator, kind, reply)
    assert isinstance(lean, ProviderError)
    mine, theirs = told(lean, kind), told(sdk, kind)
    if case in OWN_WORDS:
        mine["text"] = theirs["text"] = None
    assert mine == theirs
    assert CANARY not in str(lean)


OPTIONS: dict[str, dict[str, Any]] = {
    "openai": {
        "seed": 7,
        "default_headers": {"X-Team": "blue", "User-Agent": "ours"},
        "default_query": {"version": "3"},
        "extra_body": {"top_k": 3},
        "organization": "org-1",
        "model_kwargs": {"extra_headers": {"x-more": "yes"}, "extra_query": {"and": "so"}},
    },
    "anthropic": {"top_p": 0.5, "default_headers": {"X-Team": "blue", "User-Agent": "ours"}},
    "ollama": {"top_k": 3, "keep_alive": "5m", "reasoning": True},
}


@every_kind
async def test_constructor_options_reach_the_provider_over_both(emulator: Emulator, kind: str) -> None:
    seen = []
    for transport in ("lean", "sdk"):
        _, call = await asked(emulator, kind, Reply(), REQUESTS["plain"], transport, options=OPTIONS[kind])
        named = {name: call.headers.get(name) for name in ("x-team", "user-agent", "openai-organization", "x-more")}
        seen.append((named if kind != "ollama" else None, call.path, call.body))
    assert seen[0] == seen[1]


@every_kind
@pytest.mark.parametrize("case", ["text", "usage", "tools", "thinking", "empty"])
async def test_streams_over_both_transports_are_equal(emulator: Emulator, kind: str, case: str) -> None:
    outcomes: list[list[StreamDelta | dict[str, Any]]] = []
    for transport in ("lean", "sdk"):
        emulator.script(replace(REPLIES[case], tool_calls=()))
        async with connected(emulator, kind, transport=transport) as client:
            pieces = [piece async for piece in client.stream(REQUESTS["plain"])]
        outcomes.append([told(piece, kind) if isinstance(piece, Completion) else piece for piece in pieces])
    assert outcomes[0] == outcomes[1]
    assert emulator.ledger[0].body == emulator.ledger[1].body


@pytest.mark.parametrize("transport", ["lean", "sdk"])
@pytest.mark.parametrize(
    "options", [{"use_responses_api": True}, {"include_response_headers": True}, {"streaming": True}]
)
async def test_openais_other_ways_stay_open(emulator: Emulator, transport: str, options: dict[str, Any]) -> None:
    outcome, call = await asked(emulator, "openai", Reply(), REQUESTS["plain"], transport, options=options)
    if "use_responses_api" in options:
        assert call.path == "/v1/responses"  # which the emulator does not speak
    else:
        assert isinstance(outcome, Completion)
        assert (call.path, outcome.content) == ("/v1/chat/completions", "ok")


@pytest.mark.parametrize("transport", ["lean", "sdk"])
async def test_what_is_in_beta_at_anthropic_goes_through_its_sdk(emulator: Emulator, transport: str) -> None:
    _, call = await asked(
        emulator, "anthropic", Reply(), REQUESTS["plain"], transport, options={"betas": ["files-api-2025-04-14"]}
    )
    assert "files-api-2025-04-14" in call.headers["anthropic-beta"]
