"""A provider with batches in this process: they take their time in the loop's own, and end as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, field

from fakes.provider import Connected, FakeProvider
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.batches import BatchAnswer, CreationFailedError, Found, Sought, Standing
from llm_gateway.errors import ModelNotFoundError, ProviderError
from llm_gateway.models import LLMRequest, TokenUsage
from llm_gateway.price_lanes import BATCH_LIMITS, BatchLimits

Result = str | ProviderError | None
SILENT = ""  # the result of a request without a line


@dataclass(slots=True, kw_only=True)
class FakeBatch:
    """One batch that was made. Instants in seconds of the loop."""

    id: str
    intent: str
    ids: list[str]  # of its rows
    texts: list[str]
    made: float
    cancelled: float | None = None


@dataclass(slots=True, kw_only=True)
class FakeBatches:
    """BatchClient whose batches are over after `takes` seconds, or `ends_in` seconds after a cancel."""

    limits: BatchLimits = BATCH_LIMITS["openai"]
    takes: float = 600.0
    ends_in: float = 60.0
    end: str = "completed"
    code: Callable[[FakeBatch], str | None] = lambda _batch: None
    result: Callable[[str, FakeBatch], Result] = lambda text, _batch: f"batched: {text}"
    unfit: Collection[str] = ()  # texts that no batch takes
    fail: dict[str, list[Exception]] = field(default_factory=dict)  # by step, in turn
    found: list[Found] = field(default_factory=list)
    made: list[FakeBatch] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)

    def line(self, custom_id: str, request: LLMRequest, /) -> bytes | None:
        text = str(request.messages[-1].content)
        return None if text in self.unfit else json.dumps([custom_id, text]).encode()

    def finished(self, _request: LLMRequest, completion: Completion, /) -> Completion:
        return completion

    async def create(self, intent: str, lines: Sequence[bytes], /) -> str:
        await asyncio.sleep(1.0)
        self._fails("create")
        rows = [json.loads(line) for line in lines]
        now = asyncio.get_running_loop().time()
        batch = FakeBatch(
            id=f"b{len(self.made) + 1}", intent=intent, ids=[r[0] for r in rows], texts=[r[1] for r in rows], made=now
        )
        self.made.append(batch)
        self._fails("created")
        return batch.id

    async def look(self, batch_id: str, /) -> Standing:
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        self._fails("look")
        batch = self._batch(batch_id)
        if batch.cancelled is not None:
            over = now >= min(batch.cancelled + self.ends_in, batch.made + self.takes)
            return Standing(state="cancelled" if over else "cancelling", is_over=over, is_ending=True)
        if now < batch.made + self.takes:
            return Standing(state="in_progress", is_over=False, served=1)
        code = self.code(batch)
        state = "failed" if code else self.end
        return Standing(state=state, is_over=True, is_whole=state == "completed", code=code, reason="no good")

    async def find(self, _sought: Sought, /) -> Found:
        self._fails("find")
        return self.found.pop(0) if self.found else Found()

    async def results(self, batch_id: str, /) -> AsyncGenerator[BatchAnswer, None]:
        batch = self._batch(batch_id)
        for custom_id, text in zip(batch.ids, batch.texts, strict=True):
            self._fails("results")
            told = self.result(text, batch)
            if told == SILENT:
                continue
            usage = TokenUsage(input_tokens=10, output_tokens=5)
            outcome = Completion(content=told, finish_reason="stop", usage=usage) if isinstance(told, str) else told
            yield BatchAnswer(custom_id=custom_id, outcome=outcome)
            yield BatchAnswer(custom_id="of-nobody", outcome=None)

    async def cancel(self, batch_id: str, /) -> None:
        self._fails("cancel")
        self._batch(batch_id).cancelled = asyncio.get_running_loop().time()

    def _batch(self, batch_id: str) -> FakeBatch:
        return next(each for each in self.made if each.id == batch_id)

    def _fails(self, step: str) -> None:
        if self.fail.get(step):
            raise self.fail[step].pop(0)


@dataclass(slots=True, kw_only=True)
class BatchProvider(FakeProvider):
    """A fake provider whose deployments share batches."""

    batches: FakeBatches = field(default_factory=FakeBatches)

    def connect(self, deployment: Deployment, /) -> ConnectedWithBatches:
        return ConnectedWithBatches(self, deployment.label, self.batches)


@dataclass(frozen=True, slots=True)
class ConnectedWithBatches(Connected):
    """ChatClient with batches."""

    batches: FakeBatches

    def batch_client(self) -> FakeBatches:
        return self.batches


def not_made(error: ProviderError, *, doubtful: bool = False) -> CreationFailedError:
    return CreationFailedError(error, doubtful=doubtful)


def unknown_batch() -> ModelNotFoundError:
    return ModelNotFoundError("no such batch", provider="fake", model="m", status=404)
