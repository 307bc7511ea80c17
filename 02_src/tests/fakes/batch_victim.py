"""What a victim is in the batch lane: the real command with the real clients, and a fuse at each step of a batch.

Its provider is an emulator in the test's own process, whose books outlive every victim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai.resources.files  # noqa: F401 - imported once, not in every process

from llm_gateway import LLMGateway, LLMMessage, LLMRequest, ProviderError, jobs
from llm_gateway.cli import run as run_module
from llm_gateway.cli.run import Options, run_file
from llm_gateway.clock import LoopClock
from llm_gateway.jobs import Job, batches
from llm_gateway.jobs.hooks import Hooks

MAKING = ("before_intent", "intended", "made", "noted", "over", "recorded", "before_close", "closed")
STEPS = (*MAKING, "adopted", "before_cancel", "cancelled")  # as the engine names them
WIRE = ("sending", "sent")  # before a request goes out, and when the head of its answer is there
ROWS_AT_ONCE = 2  # so that results are recorded in several steps
LARGEST = 1000  # bytes: some five rows in a batch
AN_HOUR = 3600.0
DEADLINE = 0.5  # hours


class Late(LoopClock):
    """A clock that jumps beyond the deadline: as soon as a batch is noted, or where one goes on, at the first wait."""

    def __init__(self, passed: Callable[[str], None], *, goes_on: bool) -> None:
        super().__init__()
        self._passed = passed
        self._goes_on = goes_on
        self._skipped = 0.0

    def now(self) -> float:
        return super().now() + self._skipped

    def timeout(self, seconds: float | None, /) -> AbstractAsyncContextManager[Any]:
        if self._goes_on:
            self._skipped = AN_HOUR
            return super().timeout(0.0)
        return super().timeout(seconds)

    def passed(self, step: str) -> None:
        if step == "noted":
            self._skipped = AN_HOUR
        self._passed(step)


async def warm_up() -> None:
    """Make all that a first call and a first batch need, for providers that are not there."""
    ways = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
    config = {
        "logs": {"dir": False},
        "retry": {"max_attempts": 1},
        "providers": {kind: {"base_url": "http://127.0.0.1:9", "api_key": "none"} for kind in ways},
        "models": {kind: {"provider": kind, "model": model, "limits": False} for kind, model in ways.items()},
    }
    async with LLMGateway(config) as gateway:
        for kind in ways:
            line = gateway.batch_line(kind)
            assert line is not None
            asked = LLMRequest(model=kind, messages=[LLMMessage(role="user", content="hi")])
            line.client.line("x", asked)
            for call in (line.client.look("x"), gateway.request(asked)):
                with suppress(ProviderError):
                    await call


def run_in_batches(passed: Callable[[str], None], *, late: bool) -> int:
    """Work on the job of this folder in the batch lane; `late`: its deadline comes while the batches are under way."""
    batches.ROWS_AT_ONCE, batches.LARGEST = ROWS_AT_ONCE, LARGEST
    _light_the_wire(passed)
    options = Options(lane="batch", poll=0.001)
    if late:
        clock = Late(passed, goes_on=Path("out.jsonl.job").exists())
        passed = clock.passed
        options = Options(lane="batch", poll=0.001, deadline=DEADLINE)
        vars(jobs)["Job"] = partial(Job, clock=clock)  # where the gateway takes it from
    vars(run_module)["Hooks"] = partial(Hooks, step=passed)
    return run_file("in.jsonl", "out.jsonl", options)


def _light_the_wire(passed: Callable[[str], None]) -> None:
    """Put the points into the HTTP client below the SDKs."""
    send = httpx2.AsyncClient.send

    async def sent(client: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
        passed("sending")
        response = await send(client, request, **options)
        passed("sent")
        return response

    httpx2.AsyncClient.send = sent  # type: ignore[assignment, method-assign]  # the same, and deadly
