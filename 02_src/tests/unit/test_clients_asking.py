"""A model is asked as directly as its listeners allow, and the answer is the same either way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.globals import set_debug
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import InMemoryRateLimiter

from llm_gateway.clients.asking import generated, invoked, streamed
from llm_gateway.models import LLMMessage


async def nothing() -> None: ...


class Model(SimpleChatModel):
    """A chat model that notes how it is called, and does one thing before it answers."""

    before: Callable[[], Any] = nothing
    invoked: int = 0

    @property
    def _llm_type(self) -> str:
        return "noting"

    def _call(self, *_: Any, **__: Any) -> str:
        raise NotImplementedError

    async def ainvoke(self, *given: Any, **more: Any) -> AIMessage:
        self.invoked += 1
        return await super().ainvoke(*given, **more)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: Any = None,
        run_manager: Any = None,  # noqa: ARG002 - the seam's signature
        **_: Any,
    ) -> ChatResult:
        await self.before()
        message = AIMessage(f"{messages[0].text} {stop}", response_metadata={"kept": 1, "finish_reason": "own"})
        generation = ChatGeneration(message=message, generation_info={"finish_reason": "stop", "told": 2})
        return ChatResult(generations=[generation], llm_output={"finish_reason": "last", "model_name": "m"})


def model(**fields: Any) -> Model:
    return Model(cache=False, **fields)


ASKED: tuple[list[LLMMessage], dict[str, Any]] = ([LLMMessage(role="user", content="hi")], {"stop": ["END"]})
HEARD: list[BaseMessage] = [HumanMessage("hi")]


async def test_asked_directly_a_model_answers_what_it_answers_to_ainvoke() -> None:
    made = model()
    direct, whole = await generated(made, *ASKED), await invoked(made, *ASKED)
    assert made.invoked == 1
    assert (direct.content, direct.response_metadata) == (whole.content, whole.response_metadata)
    assert direct.response_metadata == {"finish_reason": "own", "told": 2, "model_name": "m", "kept": 1}


class Listening(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard = 0

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.heard += 1


async def test_a_handler_of_the_model_hears_of_the_call() -> None:
    ears = Listening()
    made = model(callbacks=[ears])
    await generated(made, *ASKED)
    assert (made.invoked, ears.heard) == (1, 1)


async def test_what_listens_to_the_whole_process_hears_of_the_call() -> None:
    made = model()
    set_debug(True)
    try:
        await generated(made, *ASKED)
    finally:
        set_debug(False)
    assert made.invoked == 1


class Immediate(InMemoryRateLimiter):
    """Lets everything through; the one it comes from polls the real clock."""

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return blocking


@pytest.mark.parametrize(
    "fields",
    [{"cache": None}, {"rate_limiter": Immediate(requests_per_second=1)}, {"output_version": "v1"}],
    ids=["cache", "limiter", "blocks"],
)
async def test_what_only_ainvoke_heeds_is_heeded(fields: dict[str, Any]) -> None:
    made = Model(**{"cache": False, **fields})
    await generated(made, *ASKED)
    assert made.invoked == 1


async def test_a_cancellation_from_below_is_a_failure() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionAbortedError):
        await generated(model(before=cancelled), *ASKED)


async def test_a_cancellation_by_the_caller_is_one() -> None:
    began = asyncio.Event()

    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(generated(model(before=wait), *ASKED))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Streaming(Model):
    """A chat model that answers in pieces."""

    pieces: tuple[str, ...] = ("a", "b")
    begun: int = 0

    async def astream(self, *given: Any, **more: Any) -> AsyncIterator[AIMessageChunk]:
        self.begun += 1
        async for chunk in super().astream(*given, **more):
            yield chunk

    async def _astream(self, *_: Any, stop: Any = None, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        await self.before()
        for piece in self.pieces:
            message = AIMessageChunk(content=piece, response_metadata={"kept": stop, "both": "own"})
            yield ChatGenerationChunk(message=message, generation_info={"told": piece, "both": "last"})


def streaming(**fields: Any) -> Streaming:
    return Streaming(**{"cache": False, **fields})


async def told(made: Streaming, messages: list[BaseMessage] = HEARD, *, lean: bool = True) -> list[Any]:
    chunks = [each async for each in streamed(made, messages, ASKED[1], lean=lean)]
    return [(each.content, each.response_metadata) for each in chunks if each.content]


async def test_a_stream_asked_directly_brings_what_astream_brings() -> None:
    made = streaming()
    direct, whole = await told(made), await told(made, lean=False)
    assert made.begun == 1
    assert direct == whole
    assert direct[0] == ("a", {"told": "a", "both": "own", "kept": ["END"]})


async def test_an_empty_stream_fails_as_langchains_does() -> None:
    for lean in (True, False):
        with pytest.raises(ValueError, match="No generation chunks"):
            await told(streaming(pieces=()), lean=lean)


@pytest.mark.parametrize("why", ["handler", "blocks", "version"])
async def test_a_stream_that_somebody_hears_or_that_wants_another_form_is_astreams(why: str) -> None:
    ears = Listening()
    known: dict[str, dict[str, Any]] = {"handler": {"callbacks": [ears]}, "version": {"output_version": "v1"}}
    fields = known.get(why, {})
    made = streaming(**fields)
    asked: list[BaseMessage] = [HumanMessage([{"type": "text", "text": "hi"}])] if why == "blocks" else HEARD
    assert len(await told(made, asked)) == 2
    assert (made.begun, ears.heard) == (1, int(why == "handler"))
