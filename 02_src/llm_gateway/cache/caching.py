"""What a request, a stream and a batch have of the cache."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llm_gateway.answers import form_of
from llm_gateway.batching import Lane, inherited
from llm_gateway.cache.answers import Answers
from llm_gateway.cache.entries import KeptAnswer, kept_of
from llm_gateway.clients.base import Deployment
from llm_gateway.clients.telling import told
from llm_gateway.clock import Clock
from llm_gateway.coalescing import Coalescing, canonical, fingerprint
from llm_gateway.config import CacheSettings
from llm_gateway.errors import GatewayError
from llm_gateway.events import Observer, RequestDone, RequestQueued
from llm_gateway.models import LLMRequest, LLMResponse, LLMToolCall, Receipt, StreamDelta, TextDelta, ToolCallDelta

FORMAT = 1  # of keys; another one finds nothing of what this one kept
AT_ONCE = 1000  # requests of a batch that are taken in before others on the loop get their turn

# A setting of a model or an endpoint is one or the other; a test holds that against their fields.
OF_THE_MODEL = ("provider", "model", "max_tokens", "context", "options", "structured_output")
OF_THE_ENDPOINT = ("kind", "base_url")
NOT_OF_THE_MODEL = (
    *("max_concurrency", "price", "limits", "weight", "cache", "embedding", "lane"),
    *("deployments", "fallbacks"),  # each deployment is part of the key; what a fallback answers is not kept
)
NOT_OF_THE_ENDPOINT = (
    *("name", "api_key", "timeout", "total_timeout", "transport", "key_variable"),  # how it is reached, and paid for
)


@dataclass(frozen=True, slots=True)
class Missed:
    """A request whose answer is not kept, or is not to be."""

    since: float  # when it was asked
    key: bytes | None  # under which its answer will be kept; None: it will not


class Caching:
    """Gives kept answers to identical requests, and keeps those of the calls that are made.

    Identical are requests for the same model, served by the same deployments, with the same messages, tools and
    parameters, of the same tenant. Those that are under way at the same time share one call.
    """

    def __init__(
        self,
        settings: CacheSettings,
        answers: Answers,
        *,
        coalescing: Coalescing,
        observer: Observer,
        clock: Clock,
        is_kept: Callable[[str], bool],
        with_text: bool,
    ) -> None:
        """`is_kept` says of a model whether its answers are kept; `with_text`: hand prompts to the observer."""
        self._settings = settings
        self._answers = answers
        self._coalescing = coalescing
        self._observer = observer
        self._clock = clock
        self._is_kept = is_kept
        self._with_text = with_text
        self._identities: dict[str, str | None] = {}
        self.aclose = answers.aclose
        self.abandon = answers.abandon

    def key(self, request: LLMRequest, lane: Lane) -> bytes | None:
        """Return what is the same for identical requests; None for one whose answer is not kept."""
        if not qualifies(request, self._settings, self._is_kept, lane.model):
            return None
        lane.door.came()  # to hash it and to look for it takes a while, too
        if lane.model not in self._identities:
            self._identities[lane.model] = identity([upstream.deployment for upstream in lane.upstreams])
        return key_of(request, self._settings, self._identities[lane.model])

    # --- asking -----------------------------------------------------------------------------------------------

    async def answer(
        self, request: LLMRequest, lane: Lane, key: bytes, *, since: float | None = None, patient: bool = False
    ) -> LLMResponse:
        """Answer from the cache, else by a call that identical requests share. Raises what a request raises.

        A `patient` one waits for room in the queue. `since` is the instant from which its wait and its deadline count.
        """
        began = self._clock.now() if since is None else since
        hit = await self._find(key, request, lane, began)
        if hit is not None:
            return hit
        return await self._coalescing.answer(
            request, lane, key=key.hex(), since=began, patient=patient, on_end=partial(self._keep, key, lane.model)
        )

    async def look(self, request: LLMRequest, lane: Lane, *, since: float | None = None) -> LLMResponse | Missed:
        """Return the whole answer of a request that will be streamed, if it is kept."""
        began = self._clock.now() if since is None else since
        key = self.key(request, lane)
        hit = None if key is None else await self._find(key, request, lane, began)
        return hit or Missed(began, key)

    def follow(self, missed: Missed, lane: Lane, reply: asyncio.Future[LLMResponse]) -> None:
        """Keep the answer of a stream when it is whole."""
        if missed.key is not None:
            reply.add_done_callback(partial(self._keep, missed.key, lane.model))

    async def batch(
        self, requests: Sequence[LLMRequest], lanes: Sequence[Lane | GatewayError], since: float
    ) -> list[LLMResponse | BaseException]:
        """Answer many requests in their order, with errors in their places. After a cancel none is under way."""
        tasks = []
        for place, (request, lane) in enumerate(zip(requests, lanes, strict=True), 1):
            tasks.append(asyncio.ensure_future(self._item(request, lane, since)))
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def _item(self, request: LLMRequest, lane: Lane | GatewayError, since: float) -> LLMResponse:
        if isinstance(lane, GatewayError):
            raise lane
        key = self.key(request, lane)
        if key is not None:
            return await self.answer(request, lane, key, since=since, patient=True)
        await lane.room(request)
        ticket = lane.submit(request, since=since)
        try:
            return await ticket.reply
        finally:
            ticket.home.discard(ticket)

    # --- what becomes of it -----------------------------------------------------------------------------------

    def _keep(self, key: bytes, model: str, reply: asyncio.Future[LLMResponse]) -> None:
        if reply.cancelled() or reply.exception() is not None:
            return
        kept = kept_of(reply.result(), model)
        if kept is not None:
            self._answers.keep(key, kept)

    async def _find(self, key: bytes, request: LLMRequest, lane: Lane, since: float) -> LLMResponse | None:
        """Return the answer that is kept under `key`, if it fits the request's format."""
        kept = await self._answers.find(key)
        if kept is None:
            return None
        does, parsed = fits(kept, request)
        return self._hit(request, lane, kept, since, parsed=parsed) if does else None

    def _hit(
        self, request: LLMRequest, lane: Lane, kept: KeptAnswer, since: float, *, parsed: Any = None
    ) -> LLMResponse:
        waited = self._clock.now() - since
        asker = inherited(request)
        self._observer.observe(RequestQueued(request_id=request.request_id, model=lane.model, priority=asker.priority))
        self._observer.observe(
            RequestDone(
                request_id=request.request_id,
                batch_id=None,
                model=lane.model,
                deployment=kept.deployment,
                priority=asker.priority,
                outcome="ok",
                attempt=0,
                queue_wait=waited,
                provider_time=0.0,
                agent=asker.agent,
                cost_usd=0.0,
                cached=True,
                saved_usd=kept.cost_usd,
                finish_reason=kept.finish_reason,
                metadata=request.metadata,
                prompt=[told(each) for each in request.messages] if self._with_text else None,
                answer=kept.content if self._with_text else None,
            )
        )
        return _response(request, lane.model, kept, waited, parsed)


