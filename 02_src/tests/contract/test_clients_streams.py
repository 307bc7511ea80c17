"""Streams over real HTTP: what comes piece by piece, and that it adds up to what a plain call answers."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from fakes.deployments import CANARY, KINDS, connected, request, said, tool
from fakes.emulator import Call, Emulator, Reply, ToolCall, Usage
from fakes.emulator.openai import _event
from fakes.streams import streamed
from llm_gateway.clients.base import Completion
from llm_gateway.models import ReasoningDelta, TextDelta, ToolCallDelta

pytestmark = pytest.mark.usefixtures("transport")
every_kind = pytest.mark.parametrize("kind", KINDS)
TOOLS = [tool("look", {"where": {"type": "string"}}), tool("list")]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
USAGE = Usage(input=100, output=20, cache_read=40, cache_write=10, cache_write_1h=5, reasoning=7)


@every_kind
async def test_an_answer_comes_word_by_word_and_then_whole(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="Paris, of course.", usage=Usage(input=12, output=3)))
    async with connected(emulator, kind) as client:
        seen = await streamed(client, request())
    assert seen.pieces == [TextDelta("Paris,"), TextDelta(" of"), TextDelta(" course.")]
    assert (seen.whole.content, seen.whole.finish_reason) == ("Paris, of course.", "stop")
    [call] = emulator.ledger
    assert (call.key, call.body["stream"], call.finished) == (CANARY, True, True)


REPLIES = {
    "text": Reply(text="One, two,\n three ", usage=USAGE),
    "empty": Reply(text=""),
    "cut": Reply(text="and so on", finish_reason="length"),
    "words": Reply(text="Ünïcödé 🎈 \n", usage=Usage(input=1, output=1)),
    "tools": Reply(
        text="",
        tool_calls=(
            ToolCall(name="look", args={"where": "up and away"}, id="a"),
            ToolCall(name="list", args={}, id="b"),
        ),
        usage=USAGE,
    ),
    "both": Reply(text="I look.", tool_calls=(ToolCall(name="look", args={"where": "🎈"}, id="a"),)),
    "thinking": Reply(text="Yes.", reasoning="Well, let me see. ", usage=USAGE),
}
LENGTHS = {"openai": "length", "anthropic": "max_tokens", "ollama": "length"}


@every_kind
@pytest.mark.parametrize("case", REPLIES)
async def test_a_stream_ends_in_what_a_plain_call_answers(emulator: Emulator, kind: str, case: str) -> None:
    reply = REPLIES[case]
    if case == "cut":
        reply = replace(reply, finish_reason=LENGTHS[kind])
    limits = {"x-ratelimit-remaining-requests": "7", "x-other": "no"}
    emulator.default = replace(reply, headers=limits)
    question = request(tools=TOOLS)
    async with connected(emulator, kind) as client:
        seen, plain = await streamed(client, question), await client.generate(question)
    if kind == "ollama":  # LangChain makes up new ids each time
        ids = iter([call.id for call in seen.whole.tool_calls])
        plain = replace(plain, tool_calls=tuple(call.model_copy(update={"id": next(ids)}) for call in plain.tool_calls))
    assert seen.whole == plain
    assert seen.whole.headers == {"x-ratelimit-remaining-requests": "7"}
    assert seen.text == plain.content
    assert [(call_id, name, json.loads(text)) for call_id, name, text in seen.calls()] == [
        (call.id, call.name, call.arguments) for call in plain.tool_calls
    ]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_the_arguments_of_a_tool_call_come_in_pieces(emulator: Emulator, kind: str) -> None:
    args = {"where": "up above the world so high"}
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="look", args=args), ToolCall(name="list", args={}))))
    async with connected(emulator, kind) as client:
        seen = await streamed(client, request(tools=TOOLS))
    pieces = [piece for piece in seen.pieces if isinstance(piece, ToolCallDelta)]
    assert [piece.name for piece in pieces if piece.name] == ["look", "list"]
    assert len([piece for piece in pieces if piece.index == 0 and piece.arguments]) > 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("openai", {}),  # of servers that speak its API
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("ollama", {"reasoning": True}),
    ],
)
async def test_reasoning_comes_first_and_is_no_part_of_the_answer(
    emulator: Emulator, kind: str, options: dict[str, Any]
) -> None:
    emulator.script(Reply(text="Forty two.", reasoning="Let me think. "))
    async with connected(emulator, kind, options=options) as client:
        seen = await streamed(client, request(temperature=1.0))
    assert seen.pieces[0] == ReasoningDelta("Let")
    assert (seen.reasoning, seen.text, seen.whole.content) == ("Let me think. ", "Forty two.", "Forty two.")


@every_kind
async def test_pieces_are_there_before_the_answer_ends(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="one two three", fault="stall", after=2))
    async with connected(emulator, kind) as client, aclosing(client.stream(request())) as stream:
        assert [await anext(stream), await anext(stream)] == [TextDelta("one"), TextDelta(" two")]
        [call] = emulator.ledger
        assert (call.finished, call.pieces) == (False, 2)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_an_answer_may_take_longer_than_the_timeout_if_no_pause_does(emulator: Emulator, kind: str) -> None:
    text = "word " * 12
    emulator.script(Reply(text=text, pace=0.1))
    async with connected(emulator, kind, timeout=1.0) as client:
        assert (await streamed(client, request())).whole.content == text


@every_kind
async def test_leaving_closes_the_connection_before_it_returns(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="one two three", fault="stall", after=1))
    async with connected(emulator, kind) as client:
        stream = client.stream(request())
        assert await anext(stream) == TextDelta("one")
        await stream.aclose()
        await emulator.settled()
        assert emulator.ledger[0].disconnected


@every_kind
async def test_leaving_while_pieces_wait_closes_the_connection_too(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="one two three four five", fault="stall", after=4))
    async with connected(emulator, kind) as client:
        stream = client.stream(request())
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        await emulator.settled()
        assert emulator.ledger[0].disconnected
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@every_kind
@pytest.mark.parametrize("after", [None, 2])
async def test_a_cancelled_caller_closes_the_connection(emulator: Emulator, kind: str, after: int | None) -> None:
    latency = 0.0 if after else 30.0
    emulator.script(Reply(text="one two three", latency=latency, fault="stall" if after else None, after=after))
    begun = asyncio.Event()

    async def read(client: Any) -> None:
        async with aclosing(client.stream(request())) as stream:
            async for piece in stream:
                if piece == TextDelta(" two"):
                    begun.set()

    async with connected(emulator, kind) as client:
        task = asyncio.create_task(read(client))
        await (begun.wait() if after else emulator.arrived(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await emulator.settled()
        assert emulator.ledger[0].disconnected


@every_kind
async def test_a_stream_that_nobody_began_calls_nobody(emulator: Emulator, kind: str) -> None:
    async with connected(emulator, kind) as client:
        await client.stream(request()).aclose()
    assert emulator.ledger == []


@every_kind
async def test_a_dropped_stream_is_closed_by_the_loop(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="one two three", fault="stall", after=1))
    async with connected(emulator, kind) as client:
        await anext(client.stream(request()))
        await emulator.settled()
        assert emulator.ledger[0].disconnected


@every_kind
async def test_streams_at_the_same_time_do_not_mix(emulator: Emulator, kind: str) -> None:
    def answer(call: Call) -> Reply:
        name = call.body["messages"][-1]["content"]
        return Reply(text=f"I am {name} .", headers={"x-ratelimit-of": name}, pace=0.001)

    emulator.answer = answer
    names = [f"n{number}" for number in range(12)]
    async with connected(emulator, kind) as client:
        answers = await asyncio.gather(*(streamed(client, request(said("user", name))) for name in names))
    assert [seen.text for seen in answers] == [f"I am {name} ." for name in names]
    assert [seen.whole.headers for seen in answers] == [{"x-ratelimit-of": name} for name in names]


@every_kind
async def test_each_piece_may_be_asked_for_by_another_task(emulator: Emulator, kind: str) -> None:
    async def ask(stream: Any) -> Any:
        return await anext(stream)

    emulator.script(Reply(text="one two"))
    async with connected(emulator, kind) as client, aclosing(client.stream(request())) as stream:
        pieces = [await asyncio.create_task(ask(stream)) for _ in range(3)]
    assert pieces[:2] == [TextDelta("one"), TextDelta(" two")]
    assert isinstance(pieces[2], Completion)


# --- what each provider's stream has of its own --------------------------------------------------------------------


@every_kind
async def test_a_schema_is_asked_for_as_by_a_plain_call(emulator: Emulator, kind: str) -> None:
    emulator.default = Reply(text='{"n": 5}')
    question = request(response_format=SCHEMA)
    async with connected(emulator, kind) as client:
        seen, plain = await streamed(client, question), await client.generate(question)
    assert seen.whole.content == plain.content == '{"n": 5}'
    kept = [{name: part for name, part in call.body.items() if "stream" not in name} for call in emulator.ledger]
    assert kept[0] == kept[1]


async def test_an_answer_by_schema_that_is_cut_still_tells_its_usage(emulator: Emulator) -> None:
    emulator.script(Reply(text='{"n": ', finish_reason="length", usage=USAGE))
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request(response_format=SCHEMA))
    assert (seen.whole.content, seen.whole.finish_reason) == ('{"n": ', "length")
    assert seen.whole.usage is not None
    assert seen.whole.usage.output_tokens == 20


async def test_a_schema_leaves_the_extra_body_of_the_configuration_alone(emulator: Emulator) -> None:
    emulator.script(Reply(text='{"n": 5}'))
    async with connected(emulator, "openai", options={"extra_body": {"top_k": 3}}) as client:
        await streamed(client, request(response_format=SCHEMA))
    assert emulator.ledger[0].body["top_k"] == 3
    assert emulator.ledger[0].body["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_an_answer_with_its_reason_is_whole_without_the_event_that_closes(emulator: Emulator, kind: str) -> None:
    emulator.script(Reply(text="all of it", fault="no_last_event", usage=Usage(input=9, output=3)))
    async with connected(emulator, kind) as client:
        seen = await streamed(client, request())
    assert seen.whole.content == "all of it"
    assert seen.whole.usage is not None
    assert seen.whole.usage.total_tokens == 12


async def test_arguments_that_max_tokens_cut_are_dropped(emulator: Emulator) -> None:
    cut = (ToolCall(name="list", args={}), ToolCall(name="look", args='{"where": "u'))
    emulator.script(Reply(text="I", tool_calls=cut, finish_reason="length"))
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request(tools=TOOLS))
    assert seen.whole.finish_reason == "length"
    assert [call.name for call in seen.whole.tool_calls] == ["list"]


class Frames:
    """An emulated stream of OpenAI whose chunks are given by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *deltas: dict[str, Any], finish: str = "stop") -> None:
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        frames = [_event({"id": "c", "object": "chat.completion.chunk", "model": "m"} | chunk) for chunk in chunks]
        monkeypatch.setattr("fakes.emulator.openai.OpenAI.frames", lambda *_: [*frames, b"data: [DONE]\n\n"])


