"""What a row costs this machine: a short job over a client that answers in the process, timed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_gateway.clients.base import ChatClient, ClientFactory, Completion, Deployment
from llm_gateway.errors import GatewayError
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import LLMMessage, LLMRequest, StreamDelta, TokenUsage
from llm_gateway.planning.census import Census

FIRST, TIMED = 100, 500  # rows of a job before the clock is looked at, and of the one that is timed
WITH_CALL = 3.0  # times the own share of a row that it takes with its call over HTTP, as `make bench-bulk` measured it
WORTH_IT = 1_000  # rows below which the CPU is no question
LONGEST = 20_000  # characters of a prompt
MODEL = "gpt-4o-mini"
CONFIG = {"models": {MODEL: {"max_concurrency": 100, "limits": {"rpm": 60_000_000}}}}
ANSWER = Completion(
    content="A short answer.", finish_reason="stop", usage=TokenUsage(input_tokens=100, output_tokens=40)
)


class Instant:
    """A client that answers at once, and the factory of it."""

    def connect(self, _deployment: Deployment, /) -> ChatClient:
        """Return itself."""
        return self

    def check(self, request: LLMRequest, /) -> None:
        """Refuse nothing."""

    async def generate(self, _request: LLMRequest, /) -> Completion:
        """Answer."""
        return ANSWER

    async def stream(self, _request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Answer in one piece."""
        yield ANSWER

    async def aclose(self) -> None:
        """Nothing is open."""

    def abandon(self) -> None:
        """Nothing is open."""


class Rehearsal(LLMGateway):
    """The gateway over that client."""

    _careful = False

    def _connect(self) -> ClientFactory:
        return Instant()


def row_cpu(census: Census) -> float | None:
    """Return the seconds of one core that a row of this input takes on this machine, its call over HTTP included.

    None where the rows are too few to matter, or nothing can be measured: the disk of temporary files is full. It runs
    an event loop of its own, so call it outside of one, and while nothing else runs in the process.
    """
    rows = sum(sums.rows for sums in census.kinds.values())
    if rows < WORTH_IT:
        return None
    tokens = sum(sums.input for sums in census.kinds.values()) / rows
    try:
        with TemporaryDirectory(prefix="llm-gateway-") as folder:
            text = "x" * min(LONGEST, round(4 * tokens))
            asyncio.run(_job(Path(folder), text, FIRST))
            began = time.process_time()
            asyncio.run(_job(Path(folder), text, TIMED))
            return (time.process_time() - began) / TIMED * WITH_CALL
    except (OSError, GatewayError) as error:
        logging.getLogger("llm_gateway").debug("the CPU of a row was not measured: %s", error)
        return None


async def _job(folder: Path, text: str, rows: int) -> None:
    gateway = Rehearsal({**CONFIG, "logs": {"dir": str(folder)}})
    async with gateway, gateway.job(folder / f"{rows}.job") as job:
        async for _ in job.run(_requests(text, rows)):
            pass


def _requests(text: str, rows: int) -> Iterator[LLMRequest]:
    for number in range(rows):
        message = LLMMessage(role="user", content=f"{number} {text}")
        yield LLMRequest(model=MODEL, messages=[message], request_id=f"rehearsed-{number}")
