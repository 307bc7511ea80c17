"""How a stream is read and put together, without a provider."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from openai.types.chat import ChatCompletion

from fakes.deployments import deployment, request
from fakes.streams import streamed
from llm_gateway.clients.chat import LangChainClient, PlainDialect
from llm_gateway.clients.openai import OpenAIDialect
from llm_gateway.clients.other import OtherDialect
from llm_gateway.clients.streaming import Assembly, let_go
from llm_gateway.clients.text import PairedText, readable
from llm_gateway.errors import IncompleteResponseError, ProviderUnavailableError
from llm_gateway.models import LLMToolCall, ReasoningDelta, TextDelta, TokenUsage, ToolCallDelta

STOP = {"finish_reason": "stop"}


class Streaming(BaseChatModel):
    """A chat model that streams what it is given, and raises what is an error."""

    script: Sequence[Any]
    closed: list[str] = []  # noqa: RUF012 - pydantic copies it for each model

    @property
    def _llm_type(self) -> str:
        return "streaming"

    def _use_responses_api(self, _: Any) -> bool:
        return False  # as ChatOpenAI is asked

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.script[0])])

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        # As in the partner packages: the generator that holds the connection is an inner one.
        async for chunk in self._wire():
            yield chunk

    async def _wire(self) -> AsyncIterator[ChatGenerationChunk]:
        try:
            for each in self.script:
                if isinstance(each, BaseException):
                    raise each
                if callable(each):
                    await each()
                    continue
                yield ChatGenerationChunk(message=each)
        finally:
            self.closed.append("wire")


def chunk(content: Any = "", **fields: Any) -> AIMessageChunk:
    return AIMessageChunk(content=content, **fields)


def client(*script: Any, dialect: PlainDialect | None = None, **fields: Any) -> LangChainClient:
    return LangChainClient(Streaming(script=script, **fields), deployment("openai", None), dialect or PlainDialect())


# --- reading --------------------------------------------------------------------------------------------------------


async def never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("taken", [1, 2])
async def test_leaving_unwinds_the_inner_generators_before_it_returns(taken: int) -> None:
    model = Streaming(script=[chunk("a"), chunk("b"), never])
    stream = LangChainClient(model, deployment("openai", None), PlainDialect()).stream(request())
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    assert model.closed == ["wire"]
    assert len(asyncio.all_tasks()) == 1


async def test_leaving_is_no_failure_and_leaves_no_word_of_one(caplog: pytest.LogCaptureFixture) -> None:
    async def fails_when_cancelled() -> None:
        try:
            await never()
        finally:
            raise ValueError("as some libraries do")

    stream = client(chunk("a"), fails_when_cancelled).stream(request())
    await anext(stream)
    await stream.aclose()
    gc.collect()
    assert caplog.text == ""


async def test_what_came_before_a_failure_is_told() -> None:
    seen = await streamed(client(chunk("a"), chunk("b"), ConnectionError("gone")), request())
    assert seen.texts == ["a", "b"]
    assert type(seen.failure) is ProviderUnavailableError


async def test_a_cancel_from_below_is_a_failure_and_not_a_cancel() -> None:
    seen = await streamed(client(chunk("a"), asyncio.CancelledError()), request())
    assert seen.texts == ["a"]
    assert type(seen.failure) is ProviderUnavailableError
    assert "cancelled from below" in str(seen.failure)


async def test_each_piece_is_told_before_the_next_is_read() -> None:
    read: list[str] = []

    async def note() -> None:
        read.append("b")

    async with aclosing(client(chunk("a"), note, chunk("b", response_metadata=STOP)).stream(request())) as stream:
        assert await anext(stream) == TextDelta("a")
        assert read == []
        assert await anext(stream) == TextDelta("b")


async def test_leaving_reads_on_what_is_there_and_waits_for_nothing() -> None:
    async def too_late() -> None:
        raise AssertionError("it waited before")

    model = Streaming(script=[chunk("a"), chunk("b"), chunk("c"), never, too_late])
    stream = LangChainClient(model, deployment("openai", None), PlainDialect()).stream(request())
    await anext(stream)
    await stream.aclose()
    assert model.closed == ["wire"]
    assert asyncio.get_running_loop().time() == 0.0


async def test_leaving_after_the_last_chunk_is_no_failure_either() -> None:
    model = Streaming(script=[chunk("a"), ValueError("at the end")])
    stream = LangChainClient(model, deployment("openai", None), PlainDialect()).stream(request())
    await anext(stream)
    await stream.aclose()
    gc.collect()  # what nobody closed would warn
    assert model.closed == ["wire"]


async def test_a_piece_that_cannot_be_told_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(*_: object) -> Iterator[TextDelta]:
        raise ValueError("of our own")

    model = Streaming(script=[chunk("a"), never])
    monkeypatch.setattr(Assembly, "take", stumbles)
    seen = await streamed(LangChainClient(model, deployment("openai", None), PlainDialect()), request())
    assert "of our own" in str(seen.failure)
    assert model.closed == ["wire"]


async def test_an_error_that_is_kept_keeps_no_connection() -> None:
    closed: list[str] = []

    async def connection() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append("connection")

    async def conversion() -> AsyncIterator[int]:
        stream = connection()  # held by the frame, and the frame by the traceback
        async for number in stream:
            yield number // 0

    with pytest.raises(ZeroDivisionError) as caught:
        await anext(conversion())
    assert closed == []
    let_go(caught.value)
    await asyncio.sleep(0.1)
    assert closed == ["connection"]


async def test_a_stream_leaves_no_trace_in_its_callers_context() -> None:
    before = dict(contextvars.copy_context())
    async with aclosing(client(chunk("a"), never).stream(request())) as stream:
        await anext(stream)
        assert dict(contextvars.copy_context()) == before


async def test_the_callers_tracing_hears_nothing_of_a_stream() -> None:
    heard: list[str] = []

    class Handler(AsyncCallbackHandler):
        async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            heard.append("start")

    under_test = client(chunk("ok", response_metadata=STOP))

    async def ask(_: str) -> str:
        return (await streamed(under_test, request())).whole.content

    assert await RunnableLambda(ask).ainvoke("x", {"callbacks": [Handler()]}) == "ok"
    assert heard == []


# --- putting together -----------------------------------------------------------------------------------------------


async def test_a_model_that_cannot_stream_gives_its_answer_as_one_piece() -> None:
    calls = [{"name": "look", "args": {"where": "up"}, "id": "a"}]
    whole = AIMessage(content="I look.", tool_calls=calls, response_metadata=STOP)
    seen = await streamed(client(whole, disable_streaming=True), request())
    assert seen.pieces == [
        TextDelta("I look."),
        ToolCallDelta(index=0, id="a", name="look", arguments='{"where": "up"}'),
    ]
    assert seen.whole.tool_calls == (LLMToolCall(id="a", name="look", arguments={"where": "up"}),)


async def test_a_stream_without_a_finish_reason_is_incomplete_where_there_should_be_one() -> None:
    cut = client(chunk("a"))
    assert type((await streamed(cut, request())).failure) is IncompleteResponseError
    unknown = client(chunk("a"), dialect=OtherDialect(wired=False))
    assert (await streamed(unknown, request())).whole.content == "a"


def usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (PlainDialect(), TokenUsage(input_tokens=9, output_tokens=2)),
        (OtherDialect(wired=False), TokenUsage(input_tokens=18, output_tokens=3)),
    ],
    ids=["the last of them", "their sum"],
)
async def test_usage_told_several_times_counts_as_the_provider_means_it(
    dialect: PlainDialect, expected: TokenUsage
) -> None:
    script = [
        chunk("a", usage_metadata=usage(9, 1)),
        chunk("b", usage_metadata=usage(9, 2), response_metadata=STOP),
    ]
    assert (await streamed(client(*script, dialect=dialect), request())).whole.usage == expected


@pytest.mark.parametrize("dialect", [PlainDialect(), OtherDialect(wired=False)], ids=["plain", "other"])
async def test_usage_that_nobody_tells_is_unknown(dialect: PlainDialect) -> None:
    assert (await streamed(client(chunk("a", response_metadata=STOP), dialect=dialect), request())).whole.usage is None


THOUGHTS: dict[str, Callable[[], AIMessageChunk]] = {
    "a keyword": lambda: chunk("", additional_kwargs={"reasoning_content": "hm"}),
    "a block of Anthropic": lambda: chunk(
        [{"type": "thinking", "thinking": "hm", "index": 0}], response_metadata={"model_provider": "anthropic"}
    ),
    "a block of LangChain": lambda: chunk([{"type": "reasoning", "reasoning": "hm", "index": 0}]),
}


@pytest.mark.parametrize("place", THOUGHTS)
def test_reasoning_is_found_wherever_a_package_puts_it(place: str) -> None:
    assert list(Assembly().take(THOUGHTS[place]())) == [ReasoningDelta("hm")]


def test_half_a_character_at_the_end_is_told_as_one_that_cannot_be_read() -> None:
    assembly = Assembly()
    last = chunk("b\ud83c", additional_kwargs={"reasoning_content": "a\ud83c"})
    assert list(assembly.take(last)) == [ReasoningDelta("a"), TextDelta("b")]
    assert list(assembly.rest()) == [ReasoningDelta("\ufffd"), TextDelta("\ufffd")]


def test_a_refusal_after_some_text_is_no_part_of_it() -> None:
    assembly = Assembly()
    taken = list(assembly.take(chunk("Well, ", additional_kwargs={"refusal": "no."})))
    assert taken == [TextDelta("Well, ")]
    assert assembly.message(None).content == "Well, "


def call_piece(**fields: Any) -> AIMessageChunk:
    piece = {"index": 0, "id": None, "name": None, "args": None, **fields}
    return chunk("", tool_call_chunks=[piece])


def test_a_tool_call_is_told_once_its_name_is_known() -> None:
    assembly = Assembly()
    pieces = [call_piece(id="a", args="{"), call_piece(name="look", args="}"), call_piece(args=" ")]
    assert [list(assembly.take(piece)) for piece in pieces] == [
        [],
        [ToolCallDelta(index=0, id="a", name="look", arguments="{}")],
        [ToolCallDelta(index=0, arguments=" ")],
    ]
    assert list(assembly.rest()) == []


def test_a_tool_call_whose_name_never_comes_is_told_at_the_end() -> None:
    assembly = Assembly()
    assert list(assembly.take(call_piece(id="a", args="{}"))) == []
    assert list(assembly.rest()) == [ToolCallDelta(index=0, id="a", name="", arguments="{}")]
    assert [call["name"] for call in assembly.message(None).tool_calls] == [""]


async def test_an_answer_that_an_sdk_raises_instead_of_giving_it_is_whole() -> None:
    answer = ChatCompletion.model_validate(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": '{"n":'}}],
        }
    )
    script = [chunk('{"n":'), openai.LengthFinishReasonError(completion=answer)]
    seen = await streamed(client(*script, dialect=OpenAIDialect()), request())
    assert (seen.text, seen.whole.content, seen.whole.finish_reason) == ('{"n":', '{"n":', "length")


def test_blocks_of_text_are_text() -> None:
    taken = list(Assembly().take(chunk([{"type": "text", "text": "a", "index": 0}, "b"])))
    assert taken == [TextDelta("ab")]


@given(st.lists(st.text(st.characters(), max_size=4), max_size=8))
def test_pieces_made_readable_one_by_one_are_the_readable_whole(pieces: list[str]) -> None:
    paired = PairedText()
    shown = "".join([paired.add(piece) for piece in pieces]) + paired.rest()
    assert shown == readable("".join(pieces))


@given(st.text(st.sampled_from("a\ud83c\udf88é"), max_size=12), st.integers(1, 3))
def test_surrogates_come_right_wherever_they_are_cut(text: str, size: int) -> None:
    paired = PairedText()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join([paired.add(piece) for piece in pieces]) + paired.rest() == readable(text)
