"""Where contract tests play: MockLLMGateway, and LLMGateway over HTTP to the emulator. Both take the same script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fakes.emulator import Call, Emulator, Reply, ToolCall, Usage
from llm_gateway import LLMGateway
from llm_gateway.events import Observer
from llm_gateway.mock_gateway import MockLLMGateway

MODEL = "gpt-4o-mini"


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """One answer of the provider."""

    text: str = "ok"
    tool: tuple[str, Mapping[str, Any]] | None = None
    usage: tuple[int, int] = (10, 5)  # input and output tokens
    status: int = 200
    retry_after: float | None = None
    latency: float = 0.0


Script = Mapping[str, Sequence[Says]]
"""Answers in turn to a prompt, the last one again and again; every other prompt is answered "ok"."""


class Stage(Protocol):
    """A gateway, and the provider behind it."""

    sent: list[str]
    """The prompts of all provider calls, in order."""

    def gateway(self, script: Script | None = None, *, observers: Sequence[Observer] = (), **config: Any) -> LLMGateway:
        """Build a gateway that waits next to nothing before a retry and keeps no journal. Needs no loop."""

    @asynccontextmanager
    def provider(self) -> AsyncIterator[None]:
        """Run the provider in the running loop."""

    async def arrived(self, count: int) -> None:
        """Wait until the provider was called `count` times."""


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"logs": {"dir": False}, "retry": {"base_delay": 0.001}, "seed": 1, **config}


class MockStage:
    """Everything in this process."""

    def __init__(self) -> None:
        self._made: list[MockLLMGateway] = []

    @property
    def sent(self) -> list[str]:
        return [call.text for gateway in self._made for call in gateway.calls]

    def gateway(self, script: Script | None = None, *, observers: Sequence[Observer] = (), **config: Any) -> LLMGateway:
        rules = [
            {"match": {"text": prompt}, "replies": [_scripted(each) for each in answers]}
            for prompt, answers in (script or {}).items()
        ]
        responses = {"rules": rules, "default": _scripted(Says())}
        self._made.append(MockLLMGateway(settings(config), responses=responses, observers=observers))
        return self._made[-1]

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[None]:
        yield

    async def arrived(self, count: int) -> None:
        while len(self.sent) < count:  # noqa: ASYNC110 - the mock rings no bell, and its calls begin within a few turns
            await asyncio.sleep(0)


def _scripted(says: Says) -> dict[str, Any]:
    if says.status != 200:
        error = {"status": says.status, "retry_after": says.retry_after}
        return {"latency": says.latency, "error": error}
    usage = {"input_tokens": says.usage[0], "output_tokens": says.usage[1]}
    answer: dict[str, Any] = {"content": says.text, "usage": usage, "latency": says.latency}
    if says.tool:
        answer |= {"content": "", "tool_calls": [{"name": says.tool[0], "arguments": dict(says.tool[1])}]}
    return answer


class RealStage:
    """ChatOpenAI over HTTP to the emulator, at the same port in every loop."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.sent: list[str] = []
        self._script: dict[str, list[Says]] = {}
        self._arrivals = asyncio.Event()

    def gateway(self, script: Script | None = None, *, observers: Sequence[Observer] = (), **config: Any) -> LLMGateway:
        self._script = {prompt: list(answers) for prompt, answers in (script or {}).items()}
        endpoint = {"base_url": f"http://127.0.0.1:{self._port}/v1", "api_key": "sk-canary-contract"}
        return LLMGateway(settings({"providers": {"openai": endpoint}, **config}), observers=observers)

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[None]:
        async with Emulator.serve(self._port) as emulator:
            emulator.answer = self._answer
            yield

    async def arrived(self, count: int) -> None:
        while len(self.sent) < count:
            self._arrivals.clear()
            await self._arrivals.wait()

    def _answer(self, call: Call) -> Reply:
        prompt = next(str(each["content"]) for each in reversed(call.body["messages"]) if each["role"] == "user")
        self.sent.append(prompt)
        self._arrivals.set()
        answers = self._script.get(prompt, [Says()])
        return _reply(answers.pop(0) if len(answers) > 1 else answers[0])


def _reply(says: Says) -> Reply:
    hint = {} if says.retry_after is None else {"retry-after-ms": str(says.retry_after * 1000)}
    if says.status != 200:
        return Reply(status=says.status, headers=hint, latency=says.latency)
    tools = (ToolCall(name=says.tool[0], args=says.tool[1]),) if says.tool else ()
    return Reply(
        text="" if tools else says.text,
        tool_calls=tools,
        usage=Usage(input=says.usage[0], output=says.usage[1]),
        latency=says.latency,
    )
