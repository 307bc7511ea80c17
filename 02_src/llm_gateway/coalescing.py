"""Identical requests that are under way at the same time share one call."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import orjson

from llm_gateway.batching import Lane
from llm_gateway.clock import Clock
from llm_gateway.errors import DeadlineExceededError
from llm_gateway.models import LLMRequest, LLMResponse, ModelProvider
from llm_gateway.queue import Ticket

NOT_OF_THE_ANSWER = {"request_id", "priority", "agent", "deadline", "metadata"}


def fingerprint(request: LLMRequest) -> str:
    """Return a hash of everything in a request that changes its answer: model, messages, tools and parameters."""
    content = request.model_dump(exclude=NOT_OF_THE_ANSWER, mode="json")
    if isinstance(request.model, ModelProvider):
        content["model"] = request.model.value
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(slots=True, eq=False)
class _Shared:
    """One call, and how many wait for it."""

    ticket: Ticket
    callers: int = 0


class Coalescing:
    """The requests under way that others may join.

    A HIGH one that joins a LOW one lifts it. The call is cancelled when the last of its callers leaves; each caller's
    deadline ends its own wait alone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: dict[str, _Shared] = {}

    async def answer(self, request: LLMRequest, lane: Lane) -> LLMResponse:
        """Answer `request` by the call of an identical one if one is under way, else by one of its own.

        Raises what `LLMGateway.request` raises.
        """
        key = fingerprint(request)
        shared = self._under_way.get(key)
        joins = shared is not None and not shared.ticket.ended
        if shared is None or not joins:
            shared = self._under_way[key] = _Shared(lane.submit(request, shared=True))
        elif request.priority < shared.ticket.priority:
            shared.ticket.home.lift(shared.ticket, request.priority)
        shared.callers += 1
        try:
            response = await self._outcome(request, shared.ticket)
        finally:
            shared.callers -= 1
            if not shared.callers:
                if self._under_way.get(key) is shared:
                    del self._under_way[key]
                shared.ticket.home.discard(shared.ticket)
        return _own(response, request) if joins else response

    async def _outcome(self, request: LLMRequest, ticket: Ticket) -> LLMResponse:
        timeout = self._clock.timeout(request.deadline)
        try:
            async with timeout:
                # Shielded: a caller that leaves must not take the reply from the others.
                return await asyncio.shield(ticket.reply)
        except TimeoutError:
            raise DeadlineExceededError(request.deadline or 0.0, waited_for=ticket.state) from ticket.last_error


def _own(response: LLMResponse, request: LLMRequest) -> LLMResponse:
    """Return the answer of another's call under the id of `request`; what it cost stands in the other's receipt."""
    receipt = response.receipt
    if receipt is not None:
        receipt = receipt.model_copy(update={"coalesced": True, "cost_usd": 0.0, "attempts": 0})
    return response.model_copy(update={"request_id": request.request_id, "receipt": receipt})