async def test_a_refusal_is_streamed_as_the_answer(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    Frames(monkeypatch, {"role": "assistant"}, {"refusal": "I will "}, {"refusal": "not."})
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request())
    assert seen.texts == ["I will ", "not."]
    assert (seen.whole.content, seen.whole.finish_reason) == ("I will not.", "refusal")


async def test_the_two_halves_of_a_character_may_come_in_two_pieces(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [
        b'data: {"choices":[{"index":0,"delta":{"content":"a \\ud83c"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\udf88 b\\udf88 \\ud83c"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    ]
    monkeypatch.setattr("fakes.emulator.openai.OpenAI.frames", lambda *_: frames)
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request())
    assert seen.texts == ["a ", "🎈 b\ufffd ", "\ufffd"]
    assert seen.whole.content == seen.text


async def test_an_event_that_tells_of_a_filter_alone_is_no_piece(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
    ]
    monkeypatch.setattr("fakes.emulator.openai.OpenAI.frames", lambda *_: [_event(chunk) for chunk in chunks])
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request())
    assert (seen.texts, seen.whole.content, seen.whole.finish_reason) == (["a"], "a", "stop")


def piece_of_call(index: int | None, arguments: str | None = None, **fields: str) -> dict[str, Any]:
    function = {"name": fields.get("name"), "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": fields.get("id"), "function": function}]}


