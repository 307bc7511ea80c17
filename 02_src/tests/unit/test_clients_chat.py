"""What a client does with what its chat model raises, without a provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel, SimpleChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from openai.types.chat import ChatCompletion

from fakes.deployments import deployment, request
from llm_gateway.clients.chat import LangChainClient, PlainDialect
from llm_gateway.clients.openai import OpenAIDialect
from llm_gateway.errors import IncompleteResponseError, ProviderError, ProviderUnavailableError, RequestRejectedError


class Doing(SimpleChatModel):
    """A chat model that does one thing."""

    what: Callable[[], Any]

    @property
    def _llm_type(self) -> str:
        return "doing"

    def _call(self, *_: Any, **__: Any) -> str:
        raise NotImplementedError

    async def _agenerate(self, *_: Any, **__: Any) -> Any:
        return await self.what()


def client(model: BaseChatModel, dialect: PlainDialect | None = None) -> LangChainClient:
    return LangChainClient(model, deployment("openai", None), dialect or PlainDialect())


def doing(what: Callable[[], Any]) -> LangChainClient:
    return client(Doing(what=what))


async def test_a_cancellation_from_below_is_a_broken_call() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ProviderUnavailableError):
        await doing(cancelled).generate(request())


async def test_a_cancellation_by_the_caller_stays_one() -> None:
    began = asyncio.Event()

    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(doing(wait).generate(request()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Swallowing(Doing):
    """A chat model that turns a cancellation into an error of its own."""

    async def ainvoke(self, *_: Any, **__: Any) -> AIMessage:
        try:
            await self.what()
        except asyncio.CancelledError:
            raise RuntimeError("interrupted") from None
        raise AssertionError


async def test_a_cancellation_that_a_package_swallows_reaches_the_caller_all_the_same() -> None:
    began = asyncio.Event()

    async def wait() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(client(Swallowing(what=wait)).generate(request()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_was_cancelled_before_still_hears_of_failures() -> None:
    async def broken() -> None:
        raise RuntimeError("broken")

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with pytest.raises(ProviderError, match="RuntimeError: broken"):
                await doing(broken).generate(request())
            raise

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whatever_a_package_raises_becomes_a_provider_error_with_its_cause() -> None:
    async def broken() -> None:
        raise LookupError("no such thing")

    with pytest.raises(ProviderError, match="LookupError: no such thing") as caught:
        await doing(broken).generate(request())
    assert type(caught.value) is ProviderError
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize(
    "error", [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), TypeError("x"), ValueError("x"), RecursionError("x")]
)
async def test_a_request_that_stumbles_before_it_is_sent_is_rejected_for_good(error: Exception) -> None:
    async def broken() -> None:
        raise error

    with pytest.raises(RequestRejectedError, match="could not be encoded for 'gpt-4o-mini' at openai") as caught:
        await doing(broken).generate(request())
    assert not caught.value.retryable
    assert type(error).__name__ in str(caught.value)
    assert "nothing was sent" in caught.value.summary


class Listening(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.heard.append("a call")


async def test_the_handlers_of_whoever_runs_us_hear_of_no_call() -> None:
    answer = AIMessage("ok", response_metadata={"finish_reason": "stop"})
    made = client(GenericFakeChatModel(messages=iter([answer])))
    ears = Listening()

    async def ask(_: str) -> str:
        return (await made.generate(request())).content

    assert await RunnableLambda(ask).ainvoke("go", {"callbacks": [ears]}) == "ok"
    assert ears.heard == []


def cut(choices: list[Any], usage: Any = None) -> openai.LengthFinishReasonError:
    body = {"id": "1", "created": 1, "model": "m", "object": "chat.completion", "choices": choices, "usage": usage}
    return openai.LengthFinishReasonError(completion=ChatCompletion.model_validate(body))


async def test_a_cut_answer_is_taken_out_of_the_sdks_error() -> None:
    message = {"role": "assistant", "content": "half"}
    choice = {"index": 0, "finish_reason": "length", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    dialect = OpenAIDialect()
    whole, bare = dialect.recover(cut([choice], usage)), dialect.recover(cut([choice]))
    assert whole is not None
    assert bare is not None
    assert (whole.content, whole.finish_reason, whole.usage and whole.usage.total_tokens) == ("half", "length", 5)
    assert bare.usage is None
    assert dialect.recover(ValueError("x")) is None


async def test_an_error_without_an_answer_in_it_is_an_unreadable_one() -> None:
    assert OpenAIDialect().recover(cut([])) is None

    async def raising() -> None:
        raise cut([])

    with pytest.raises(IncompleteResponseError):
        await client(Doing(what=raising), OpenAIDialect()).generate(request())
