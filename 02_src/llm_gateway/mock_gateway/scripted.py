"""Clients that answer by script: the same seam, the same errors, no network."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import ClassVar, Protocol

from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clock import Clock
from llm_gateway.errors import (
    AuthenticationError,
    ContextLengthError,
    GatewayError,
    IncompleteResponseError,
    ModelNotFoundError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitError,
    RequestRejectedError,
)
from llm_gateway.mock_gateway.answers import completion_of
from llm_gateway.mock_gateway.batches import ScriptedBatches
from llm_gateway.mock_gateway.calls import Ledger
from llm_gateway.mock_gateway.chaos import Fate, Weather
from llm_gateway.mock_gateway.matching import Asked, fits, nearest_rule, shown, what_is_missing
from llm_gateway.mock_gateway.pieces import pieces_of
from llm_gateway.mock_gateway.responses import MockResponses, Reply, Rule, ScriptedError, ScriptedStream
from llm_gateway.models import EmbeddingRequest, LLMRequest, StreamDelta, TokenUsage
from llm_gateway.price_lanes import BATCH_LIMITS
from llm_gateway.tokens import estimate_text

DIMENSIONS = 64  # numbers of a vector, unless the model's options say otherwise
Vectors = tuple[list[list[float]], TokenUsage | None]
FAIR = Fate()  # nothing befalls the call
SERVER_ERROR = 500  # the first HTTP status that blames the provider, not the request

KINDS: Mapping[str, tuple[type[ProviderError], int | None]] = {
    "rate_limit": (RateLimitError, 429),
    "timeout": (ProviderTimeoutError, None),
    "unavailable": (ProviderUnavailableError, None),
    "overloaded": (ProviderOverloadedError, 529),
    "incomplete_response": (IncompleteResponseError, None),
    "rejected": (RequestRejectedError, 400),
    "context_length": (ContextLengthError, 400),
    "authentication": (AuthenticationError, 401),
    "model_not_found": (ModelNotFoundError, 404),
    "quota_exhausted": (QuotaExhaustedError, 429),
}
"""For each kind that a script can name, the class and the status that usually comes with it."""


class UnmatchedRequestError(GatewayError):
    """No rule of the mock fits this call, and it has no default. The message names the nearest rule."""

    kind: ClassVar[str] = "unmatched"


class Replies(Protocol):
    """Where the answers come from."""

    def next_reply(self, asked: Asked, /) -> tuple[str, Reply]:
        """Return the answer to a call, and what the rule is called. Raises GatewayError if there is none."""

    def vectors_of(self, request: EmbeddingRequest, model: str, /) -> Vectors | None:
        """Return the vectors of texts in order, and what they cost; None: they are made up."""

    def rewind(self) -> None:
        """Begin anew."""


class Script:
    """The rules, and how far each has come."""

    def __init__(self, responses: MockResponses) -> None:
        self._responses = responses
        self._answered = [0] * len(responses.rules)

    def next_reply(self, asked: Asked) -> tuple[str, Reply]:
        """Return the answer to a call, and what the rule is called. Raises UnmatchedRequestError."""
        rules = self._responses.rules
        for place, rule in enumerate(rules):
            if fits(rule.match, asked):
                turn = min(self._answered[place], len(rule.sequence) - 1)
                self._answered[place] += 1
                return label_of(rules, place), rule.sequence[turn]
        if self._responses.default is None:
            raise UnmatchedRequestError(_unmatched(rules, asked))
        return "default", self._responses.default

    def vectors_of(self, request: EmbeddingRequest, model: str) -> None:
        """Return None: rules tell how long a call takes or how it fails, not its vectors."""

    def rewind(self) -> None:
        """Begin every sequence anew."""
        self._answered = [0] * len(self._answered)


def label_of(rules: Sequence[Rule], place: int) -> str:
    """Return what messages call a rule: its name, or its place in the file."""
    return rules[place].name or f"rules[{place}]"


def _unmatched(rules: Sequence[Rule], asked: Asked) -> str:
    call = f"{shown(asked.text)} to {asked.model} (request '{asked.request.request_id}', attempt {asked.attempt})"
    place = nearest_rule(rules, asked)
    if place is None:
        return f'The mock has neither rules nor a "default" to answer {call}.'
    return (
        f"No rule of the mock fits {call}; the nearest is '{label_of(rules, place)}', which wants "
        f'{what_is_missing(rules[place].match, asked)}. Change it, add a rule, or set "default".'
    )


class ScriptedClients:
    """Makes scripted clients, which share one script and one list of calls."""

    def __init__(
        self, script: Replies, ledger: Ledger, *, seed: int, clock: Clock, weather: Weather | None = None
    ) -> None:
        self._script = script
        self._ledger = ledger
        self._seed = seed
        self._clock = clock
        self._weather = weather

    def connect(self, deployment: Deployment, /) -> ScriptedClient:
        """Return the client of a deployment; needs no key and no package."""
        kind = ScriptedVectors if deployment.settings.embedding else ScriptedClient
        return kind(deployment, self._script, self._ledger, seed=self._seed, clock=self._clock, weather=self._weather)

    async def aclose(self) -> None:
        """Nothing is open."""

    def abandon(self) -> None:
        """Nothing is open."""


class ScriptedClient:
    """Stands in for the chat model of one deployment."""

    def __init__(
        self,
        deployment: Deployment,
        script: Replies,
        ledger: Ledger,
        *,
        seed: int,
        clock: Clock,
        weather: Weather | None = None,
    ) -> None:
        self._deployment = deployment
        self._script = script
        self._ledger = ledger
        self._seed = seed
        self._clock = clock
        self._weather = weather

    def check(self, request: LLMRequest, /) -> None:
        """Refuse nothing."""

    def batch_client(self) -> ScriptedBatches | None:
        """Return the batches of a provider that would have some."""
        limits = BATCH_LIMITS.get(self._deployment.endpoint.kind)
        return None if limits is None else ScriptedBatches(limits, self.generate)

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Answer by script after the scripted time. Raises UnmatchedRequestError where no rule fits."""
        asked, rule, reply = self._ask(request, streamed=False)
        await self._begin(reply, request, rule)
        return completion_of(reply, asked, self._seed)

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Answer by script, piece by piece, and break off where the script does."""
        asked, rule, reply = self._ask(request, streamed=True)
        await self._begin(reply, request, rule)
        completion = completion_of(reply, asked, self._seed)
        script = reply.stream or ScriptedStream()
        for number, piece in enumerate(pieces_of(completion, script.reasoning)):
            if number == script.breaks_after:
                break
            if number:
                await self._pass(script.pace, "the scripted pace", request, rule)
            yield piece
        if script.breaks_after is None:
            yield completion
            return
        error = script.error or ScriptedError(kind="incomplete_response")
        if error.kind == "timeout":
            await self._clock.sleep(self._deployment.endpoint.timeout)
        raise self._failure(error, request, rule)

    def _ask(self, request: LLMRequest, *, streamed: bool) -> tuple[Asked, str, Reply]:
        """Record a call, and return what answers it and what that rule is called."""
        call = self._ledger.begin(request, self._deployment.name, at=self._clock.now())
        asked = Asked(request=request, model=call.model, attempt=call.attempt)
        fate = self._fate(asked, streamed=streamed)
        if fate.instead is not None:
            call.rule = "chaos"
            return asked, call.rule, fate.instead
        call.rule, reply = self._script.next_reply(asked)
        return asked, call.rule, fate.upon(reply)

    def _fate(self, asked: Asked, *, streamed: bool) -> Fate:
        if self._weather is None:
            return FAIR
        timeout = self._deployment.endpoint.timeout
        return self._weather.fate(asked, now=self._clock.now(), timeout=timeout, streamed=streamed)

    async def _begin(self, reply: Reply, request: LLMRequest, rule: str) -> None:
        """Take the scripted time, and fail if the script says so."""
        await self._pass(reply.latency, "the scripted latency", request, rule)
        if reply.error is not None:
            raise self._failure(reply.error, request, rule)

    async def _pass(self, seconds: float, what: str, request: LLMRequest, rule: str) -> None:
        longest = self._deployment.endpoint.timeout
        if seconds > 0:
            await self._clock.sleep(min(seconds, longest))
        if seconds > longest:  # the real clients give up then
            late = ScriptedError(kind="timeout", message=f"{what} is {seconds:g} s")
            raise self._failure(late, request, rule)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _failure(self, error: ScriptedError, request: LLMRequest, rule: str) -> ProviderError:
        """Return the error that the real clients would raise, in the same words."""
        from llm_gateway.clients.wording import sentence

        cls, status = kind_of(error)
        words = error.message or f"scripted by '{rule}'"
        return cls(
            sentence(cls, status=status, words=words, deployment=self._deployment),
            provider=self._deployment.endpoint.name,
            model=self._deployment.settings.model,
            request_id=request.request_id,
            status=status,
            retry_after=error.retry_after,
        )


class ScriptedVectors(ScriptedClient):
    """Stands in for an embedding model: the same text has the same vector, whoever asks, in whatever company.

    The rules of the script are asked with all texts of a call, a line each; they say how long it takes or how it fails.
    """

    def check(self, request: LLMRequest, /) -> None:
        """Refuse what wants words, as the real clients do."""
        from llm_gateway.clients.embeddings import check

        check(request, self._deployment.name)

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Answer by the seed after the scripted time."""
        completion = await super().generate(request)
        assert isinstance(request, EmbeddingRequest)  # noqa: S101 - checked before it was queued
        found = self._script.vectors_of(request, self._deployment.name)
        vectors, usage = self._made_up(request) if found is None else found
        return replace(completion, content="", tool_calls=(), vectors=vectors, usage=usage)

    def _made_up(self, request: EmbeddingRequest) -> Vectors:
        size = int(self._deployment.settings.options.get("dimensions") or DIMENSIONS)
        usage = TokenUsage(input_tokens=sum(max(1, round(estimate_text(each))) for each in request.texts))
        return [vector_of(each, size, self._seed) for each in request.texts], usage


def vector_of(text: str, size: int, seed: int) -> list[float]:
    """Return a vector of length 1 that depends on the text and the seed alone."""
    rng = Random(f"{seed} {text}")  # noqa: S311 - a test's chance
    numbers = [rng.gauss(0.0, 1.0) for _ in range(size)]
    length = math.hypot(*numbers)
    return [each / length for each in numbers]


def kind_of(error: ScriptedError) -> tuple[type[ProviderError], int | None]:
    """Return the class and the status of a scripted error, as the real clients tell them from an answer."""
    from llm_gateway.clients.failures import STATUSES

    if error.kind is not None:
        cls, usual = KINDS[error.kind]
        return cls, error.status or usual
    status = error.status or 0
    return STATUSES.get(status) or (
        ProviderUnavailableError if status >= SERVER_ERROR else RequestRejectedError
    ), status
