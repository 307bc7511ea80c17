"""The gateway's own share of a request: everything but the call."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.scene import MODELS, Scene
from bench.subjects import LIMITS, Ask, request

if TYPE_CHECKING:
    from llm_gateway import LLMGateway


@asynccontextmanager
async def nothing_with_journal(server: str, scene: Scene) -> AsyncIterator[Ask]:  # noqa: ARG001
    """LLMGateway.request over a client that does nothing: the gateway's own share."""
    with TemporaryDirectory() as logs:
        async with _over_nothing(scene, logs) as ask:
            yield ask
        assert os.listdir(logs), "the journal wrote nothing"  # noqa: PTH208


@asynccontextmanager
async def nothing_frozen(server: str, scene: Scene) -> AsyncIterator[Ask]:  # noqa: ARG001
    """The same as `nothing_with_journal`, with the option `freeze`."""
    with TemporaryDirectory() as logs:
        async with _over_nothing(scene, logs, freeze=True) as ask:
            yield ask


@asynccontextmanager
async def nothing_without_journal(server: str, scene: Scene) -> AsyncIterator[Ask]:  # noqa: ARG001
    """The same, the journal turned off."""
    async with _over_nothing(scene, False) as ask:
        yield ask


def gateway_over_nothing() -> type[LLMGateway]:
    """Return the gateway over a client that answers at once and does nothing."""
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

        async def stream(self, _request: object, /) -> AsyncGenerator[Completion, None]:
            yield completion

        async def aclose(self) -> None: ...

        def abandon(self) -> None: ...

    class OverNothing(LLMGateway):
        _careful = False

        def _connect(self) -> Nothing:
            return Nothing()

    return OverNothing


@asynccontextmanager
async def _over_nothing(scene: Scene, logs: str | bool, *, freeze: bool = False) -> AsyncIterator[Ask]:  # noqa: FBT001
    OverNothing = gateway_over_nothing()  # noqa: N806 - a class

    model = {"max_concurrency": scene.concurrency, "limits": LIMITS}
    config = {"models": {MODELS["openai"]: model}, "logs": {"dir": logs}, "freeze": freeze}
    async with OverNothing(config) as gateway:
        yield lambda prompts: request(gateway, scene, prompts)


@asynccontextmanager
async def bare_runnable(server: str, scene: Scene) -> AsyncIterator[Ask]:  # noqa: ARG001
    """LangChain's Runnable.abatch over a function that does nothing: its part of the gateway's share."""
    from llm_gateway.clients.runnable import CallEach

    async def call(_prompt: str) -> None: ...

    async def ask(prompts: list[str]) -> None:
        await CallEach(call).abatch(prompts)

    yield ask
