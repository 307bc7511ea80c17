"""One call of a chat model: LangChain's `ainvoke`, or what is left of it where nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig

from llm_gateway.clients.messages import langchain_messages
from llm_gateway.models import LLMMessage

# No callbacks but those that the process turns on for all: the task that runs a batch must not report the calls of
# many callers to the handlers of the one who came first.
QUIET: RunnableConfig = {"callbacks": []}


class TakesTexts:
    """A chat model that can be asked with plain texts as they are, without a message of LangChain's for each."""

    async def agenerate_texts(self, messages: Sequence[LLMMessage], arguments: dict[str, Any], /) -> ChatResult | None:
        """Return what `_agenerate` returns; None, before anything is sent, where that has to be asked instead."""
        raise NotImplementedError


async def invoked(model: BaseChatModel, messages: Sequence[LLMMessage], arguments: dict[str, Any]) -> AIMessage:
    """Return what `model.ainvoke` returns."""
    return await model.ainvoke(langchain_messages(messages), QUIET, **arguments)


async def generated(model: BaseChatModel, messages: Sequence[LLMMessage], arguments: dict[str, Any]) -> AIMessage:
    """Return what `model.ainvoke` returns, for a third of its cost, if no handler and no tracer is there to be told.

    `ainvoke` collects what they might want to know, inspects signatures and makes two tasks, for nobody then.
    """
    if not _is_bare(model) or _is_heard(model):
        return await invoked(model, messages, arguments)
    try:
        result = await model.agenerate_texts(messages, arguments) if isinstance(model, TakesTexts) else None
        if result is None:
            result = await model._agenerate(langchain_messages(messages), **arguments)  # noqa: SLF001 - what chat models are made by overriding
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            # Nobody asked for it: something below gave up, and that is a failure like others.
            raise ConnectionAbortedError("the call was cancelled from below") from None
        raise
    return message_of(result)


def streamed(
    model: BaseChatModel, messages: list[BaseMessage], arguments: dict[str, Any], *, lean: bool
) -> AsyncIterator[AIMessage]:
    """Return what `model.astream` yields; with `lean`, if nobody is there to be told, without what is for listeners.

    `astream` keeps every chunk and merges them all when the answer has ended, to tell a handler of it. The chunks have
    no ids of LangChain's own then, and no empty one ends them.
    """
    told = {**arguments, "stream": True}
    words_alone = all(type(each.content) is str for each in messages)  # blocks are brought into another form before
    if lean and words_alone and _is_bare(model) and model._should_stream(async_api=True, **told):  # noqa: SLF001 - as above
        return _chunks(model, messages, arguments)
    return model.astream(messages, QUIET, **arguments)


async def _chunks(
    model: BaseChatModel, messages: list[BaseMessage], arguments: dict[str, Any]
) -> AsyncIterator[AIMessage]:
    if _is_heard(model):
        async for message in model.astream(messages, QUIET, **arguments):
            yield message
        return
    is_empty = True
    async for chunk in model._astream(messages, **arguments):  # noqa: SLF001 - what chat models are made by overriding
        is_empty = False
        piece: AIMessage = chunk.message  # type: ignore[assignment]  # what a chat model answers with
        if chunk.generation_info:
            piece.response_metadata = {**chunk.generation_info, **piece.response_metadata}
        yield piece
    if is_empty:
        raise ValueError("No generation chunks were returned")  # as `astream` does


def message_of(result: ChatResult) -> AIMessage:
    """Return the message of what `_agenerate` returns, as `ainvoke` would return it."""
    generation = result.generations[0]
    message: AIMessage = generation.message  # type: ignore[assignment]  # what a chat model answers with
    told = {**(result.llm_output or {}), **(generation.generation_info or {})}
    message.response_metadata = told | message.response_metadata
    return message


def _is_heard(model: BaseChatModel) -> bool:
    """Tell whether a handler or a tracer wants to know of a call."""
    return bool(AsyncCallbackManager.configure([], model.callbacks, model.verbose).handlers)


def _is_bare(model: BaseChatModel) -> bool:
    """Tell whether `ainvoke` would come down to `_agenerate`: no cache, no limiter, no stream behind the answer."""
    streams = getattr(model, "streaming", False)
    return model.cache is False and model.rate_limiter is None and not streams and model.output_version != "v1"
