"""Identical requests that are under way at the same time share one call."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import orjson

from llm_gateway.batching import Lane, inherited
from llm_gateway.clock import Clock
from llm_gateway.errors import DeadlineExceededError
from llm_gateway.models import LLMRequest, LLMResponse, ModelProvider
from llm_gateway.queue import Ticket

NOT_OF_THE_ANSWER = {"request_id", "priority", "agent", "deadline", "metadata", "lane"}


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
    is_paid: bool = False  # the cost stands in a receipt


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
        asker = inherited(request)
        if shared is None or shared.ticket.ended or (asker.slot and asker.slot.is_inside(shared.ticket)):
            shared = self._under_way[key] = _Shared(lane.submit(request, shared=True))
        else:
            shared.ticket.home.lift(shared.ticket, asker.priority, nested=asker.is_call)
        shared.callers += 1
        try:
            response = await self._outcome(request, shared.ticket)
        finally:
            shared.callers -= 1
            if not shared.callers:
                if self._under_way.get(key) is shared:
                    del self._under_way[key]
                shared.ticket.home.discard(shared.ticket)
        is_paid, shared.is_paid = shared.is_paid, True
        return _own(response, request, is_paid=is_paid)

    async def _outcome(self, request: LLMRequest, ticket: Ticket) -> LLMResponse:
        try:
            async with self._clock.timeout(request.deadline) as patience:
                # Shielded: a caller that leaves must not take the reply from the others.
                return await asyncio.shield(ticket.reply)
        except TimeoutError:
            if not patience.expired():
                raise  # a bug of a client's
            raise DeadlineExceededError(request.deadline or 0.0, waited_for=ticket.state) from ticket.last_error


def _own(response: LLMResponse, request: LLMRequest, *, is_paid: bool) -> LLMResponse:
    """Return the answer of a shared call under the id of `request`; what it cost stands in one receipt alone."""
    if response.request_id == request.request_id and not is_paid:
        return response
    receipt = response.receipt
    if receipt is not None and is_paid:
        receipt = receipt.model_copy(update={"coalesced": True, "cost_usd": 0.0, "attempts": 0})
    return response.model_copy(update={"request_id": request.request_id, "receipt": receipt})
