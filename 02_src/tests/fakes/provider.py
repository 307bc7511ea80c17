"""A provider in this process: answers by script, in the loop's own time, and keeps a ledger of every call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestPriority
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.errors import AuthenticationError, ProviderUnavailableError, RateLimitError
from llm_gateway.events import Event, Observer
from llm_gateway.models import EmbeddingRequest, StreamDelta, TextDelta, TokenUsage


@dataclass(frozen=True, slots=True)
class Broken:
    """An answer that breaks off: a stream brings `text` first, a call that does not stream fails at once."""

    text: str
    error: Exception


Outcome = str | Exception | Broken
Answer = Callable[[LLMRequest], Outcome | None]  # None: whatever else says
QUIET = {"logs": {"dir": False}, "seed": 1}


@dataclass(slots=True, kw_only=True)
class Entry:
    """One provider call. Instants in seconds of the loop."""

    request: LLMRequest
    deployment: str  # its label
    began: float
    ended: float | None = None
    outcome: str = "under way"
    pieces: int = 0  # words of a stream that were taken


@dataclass(slots=True, kw_only=True)
class FakeProvider:
    """ClientFactory and ChatClient in one: every model answers as told."""

    by: dict[str, Outcome | Answer] = field(default_factory=dict)  # what a deployment answers, by its label
    latency: Callable[[LLMRequest], float] = lambda _: 1.0
    pace: Callable[[LLMRequest], float] = lambda _: 0.0  # seconds after each word of a stream
    script: list[Outcome] = field(default_factory=list)  # taken in turn; then every call is answered "ok"
    answer: Answer = lambda _: None  # asked before the script, and after `by`
    work: Callable[[LLMRequest], Awaitable[Outcome | None]] | None = None  # done inside each call, and may answer it
    usage: Callable[[LLMRequest], TokenUsage | None] = lambda _: TokenUsage(input_tokens=10, output_tokens=5)
    headers: Mapping[str, str] = field(default_factory=dict)  # of every answer
    ledger: list[Entry] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    closed: int = 0
    abandoned: int = 0

    def connect(self, deployment: Deployment, /) -> Connected:
        return Connected(self, deployment.label)

    def check(self, _request: LLMRequest, /) -> None:
        return None

    async def generate(self, request: LLMRequest, /, deployment: str = "fake/m") -> Completion:
        outcome, entry = self._begin(request, deployment)
        with self._under_way(entry):
            await asyncio.sleep(self.latency(request))
            if self.work is not None:
                outcome = await self.work(request) or outcome
            if isinstance(outcome, Broken):
                raise outcome.error
            if isinstance(outcome, Exception):
                raise outcome
            return self._completion(request, outcome)

    async def stream(
        self, request: LLMRequest, /, deployment: str = "fake/m"
    ) -> AsyncGenerator[StreamDelta | Completion, None]:
        """The latency passes before the first word, the pace before each further one, also before what ends it."""
        outcome, entry = self._begin(request, deployment)
        with self._under_way(entry):
            await asyncio.sleep(self.latency(request))
            if isinstance(outcome, Exception):
                raise outcome
            text = outcome.text if isinstance(outcome, Broken) else outcome
            for word in re.findall(r"\s*\S+|\s+$", text):
                yield TextDelta(word)
                entry.pieces += 1
                await asyncio.sleep(self.pace(request))
            if isinstance(outcome, Broken):
                raise outcome.error
        yield self._completion(request, outcome)

    def _begin(self, request: LLMRequest, deployment: str) -> tuple[Outcome, Entry]:
        entry = Entry(request=request, deployment=deployment, began=asyncio.get_running_loop().time())
        self.ledger.append(entry)
        told = self.by.get(deployment)
        outcome = told(request) if callable(told) else told
        if outcome is None:
            outcome = self.answer(request)
        if outcome is None:
            outcome = self.script.pop(0) if self.script else "ok"
        return outcome, entry

    @contextmanager
    def _under_way(self, entry: Entry) -> Iterator[None]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            yield
            entry.outcome = "answered"
        except (asyncio.CancelledError, GeneratorExit):
            entry.outcome = "cancelled"
            raise
        except Exception as error:
            entry.outcome = type(error).__name__
            raise
        finally:
            entry.ended = asyncio.get_running_loop().time()
            self.under_way -= 1

    def _completion(self, request: LLMRequest, content: str) -> Completion:
        vectors = [vector_of(text) for text in request.texts] if isinstance(request, EmbeddingRequest) else None
        return Completion(
            content=content, finish_reason="stop", usage=self.usage(request), headers=self.headers, vectors=vectors
        )

    async def aclose(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        self.abandoned += 1

    @property
    def sent(self) -> list[str]:
        """The ids of the requests in the order of their calls."""
        return [entry.request.request_id for entry in self.ledger]

    @property
    def asked(self) -> list[str]:
        """The labels of the deployments in the order of their calls."""
        return [entry.deployment for entry in self.ledger]


def vector_of(text: str) -> list[float]:
    """A vector that tells its text from others."""
    return [float(len(text)), float(sum(map(ord, text)))]


@dataclass(frozen=True, slots=True)
class Connected:
    """ChatClient of one deployment."""

    provider: FakeProvider
    deployment: str

    def check(self, request: LLMRequest, /) -> None:
        self.provider.check(request)

    async def generate(self, request: LLMRequest, /) -> Completion:
        return await self.provider.generate(request, self.deployment)

    def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        return self.provider.stream(request, self.deployment)

    async def aclose(self) -> None:
        await self.provider.aclose()


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event, /) -> None:
        self.events.append(event)


def gateway_over(provider: FakeProvider, *, observers: Iterable[Observer] = (), **config: object) -> LLMGateway:
    """The real gateway over a fake provider, with no journal."""

    class Gateway(careful_gateway_over(provider)):  # type: ignore[misc]
        _careful = False

    return cast("LLMGateway", Gateway({**QUIET, **config}, observers=observers))


def careful_gateway_over(provider: FakeProvider) -> type[LLMGateway]:
    """The real gateway over a fake provider, as careful with it as with a public one."""

    class Gateway(LLMGateway):
        def _connect(self) -> FakeProvider:
            return provider

    return Gateway


def ask(
    request_id: str,
    priority: RequestPriority | None = None,
    *,
    model: str = "gpt-4o-mini",
    text: str = "hello",
    deadline: float | None = None,
    **fields: Any,
) -> LLMRequest:
    """A request; one without a priority inherits that of the call it is asked in."""
    if priority is not None:
        fields["priority"] = priority
    return LLMRequest(
        model=model,
        messages=[LLMMessage(role="user", content=text)],
        request_id=request_id,
        deadline=deadline,
        **fields,
    )


def rate_limited(retry_after: float | None = None) -> RateLimitError:
    return RateLimitError("busy", provider="fake", model="m", status=429, retry_after=retry_after)


def refused_key() -> AuthenticationError:
    return AuthenticationError("no", provider="fake", model="m", status=401)


def unavailable(retry_after: float | None = None) -> ProviderUnavailableError:
    return ProviderUnavailableError("down", provider="fake", model="m", status=503, retry_after=retry_after)
