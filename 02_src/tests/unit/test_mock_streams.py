"""The mock's streams: the scripted answer in pieces, its pace, and where it breaks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from fakes.deployments import said
from fakes.streams import Streamed, streamed
from llm_gateway.clients.base import Deployment
from llm_gateway.clock import LoopClock
from llm_gateway.config import endpoint_of, load_config
from llm_gateway.errors import (
    ConfigurationError,
    IncompleteResponseError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    RateLimitError,
)
from llm_gateway.mock_gateway import UnmatchedRequestError
from llm_gateway.mock_gateway.calls import Ledger
from llm_gateway.mock_gateway.responses import load_responses
from llm_gateway.mock_gateway.scripted import Script, ScriptedClient, ScriptedClients
from llm_gateway.models import LLMRequest, ReasoningDelta, TextDelta, ToolCallDelta

CALL = {"name": "look", "arguments": {"where": "up above the world so high"}}


def ask(text: str = "hello") -> LLMRequest:
    return LLMRequest(model="claude-haiku", messages=[said("user", text)], request_id="r1")


def client(*replies: Any, seed: int = 0, **match: str) -> ScriptedClient:
    config = load_config({"providers": {"anthropic": {"timeout": 5.0}}})
    settings = config.models["claude-haiku"]
    endpoint = endpoint_of(config, settings.provider, {})
    rule = {"name": "it", "match": match, "replies": list(replies)}
    script = Script(load_responses({"rules": [rule]} if replies else {"default": {}}))
    clients = ScriptedClients(script, Ledger(), seed=seed, clock=LoopClock())
    return clients.connect(Deployment(name="claude-haiku", endpoint=endpoint, settings=settings))


async def outcome(reply: Any) -> tuple[Streamed, float]:
    """What a stream brings, and how long it takes."""
    seen = await streamed(client(reply), ask())
    return seen, asyncio.get_running_loop().time()


async def test_a_text_comes_word_by_word_and_then_whole_as_without_a_stream() -> None:
    seen, _ = await outcome("Paris, of  course.\n")
    assert seen.texts == ["Paris,", " of", "  course.", "\n"]
    assert seen.whole == await client("Paris, of  course.\n").generate(ask())


async def test_tool_calls_come_bit_by_bit() -> None:
    seen, _ = await outcome({"content": "I look.", "tool_calls": [CALL, {"name": "list", "id": "c2"}]})
    assert seen.texts == ["I", " look."]
    calls = [piece for piece in seen.pieces if isinstance(piece, ToolCallDelta)]
    assert calls[1] == ToolCallDelta(index=0, arguments='{"where": "up ab')
    first, second = seen.whole.tool_calls
    assert seen.calls() == [
        (first.id, "look", '{"where": "up above the world so high"}'),
        ("c2", "list", "{}"),
    ]
    assert second.arguments == {}


async def test_reasoning_comes_first_and_is_no_part_of_the_answer() -> None:
    seen, _ = await outcome({"content": "Yes.", "stream": {"reasoning": "Hm, well."}})
    assert seen.pieces == [ReasoningDelta("Hm,"), ReasoningDelta(" well."), TextDelta("Yes.")]
    assert seen.whole.content == "Yes."


async def test_the_same_seed_and_request_give_the_same_pieces() -> None:
    first, again = [await streamed(client(seed=3), ask()) for _ in range(2)]
    assert first == again
    assert first.text == first.whole.content
    assert first.text != (await streamed(client(seed=4), ask())).text


async def test_latency_passes_before_the_first_piece_and_the_pace_between_pieces() -> None:
    _, took = await outcome({"content": "one two three", "latency": 2.0, "stream": {"pace": 0.5}})
    assert took == 3.0


async def test_an_empty_answer_has_no_pieces() -> None:
    seen, _ = await outcome("")
    assert (seen.pieces, seen.whole.content) == ([], "")


@pytest.mark.parametrize(("after", "texts"), [(0, []), (2, ["one", " two"]), (9, ["one", " two", " three"])])
async def test_a_stream_breaks_after_as_many_pieces_as_scripted(after: int, texts: list[str]) -> None:
    seen, _ = await outcome({"content": "one two three", "stream": {"breaks_after": after}})
    assert seen.texts == texts
    assert type(seen.failure) is IncompleteResponseError
    assert "scripted by 'it'" in str(seen.failure)


async def test_a_break_may_be_any_error_of_the_provider() -> None:
    error = {"status": 529, "message": "Overloaded"}
    seen, _ = await outcome({"content": "one two", "stream": {"breaks_after": 1, "error": error}})
    assert seen.texts == ["one"]
    assert type(seen.failure) is ProviderOverloadedError
    assert "Overloaded" in str(seen.failure)


async def test_a_stall_is_noticed_after_the_providers_timeout() -> None:
    seen, took = await outcome({"content": "one two", "stream": {"breaks_after": 1, "error": {"kind": "timeout"}}})
    assert seen.texts == ["one"]
    assert type(seen.failure) is ProviderTimeoutError
    assert took == 5.0


async def test_a_pace_beyond_the_providers_timeout_is_a_timeout() -> None:
    seen, took = await outcome({"content": "one two", "stream": {"pace": 30.0}})
    assert seen.texts == ["one"]
    assert type(seen.failure) is ProviderTimeoutError
    assert "the scripted pace is 30 s" in str(seen.failure)
    assert took == 5.0


async def test_an_error_comes_before_the_first_piece_and_a_retry_gets_the_next_reply() -> None:
    under_test = client({"error": {"status": 429, "retry_after": 3.0}}, "fine")
    refused = await streamed(under_test, ask())
    assert (refused.pieces, type(refused.failure), refused.failure.retry_after) == ([], RateLimitError, 3.0)
    assert (await streamed(under_test, ask())).text == "fine"


async def test_a_plain_call_gets_an_answer_whole_that_breaks_for_streams() -> None:
    reply = {"content": "one two", "stream": {"breaks_after": 1, "pace": 9.0}}
    assert (await client(reply).generate(ask())).content == "one two"
    assert asyncio.get_running_loop().time() == 0.0


async def test_a_stream_may_be_left_at_any_piece() -> None:
    async with aclosing(client({"content": "one two", "stream": {"pace": 1.0}}).stream(ask())) as stream:
        assert await anext(stream) == TextDelta("one")
    assert asyncio.get_running_loop().time() == 0.0


async def test_a_stream_that_no_rule_fits_says_so() -> None:
    with pytest.raises(UnmatchedRequestError, match="No rule of the mock fits"):
        await anext(client("bye", text="bye").stream(ask()))


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (
            {"stream": {"error": {"status": 500}}},
            r"stream: give breaks_after too, the number of pieces before the error",
        ),
        ({"stream": {"breaks_after": -1}}, r"stream\.breaks_after: -1 is wrong"),
        ({"stream": {}, "error": {"status": 500}}, "a reply with an error has no stream; take one of the two out"),
        ({"stream": {"speed": 1}}, r"stream\.speed: unknown"),
    ],
    ids=["error", "negative", "both", "unknown"],
)
def test_a_malformed_stream_is_refused_in_one_sentence(reply: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        load_responses({"default": reply})
