"""What is compared under a limit: each subject answers one request, as a user of it would write that.

A subject imports its libraries when it is opened, in a process of its own; LiteLLM's is another environment.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from bench.workload import HIGH, HIGH_EVERY_S, Work

KEY = "sk-bench-0000000000000000"
MODEL = "gpt-4o-mini"
SHARE = 0.97  # of the limit, for the limiter that is set by hand
SMALL_BUCKET = 10  # with one that holds a second's worth, its first burst was refused
FLOOD = 1000  # callers at once, from which on a limiter that polls is told to poll no more often than by default
LITELLM_RETRIES = 10

Ask = Callable[[Work], Awaitable[float | None]]
"""Get one answer; returns the seconds in the subject's own queue where it tells them. Raises what it cannot answer."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a subject is told before it begins."""

    url: str
    rpm: float | None = None
    tpm: float | None = None
    mean_tokens: float = 1.0  # of a request, for a limiter that counts requests alone
    callers: int = 64  # at once
    retries: int = 2  # of a call by the SDK alone: its default
    priorities: bool = False  # whether requests differ in them


@asynccontextmanager
async def gateway(told: Told) -> AsyncIterator[Ask]:
    """LLMGateway.request, everything on."""
    from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestPriority

    limits: dict[str, Any] = {name: round(limit) for name, limit in (("rpm", told.rpm), ("tpm", told.tpm)) if limit}
    if told.tpm:
        limits["charge"] = "actual"  # as the server does
    with TemporaryDirectory() as logs:
        config = {
            "providers": {"openai": {"base_url": told.url, "api_key": KEY}},
            "models": {MODEL: {"limits": limits}},
            "logs": {"dir": logs},
            "freeze": True,
        }
        async with LLMGateway(config) as opened:

            async def ask(work: Work) -> float | None:
                request = LLMRequest(
                    model=MODEL,
                    messages=[LLMMessage(role="user", content=work.prompt)],
                    agent=work.agent,
                    priority=RequestPriority(work.priority),
                )
                receipt = (await opened.request(request)).receipt
                return receipt.queue_wait if receipt else None

            yield ask


@asynccontextmanager
async def langchain_limiter(told: Told) -> AsyncIterator[Ask]:
    """ChatOpenAI with LangChain's InMemoryRateLimiter, set by hand.

    It counts requests alone: a limit of tokens is told as so many requests of the mean size.
    """
    from langchain_core.rate_limiters import InMemoryRateLimiter

    per_minute = min(told.rpm or float("inf"), (told.tpm or float("inf")) / told.mean_tokens)
    rate = SHARE * per_minute / 60.0
    limiter = InMemoryRateLimiter(
        requests_per_second=rate,
        check_every_n_seconds=0.1 if told.callers >= FLOOD else 0.01,
        max_bucket_size=SMALL_BUCKET,
    )
    async with _chat_openai(told, rate_limiter=limiter) as ask:
        yield ask


@asynccontextmanager
async def plain_retries(told: Told) -> AsyncIterator[Ask]:
    """ChatOpenAI with the SDK's own retries and nothing else."""
    async with _chat_openai(told) as ask:
        yield ask


@asynccontextmanager
async def _chat_openai(told: Told, **options: Any) -> AsyncIterator[Ask]:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        model=MODEL, base_url=told.url, api_key=SecretStr(KEY), max_retries=told.retries, timeout=120, **options
    )

    async def ask(work: Work) -> None:
        await model.ainvoke(work.prompt)

    yield ask


@asynccontextmanager
async def litellm_router(told: Told) -> AsyncIterator[Ask]:
    """LiteLLM's Router with the limits of its deployment, retries and priorities."""
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "CRITICAL"}
    litellm: Any = importlib.import_module("litellm")  # only its own environment has it
    litellm.suppress_debug_info = True
    limits = {name: round(limit) for name, limit in (("rpm", told.rpm), ("tpm", told.tpm)) if limit}
    deployment = {"model": f"openai/{MODEL}", "api_base": told.url, "api_key": KEY, "timeout": 120, **limits}
    router = litellm.Router(
        model_list=[{"model_name": MODEL, "litellm_params": deployment}],
        routing_strategy="usage-based-routing-v2" if limits else "simple-shuffle",
        num_retries=LITELLM_RETRIES,
    )

    async def ask(work: Work) -> None:
        messages = [{"role": "user", "content": work.prompt}]
        priority = {"priority": work.priority} if told.priorities else {}
        await router.acompletion(model=MODEL, messages=messages, **priority)

    yield ask


class Pacer:
    """A limiter in a few lines, for a limit of requests that is known: LOW in its turn, HIGH at once."""

    def __init__(self, per_second: float) -> None:
        self._period = 1.0 / per_second
        self._next = 0.0

    async def turn(self, work: Work) -> None:
        """Return when a request may be sent."""
        if work.priority == HIGH:
            return
        now = asyncio.get_running_loop().time()
        due = max(now, self._next)
        self._next = due + self._period
        await asyncio.sleep(due - now)


def _pacer(told: Told) -> Pacer:
    return Pacer(SHARE * (told.rpm or float("inf")) / 60.0 - 1.0 / HIGH_EVERY_S)


@asynccontextmanager
async def paced_aiohttp(told: Told) -> AsyncIterator[Ask]:
    """A POST of aiohttp behind a pacer: the least that a client in Python could do on this machine."""
    import aiohttp

    pacer = _pacer(told)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(work: Work) -> None:
            await pacer.turn(work)
            body = {"model": MODEL, "messages": [{"role": "user", "content": work.prompt}]}
            async with session.post(f"{told.url}/chat/completions", json=body) as response:
                response.raise_for_status()
                await response.json()

        yield ask


@asynccontextmanager
async def paced_langchain(told: Told) -> AsyncIterator[Ask]:
    """ChatOpenAI behind the same pacer."""
    pacer = _pacer(told)
    async with _chat_openai(told) as answer:

        async def ask(work: Work) -> None:
            await pacer.turn(work)
            await answer(work)

        yield ask


SUBJECTS = {
    "gateway": gateway,
    "paced_aiohttp": paced_aiohttp,
    "paced_langchain": paced_langchain,
    "langchain_limiter": langchain_limiter,
    "litellm_router": litellm_router,
    "plain_retries": plain_retries,
}
TITLES = {
    "gateway": "`LLMGateway.request`",
    "paced_aiohttp": "raw aiohttp behind a pacer of a few lines",
    "paced_langchain": "`ChatOpenAI` behind the same pacer",
    "langchain_limiter": "`ChatOpenAI` with `InMemoryRateLimiter`, set by hand",
    "litellm_router": "LiteLLM `Router`, rpm/tpm and retries",
    "plain_retries": "`ChatOpenAI`, the SDK's retries alone",
}