LOOK: dict[str, str] = {"id": "a", "name": "look"}
LIST: dict[str, str] = {"id": "b", "name": "list"}
NUMBERINGS = {
    "one index for all": [piece_of_call(0, "{", **LOOK), piece_of_call(0, "}"), piece_of_call(0, "", **LIST)],
    "the id in every piece": [
        piece_of_call(0, "{", **LOOK),
        piece_of_call(0, "}", id="a"),
        piece_of_call(1, "{}", **LIST),
    ],
    "no index": [piece_of_call(None, "{", **LOOK), piece_of_call(None, "}"), piece_of_call(None, "{}", **LIST)],
    "the name after the id": [
        piece_of_call(0, id="a"),
        piece_of_call(0, "{}", name="look"),
        piece_of_call(4, "null", **LIST),
    ],
}


@pytest.mark.parametrize("deltas", NUMBERINGS.values(), ids=NUMBERINGS)
async def test_tool_calls_are_told_apart_however_a_server_numbers_them(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deltas: list[dict[str, Any]]
) -> None:
    Frames(monkeypatch, *deltas, finish="tool_calls")
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request(tools=TOOLS))
    assert [(call.id, call.name, call.arguments) for call in seen.whole.tool_calls] == [
        ("a", "look", {}), ("b", "list", {}),
    ]  # fmt: skip


