"""What is compared: each subject answers one list of prompts, as a user of it would write that.

A subject imports its libraries when it is opened, in a process of its own, so that memory and time are its own too.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

from bench.scene import KEY, MODELS, Scene

Ask = Callable[[list[str]], Awaitable[None]]
"""Answer these prompts; those made for single calls are given one at a time."""
Tell = Callable[[str], AsyncGenerator[str, None]]
"""Answer this prompt piece by piece."""

# Far away: they are counted for every request, and never bind.
LIMITS = {"rpm": 60_000_000, "tpm": 60_000_000_000}


def chat_model(server: str, scene: Scene, **more: Any) -> Any:
    """Return LangChain's own class for the scene's API, as it comes."""
    from pydantic import SecretStr

    common = {"base_url": scene.base_url(server), "api_key": SecretStr(KEY), "max_retries": 0, "timeout": 60, **more}
    if scene.api == "openai":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=MODELS["openai"], **common)
    from langchain_anthropic import ChatAnthropic

    # Its type checker's view knows these by other names.
    return ChatAnthropic(**{"model": MODELS["anthropic"], "max_tokens": 256, **common})


def langchain_messages(scene: Scene, prompt: str) -> Any:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    classes = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    return [classes[role](text) for role, text in scene.messages(prompt)]


@asynccontextmanager
async def ainvoke(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """ChatOpenAI.ainvoke or ChatAnthropic.ainvoke, as it comes."""
    model = chat_model(server, scene)
    yield lambda prompts: _invoke(model, scene, prompts)


@asynccontextmanager
async def ainvoke_aiohttp(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """ChatOpenAI.ainvoke over the SDK's aiohttp transport."""
    from openai import DefaultAioHttpClient

    async with DefaultAioHttpClient() as http:
        model = chat_model(server, scene, http_async_client=http)
        yield lambda prompts: _invoke(model, scene, prompts)


async def _invoke(model: Any, scene: Scene, prompts: list[str]) -> None:
    for prompt in prompts:
        answer = await model.ainvoke(langchain_messages(scene, prompt))
        assert answer.text


@asynccontextmanager
async def abatch(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """ChatOpenAI.abatch, as it comes."""
    model = chat_model(server, scene)

    async def ask(prompts: list[str]) -> None:
        lists = [langchain_messages(scene, each) for each in prompts]
        answers = await model.abatch(lists, {"max_concurrency": scene.concurrency})
        assert all(answer.text for answer in answers)

    yield ask


@asynccontextmanager
async def raw_aiohttp(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """A POST with aiohttp, and nothing else but JSON: the floor."""
    async with _posting(server, scene) as post:

        async def ask(prompts: list[str]) -> None:
            for prompt in prompts:
                async with post(prompt) as response:
                    answer = json.loads(await response.read())
                assert answer["usage"]

        yield ask


@asynccontextmanager
async def _posting(server: str, scene: Scene, *, streamed: bool = False) -> AsyncIterator[Callable[[str], Any]]:
    import aiohttp

    is_openai = scene.api == "openai"
    url = scene.base_url(server) + ("/chat/completions" if is_openai else "/v1/messages")
    headers = {"authorization": f"Bearer {KEY}"} if is_openai else {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        def post(prompt: str) -> Any:
            messages = [{"role": role, "content": text} for role, text in scene.messages(prompt)]
            body = {"model": MODELS[scene.api], "messages": messages, "max_tokens": 256}
            return session.post(url, json=body | {"stream": True} if streamed else body)

        yield post


@asynccontextmanager
async def gateway_request(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """LLMGateway.request, everything on: limits, queue, journal, statistics, prices."""
    async with gateway(server, scene) as ours:
        yield lambda prompts: request(ours, scene, prompts)


@asynccontextmanager
async def gateway_request_sdk(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """The same, through the provider's SDK instead of the lean transport."""
    async with gateway(server, scene, transport="sdk") as ours:
        yield lambda prompts: request(ours, scene, prompts)


@asynccontextmanager
async def gateway_request_frozen(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """The same as `gateway_request`, with the option `freeze`."""
    async with gateway(server, scene, freeze=True) as ours:
        yield lambda prompts: request(ours, scene, prompts)


@asynccontextmanager
async def gateway_batch(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """LLMGateway.batch, everything on."""
    async with gateway(server, scene) as ours:

        async def ask(prompts: list[str]) -> None:
            answers = await ours.batch([llm_request(scene, each) for each in prompts])
            assert all(answer.receipt.cost_usd for answer in answers)

        yield ask


@asynccontextmanager
async def gateway(server: str, scene: Scene, transport: str = "lean", *, freeze: bool = False) -> AsyncIterator[Any]:
    from llm_gateway import LLMGateway

    with TemporaryDirectory() as logs:
        provider = {"base_url": scene.base_url(server), "api_key": KEY, "transport": transport}
        name = MODELS[scene.api]
        model = {"provider": scene.api, "model": name, "max_concurrency": scene.concurrency, "limits": LIMITS}
        config = {"providers": {scene.api: provider}, "models": {name: model}, "logs": {"dir": logs}, "freeze": freeze}
        async with LLMGateway(config) as ours:
            yield ours
        assert os.listdir(logs), "the journal wrote nothing"  # noqa: PTH208


async def request(ours: Any, scene: Scene, prompts: list[str]) -> None:
    for prompt in prompts:
        answer = await ours.request(llm_request(scene, prompt))
        assert answer.receipt.cost_usd


def llm_request(scene: Scene, prompt: str) -> Any:
    message, request = records()
    messages = [message(role=role, content=text) for role, text in scene.messages(prompt)]
    return request(model=MODELS[scene.api], messages=messages)


@cache
def records() -> tuple[Any, Any]:
    """Return the gateway's classes of a message and a request, imported once."""
    from llm_gateway import LLMMessage, LLMRequest

    return LLMMessage, LLMRequest


# --- streams ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def astream(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """ChatOpenAI.astream, as it comes."""
    model = chat_model(server, scene, stream_usage=True)

    async def tell(prompt: str) -> AsyncGenerator[str, None]:
        async for chunk in model.astream(langchain_messages(scene, prompt)):
            if chunk.text:
                yield chunk.text

    yield tell


@asynccontextmanager
async def raw_stream(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """Server-sent events read with aiohttp, and nothing else but JSON: the floor."""
    async with _posting(server, scene, streamed=True) as post:

        async def tell(prompt: str) -> AsyncGenerator[str, None]:
            async with post(prompt) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        choices = json.loads(line[6:])["choices"]
                        if choices and (text := choices[0]["delta"].get("content")):
                            yield text

        yield tell


@asynccontextmanager
async def gateway_stream(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """LLMGateway.stream, everything on."""
    async with gateway(server, scene) as ours:
        yield lambda prompt: _told(ours, scene, prompt)


@asynccontextmanager
async def gateway_stream_sdk(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """The same, through the provider's SDK instead of the lean transport."""
    async with gateway(server, scene, transport="sdk") as ours:
        yield lambda prompt: _told(ours, scene, prompt)


async def _told(ours: Any, scene: Scene, prompt: str) -> AsyncGenerator[str, None]:
    from llm_gateway import TextDelta

    async for piece in ours.stream(llm_request(scene, prompt)):
        if isinstance(piece, TextDelta):
            yield piece.text