def qualifies(request: LLMRequest, settings: CacheSettings, is_kept: Callable[[str], bool], model: str) -> bool:
    """Whether the answer of a request is kept, where `is_kept` says of its model that answers are."""
    if request.cache is None:
        return (request.temperature <= 0 or settings.any_temperature) and is_kept(model)
    return request.cache


def key_of(request: LLMRequest, settings: CacheSettings, served: str | None) -> bytes | None:
    """Return what is the same for identical requests to what is `served`; None where nobody can tell."""
    asked = None if served is None else fingerprint(request)
    if asked is None:
        return None
    agent = inherited(request).agent if settings.each_agent else None
    return hashlib.sha256(canonical([FORMAT, settings.tenant, agent, served, asked]).encode()).digest()


def fits(kept: KeptAnswer, request: LLMRequest) -> tuple[bool, Any]:
    """Whether a kept answer has the format that a request asks for, and what it then says.

    A class may ask for more than its schema says, so that what was kept for another one need not do.
    """
    if request.response_format is None:
        return True, None
    reading = form_of(request.response_format).read(kept.content)
    return reading.problem is None, reading.value


def _response(request: LLMRequest, model: str, kept: KeptAnswer, waited: float, parsed: Any) -> LLMResponse:
    receipt = Receipt(
        queue_wait=waited,
        attempts=0,
        provider_time=0.0,
        deployment=kept.deployment,
        usage=kept.usage,
        cost_usd=0.0,
        cached=True,
        saved_usd=kept.cost_usd,
    )
    return LLMResponse(
        request_id=request.request_id,
        content=kept.content,
        tool_calls=kept.tool_calls,
        model=model,
        tokens_used=None if kept.usage is None else kept.usage.total_tokens,
        finish_reason=kept.finish_reason,
        receipt=receipt,
        parsed=parsed,
    )


def identity(deployments: Sequence[Deployment]) -> str | None:
    """Return what tells the deployments of a model from others that may answer otherwise.

    None where one has options that are no JSON: nobody can tell whether another process has the same.
    """
    told: list[dict[str, Any]] = [
        {name: getattr(each.settings, name) for name in OF_THE_MODEL}
        | {name: getattr(each.endpoint, name) for name in OF_THE_ENDPOINT}
        for each in deployments
    ]
    try:
        return canonical(told)
    except (ValueError, TypeError, RecursionError):
        return None


def pieces_of(response: LLMResponse) -> Iterator[StreamDelta]:
    """Iterate over a whole answer as a stream would have brought it, in pieces as large as can be."""
    if response.content:
        yield TextDelta(response.content)
    for index, call in enumerate(response.tool_calls or ()):
        yield ToolCallDelta(index=index, id=call.id, name=call.name, arguments=_arguments(call))


def _arguments(call: LLMToolCall) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)