async def test_a_tool_call_without_an_id_gets_one_that_all_pieces_agree_on(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    Frames(monkeypatch, piece_of_call(0, "{}", name="look"), finish="stop")
    async with connected(emulator, "openai") as client:
        seen = await streamed(client, request(tools=TOOLS))
    [call] = seen.whole.tool_calls
    assert seen.calls() == [(call.id, "look", "{}")]
    assert call.id.startswith("call_")
    assert seen.whole.finish_reason == "tool_calls"


def usage_event(**usage: Any) -> bytes:
    return _event({"choices": [], "usage": usage})


async def test_usage_that_comes_with_every_chunk_counts_once(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [
        {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
        {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    ]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": counts[0]},
        {"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}], "usage": counts[1]},
    ]
    monkeypatch.setattr("fakes.emulator.openai.OpenAI.frames", lambda *_: [_event(chunk) for chunk in chunks])
    async with connected(emulator, "openai") as client:
        usage = (await streamed(client, request())).whole.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (10, 2)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("nonsense", [-5, 10**12])
async def test_usage_that_is_nonsense_is_unknown_and_costs_no_answer(
    emulator: Emulator, kind: str, nonsense: Any
) -> None:
    emulator.script(Reply(text="ok", usage=Usage(input=10, output=nonsense)))
    async with connected(emulator, kind) as client:
        whole = (await streamed(client, request())).whole
    assert (whole.content, whole.usage) == ("ok", None)


async def test_input_that_anthropic_counts_only_at_the_start_is_not_lost(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    start: dict[str, Any] = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [],
        "stop_reason": None,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start | {"usage": {"input_tokens": 25, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ]
    frames = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events]
    monkeypatch.setattr("fakes.emulator.anthropic.Anthropic.frames", lambda *_: frames)
    async with connected(emulator, "anthropic") as client:
        whole = (await streamed(client, request())).whole
    assert whole.content == "Hi"
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (25, 15)
