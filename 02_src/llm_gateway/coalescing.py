"""Identical requests that are under way at the same time share one call."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from llm_gateway.batching import Asker, Lane, inherited
from llm_gateway.clock import Clock
from llm_gateway.errors import DeadlineExceededError
from llm_gateway.models import LLMRequest, LLMResponse
from llm_gateway.queue import Ticket

NOT_OF_THE_ANSWER = {"request_id", "priority", "agent", "deadline", "metadata", "cache", "lane"}
OF_THE_ANSWER = {
    "model",
    "messages",
    "tools",
    "temperature",
    "max_tokens",
    "stop",
    "tool_choice",
    "response_format",
}


def canonical(value: object) -> str:
    """Return a text that is the same for the same JSON value, whatever the order of its keys.

    Raises ValueError or TypeError for what is no JSON: not a number, a key that is no text among others that are.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(request: LLMRequest) -> str | None:
    """Return a hash of everything in a request that changes its answer: model, messages, tools and parameters.

    None where some of it is no JSON value: then nobody can tell whether two are the same.
    """
    try:
        # A field that a later version adds tells requests apart until it is named as one that changes nothing.
        content = request.model_dump(exclude=NOT_OF_THE_ANSWER)
        return hashlib.sha256(canonical(content).encode()).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return None


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
        self._entering: dict[str, asyncio.Future[None]] = {}  # of those who wait for room, one for each key

    async def answer(
        self,
        request: LLMRequest,
        lane: Lane,
        *,
        key: str | None = None,
        since: float | None = None,
        patient: bool = False,
        on_end: Callable[[asyncio.Future[LLMResponse]], None] | None = None,
    ) -> LLMResponse:
        """Answer `request` by the call of an identical one if one is under way, else by one of its own.

        Requests of the same `key`, default: their fingerprint, are identical. `since` is the instant from which wait
        and deadline count. A `patient` one waits for room in the queue. `on_end` hears of a call of its own.
        Raises what `LLMGateway.request` raises.
        """
        key = key or fingerprint(request) or f"no other than {request.request_id}"
        if isinstance(request.response_format, type):  # each caller gets instances of its own class
            key = f"{key} {id(request.response_format)}"  # which lives as long as the request does
        if lane.in_batches(request):  # joined by none who is in a greater hurry
            key = f"{key} in a batch, {request.deadline}"
        asker = inherited(request)
        shared = self._joinable(key, asker)
        if patient and not asker.is_call:  # whose requests find room in any case, and must wait for nobody's
            has_room = False
            while shared is None and not has_room:
                has_room = await self._has_room(key, request, lane)
                shared = self._joinable(key, asker)
            if has_room and shared is not None:
                lane.pass_room_on(request)
        if shared is None:
            shared = self._under_way[key] = _Shared(lane.submit(request, since=since, shared=True))
            if on_end is not None:
                shared.ticket.reply.add_done_callback(on_end)
        else:
            shared.ticket.home.lift(shared.ticket, asker.priority, nested=asker.is_call)
        shared.callers += 1
        try:
            response = await self._outcome(request, shared, since)
        finally:
            shared.callers -= 1
            if not shared.callers:
                if self._under_way.get(key) is shared:
                    del self._under_way[key]
                shared.ticket.home.discard(shared.ticket)
        is_paid, shared.is_paid = shared.is_paid, True
        return _own(response, request, is_paid=is_paid)

    def _joinable(self, key: str, asker: Asker) -> _Shared | None:
        """Return the call of an identical request that `asker` may wait for."""
        shared = self._under_way.get(key)
        if shared is None or shared.ticket.ended or (asker.slot and asker.slot.is_inside(shared.ticket)):
            return None
        return shared

    async def _has_room(self, key: str, request: LLMRequest, lane: Lane) -> bool:
        """Wait for room in the queue; False: an identical request did, and has entered it or given up."""
        entering = self._entering.get(key)
        if entering is not None:
            await asyncio.wait((entering,))
            return False
        entering = self._entering[key] = asyncio.get_running_loop().create_future()
        try:
            await lane.room(request)
        finally:
            del self._entering[key]
            entering.set_result(None)
        return True

    async def _outcome(self, request: LLMRequest, shared: _Shared, since: float | None) -> LLMResponse:
        ticket = shared.ticket
        left = request.deadline
        if left is not None and since is not None:
            left -= self._clock.now() - since
        try:
            async with self._clock.timeout(left) as patience:
                # Shielded: a caller that leaves must not take the reply from the others.
                return await asyncio.shield(ticket.reply)
        except TimeoutError:
            if not patience.expired():
                raise  # a bug of a client's
            error = DeadlineExceededError(request.deadline or 0.0, waited_for=ticket.state)
            if shared.callers == 1 and not ticket.ended:  # nobody else waits: so the call ends, and is told to
                ticket.deadline = request.deadline
                ticket.home.expire(ticket)
            raise error from ticket.last_error


def _own(response: LLMResponse, request: LLMRequest, *, is_paid: bool) -> LLMResponse:
    """Return the answer of a shared call under the id of `request`; what it cost stands in one receipt alone."""
    if response.request_id == request.request_id and not is_paid:
        return response
    receipt = response.receipt
    if receipt is not None and is_paid:
        receipt = receipt.model_copy(update={"coalesced": True, "cost_usd": 0.0, "attempts": 0})
    parsed = deepcopy(response.parsed)  # one caller may change it
    return response.model_copy(update={"request_id": request.request_id, "receipt": receipt, "parsed": parsed})
