"""A provider in this process: answers by script, in the loop's own time, and keeps a ledger of every call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestPriority
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.errors import ProviderUnavailableError, RateLimitError
from llm_gateway.events import Event
from llm_gateway.models import TokenUsage

Outcome = str | Exception
QUIET = {"logs": {"dir": False}, "seed": 1}


@dataclass(slots=True, kw_only=True)
class Entry:
    """One provider call. Instants in seconds of the loop."""

    request: LLMRequest
    began: float
    ended: float | None = None
    outcome: str = "under way"


@dataclass(slots=True, kw_only=True)
class FakeProvider:
    """ClientFactory and ChatClient in one: every model answers as told."""

    latency: Callable[[LLMRequest], float] = lambda _: 1.0
    script: list[Outcome] = field(default_factory=list)  # taken in turn; then every call is answered "ok"
    answer: Callable[[LLMRequest], Outcome | None] = lambda _: None  # asked before the script
    headers: Mapping[str, str] = field(default_factory=dict)  # of every answer
    ledger: list[Entry] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    closed: int = 0
    abandoned: int = 0

    def connect(self, _deployment: Deployment, /) -> FakeProvider:
        return self

    def check(self, _request: LLMRequest, /) -> None:
        return None

    async def generate(self, request: LLMRequest, /) -> Completion:
        now = asyncio.get_running_loop().time
        entry = Entry(request=request, began=now())
        self.ledger.append(entry)
        outcome = self.answer(request) or (self.script.pop(0) if self.script else "ok")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.latency(request))
            if isinstance(outcome, Exception):
                entry.outcome = type(outcome).__name__
                raise outcome
            entry.outcome = "answered"
            usage = TokenUsage(input_tokens=10, output_tokens=5)
            return Completion(content=outcome, finish_reason="stop", usage=usage, headers=self.headers)
        except asyncio.CancelledError:
            entry.outcome = "cancelled"
            raise
        finally:
            entry.ended = now()
            self.under_way -= 1

    async def aclose(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        self.abandoned += 1

    @property
    def sent(self) -> list[str]:
        """The ids of the requests in the order of their calls."""
        return [entry.request.request_id for entry in self.ledger]


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event, /) -> None:
        self.events.append(event)


def gateway_over(
    provider: FakeProvider, *, observers: Iterable[Recorder] = (), **config: Mapping[str, object]
) -> LLMGateway:
    """The real gateway over a fake provider, with no journal."""

    class Gateway(LLMGateway):
        def _connect(self) -> FakeProvider:
            return provider

    return Gateway({**QUIET, **config}, observers=observers)


def ask(
    request_id: str,
    priority: RequestPriority = RequestPriority.NORMAL,
    *,
    model: str = "gpt-4o-mini",
    text: str = "hello",
    deadline: float | None = None,
) -> LLMRequest:
    return LLMRequest(
        model=model,
        messages=[LLMMessage(role="user", content=text)],
        request_id=request_id,
        priority=priority,
        deadline=deadline,
    )


def rate_limited(retry_after: float | None = None) -> RateLimitError:
    return RateLimitError("busy", provider="fake", model="m", status=429, retry_after=retry_after)


def unavailable(retry_after: float | None = None) -> ProviderUnavailableError:
    return ProviderUnavailableError("down", provider="fake", model="m", status=503, retry_after=retry_after)
