"""What is compared: each subject answers one list of prompts, as a user of it would write that.

A subject imports its libraries when it is opened, in a process of its own, so that memory and time are its own too.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

SYSTEM = "You are a careful assistant. Answer in one short paragraph, and say so when you do not know."
PROMPT = "Question {number}: " + "how does a gateway keep a hundred agents within the limits of one provider? " * 4
KEY = "sk-bench-0000000000000000"
MODEL = "gpt-4o-mini"

Ask = Callable[[list[str]], Awaitable[None]]
"""Answer these prompts; those made for single calls are given one at a time."""


@asynccontextmanager
async def ainvoke(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """ChatOpenAI.ainvoke, as it comes."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(model=MODEL, base_url=url, api_key=SecretStr(KEY), max_retries=0, timeout=60)
    yield lambda prompts: _invoke(model, prompts)


@asynccontextmanager
async def ainvoke_aiohttp(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """ChatOpenAI.ainvoke over the SDK's aiohttp transport."""
    from langchain_openai import ChatOpenAI
    from openai import DefaultAioHttpClient
    from pydantic import SecretStr

    async with DefaultAioHttpClient() as http:
        model = ChatOpenAI(
            model=MODEL, base_url=url, api_key=SecretStr(KEY), max_retries=0, timeout=60, http_async_client=http
        )
        yield lambda prompts: _invoke(model, prompts)


@asynccontextmanager
async def abatch(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """ChatOpenAI.abatch, as it comes."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(model=MODEL, base_url=url, api_key=SecretStr(KEY), max_retries=0, timeout=60)

    async def ask(prompts: list[str]) -> None:
        answers = await model.abatch([_messages(each) for each in prompts], {"max_concurrency": concurrency})
        assert all(answer.text for answer in answers)

    yield ask


async def _invoke(model: Any, prompts: list[str]) -> None:
    for prompt in prompts:
        answer = await model.ainvoke(_messages(prompt))
        assert answer.text


def _messages(prompt: str) -> Any:
    from langchain_core.messages import HumanMessage, SystemMessage

    return [SystemMessage(SYSTEM), HumanMessage(prompt)]


@asynccontextmanager
async def gateway_request(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """LLMGateway.request, everything on: queue, journal, statistics, prices."""
    async with _gateway(url, concurrency) as gateway:
        yield lambda prompts: _request(gateway, prompts)


@asynccontextmanager
async def gateway_batch(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """LLMGateway.batch, everything on."""
    async with _gateway(url, concurrency) as gateway:

        async def ask(prompts: list[str]) -> None:
            answers = await gateway.batch([_llm_request(each) for each in prompts])
            assert all(answer.receipt.cost_usd for answer in answers)

        yield ask


@asynccontextmanager
async def _gateway(url: str, concurrency: int) -> AsyncIterator[Any]:
    from llm_gateway import LLMGateway

    with TemporaryDirectory() as logs:
        config = {
            "providers": {"openai": {"base_url": url, "api_key": KEY}},
            "models": {MODEL: {"max_concurrency": concurrency}},
            "logs": {"dir": logs},
        }
        async with LLMGateway(config) as gateway:
            yield gateway
        assert os.listdir(logs), "the journal wrote nothing"  # noqa: PTH208


async def _request(gateway: Any, prompts: list[str]) -> None:
    for prompt in prompts:
        answer = await gateway.request(_llm_request(prompt))
        assert answer.receipt.cost_usd


def _llm_request(prompt: str) -> Any:
    from llm_gateway import LLMMessage, LLMRequest

    return LLMRequest(
        model=MODEL, messages=[LLMMessage(role="system", content=SYSTEM), LLMMessage(role="user", content=prompt)]
    )


@asynccontextmanager
async def litellm_router(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """LiteLLM's Router.acompletion, with one deployment and no retries."""
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    litellm: Any = importlib.import_module("litellm")  # only its own environment has it
    litellm.suppress_debug_info = True
    deployment = {"model": f"openai/{MODEL}", "api_base": url, "api_key": KEY}
    router = litellm.Router(model_list=[{"model_name": MODEL, "litellm_params": deployment}], num_retries=0)

    async def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            answer = await router.acompletion(model=MODEL, messages=messages, temperature=0.0)
            assert answer.choices[0].message.content

    yield ask


@asynccontextmanager
async def nothing_with_journal(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """LLMGateway.request over a client that does nothing: the gateway's own share."""
    with TemporaryDirectory() as logs:
        async with _gateway_over_nothing(concurrency, logs) as ask:
            yield ask
        assert os.listdir(logs), "the journal wrote nothing"  # noqa: PTH208


@asynccontextmanager
async def nothing_without_journal(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """The same, the journal turned off."""
    async with _gateway_over_nothing(concurrency, False) as ask:
        yield ask


@asynccontextmanager
async def _gateway_over_nothing(concurrency: int, logs: str | bool) -> AsyncIterator[Ask]:  # noqa: FBT001
    from llm_gateway import LLMGateway
    from llm_gateway.clients.base import Completion
    from llm_gateway.models import TokenUsage

    completion = Completion(content="ok", finish_reason="stop", usage=TokenUsage(input_tokens=120, output_tokens=40))

    class Nothing:
        """A client, and the factory of it."""

        def connect(self, _deployment: object, /) -> Nothing:
            return self

        def check(self, _request: object, /) -> None: ...

        async def generate(self, _request: object, /) -> Completion:
            return completion

        async def aclose(self) -> None: ...

        def abandon(self) -> None: ...

    class OverNothing(LLMGateway):
        def _connect(self) -> Nothing:
            return Nothing()

    async with OverNothing({"models": {MODEL: {"max_concurrency": concurrency}}, "logs": {"dir": logs}}) as gateway:
        yield lambda prompts: _request(gateway, prompts)


@asynccontextmanager
async def bare_runnable(url: str, concurrency: int) -> AsyncIterator[Ask]:  # noqa: ARG001
    """LangChain's Runnable.abatch over a function that does nothing: its part of the gateway's share."""
    from llm_gateway.clients.runnable import CallEach

    async def call(_prompt: str) -> None: ...

    async def ask(prompts: list[str]) -> None:
        await CallEach(call).abatch(prompts)

    yield ask


SUBJECTS = {
    "ainvoke": ainvoke,
    "ainvoke_aiohttp": ainvoke_aiohttp,
    "abatch": abatch,
    "gateway_request": gateway_request,
    "gateway_batch": gateway_batch,
    "litellm_router": litellm_router,
    "nothing_with_journal": nothing_with_journal,
    "nothing_without_journal": nothing_without_journal,
    "bare_runnable": bare_runnable,
}
TAKE_LISTS = frozenset({"abatch", "gateway_batch", "bare_runnable"})
