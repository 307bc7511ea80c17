"""Order: which of the waiting requests goes next. No I/O and no clock; `now` is handed in."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from llm_gateway.clock import Timer
from llm_gateway.errors import GatewayClosedError, QueueFullError
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """One accepted request on its way, from submission until its reply is settled. Instants in seconds."""

    request: LLMRequest
    reply: asyncio.Future[LLMResponse]
    submitted: float
    attempts: int = 0  # provider calls begun
    started: float | None = None  # when the last call began
    queue_wait: float = 0.0  # in the queue and between attempts, all together
    provider_time: float = 0.0  # in all calls that ended
    batch_id: str | None = None  # of the last call
    call: asyncio.Task[object] | None = None  # while in flight
    alarm: Timer | None = None  # rings at the deadline
    place: int = -1  # in the order of submission
    waiting: bool = False  # in the queue, ready or delayed
    delayed: bool = False  # in the queue, but it may not go yet
    ended: bool = False  # answered, refused, or its caller has left

    def begin_attempt(self, now: float, batch_id: str) -> None:
        """Note that a provider call begins."""
        self.attempts += 1
        self.started = now
        self.batch_id = batch_id
        self.queue_wait = now - self.submitted - self.provider_time

    def end_attempt(self, now: float) -> float:
        """Note that the call ended; return how long it took."""
        took = now - (self.started if self.started is not None else now)
        self.provider_time += took
        return took

    @property
    def state(self) -> str:
        """Where the request is, in words for an error's sentence."""
        if self.delayed:
            return f"pausing before attempt {self.attempts + 1}"
        return "waiting in the queue" if self.waiting else f"in the provider's hands, attempt {self.attempts}"


class RequestQueue:
    """A bounded queue of one lane: HIGH before NORMAL before LOW, in each by submission, retries at their old place.

    The bound holds for each priority on its own, so that a flood of LOW leaves room for HIGH. Every operation costs
    at most O(log n); a ticket that leaves is skipped later and swept out once such tickets are the majority.
    """

    def __init__(self, model: str, *, max_size: int) -> None:
        self._model = model
        self._max_size = max_size
        self._ready: dict[RequestPriority, list[tuple[int, Ticket]]] = {each: [] for each in RequestPriority}
        self._delayed: list[tuple[float, int, Ticket]] = []
        self._depth: dict[RequestPriority, int] = dict.fromkeys(RequestPriority, 0)
        self._held_back = 0  # waiting tickets in `_delayed`
        self._places = count()
        self._turns: dict[RequestPriority, deque[asyncio.Future[None]]] = {each: deque() for each in RequestPriority}
        self._closed = False

    def __len__(self) -> int:
        """How many wait, those that pause before a retry included."""
        return sum(self._depth.values())

    def depth(self, priority: RequestPriority) -> int:
        """How many of `priority` wait."""
        return self._depth[priority]

    @property
    def ready(self) -> int:
        """How many could go now, had there been a call of `release_due` just before."""
        return len(self) - self._held_back

    def has_room(self, priority: RequestPriority) -> bool:
        """Whether `put_nowait` would accept a ticket of `priority`."""
        return self._depth[priority] < self._max_size

    def put_nowait(self, ticket: Ticket, *, retry_after: float | None = None) -> None:
        """Append `ticket` to its class. Raises QueueFullError with the hint `retry_after`; then nothing changed."""
        priority = ticket.request.priority
        if not self.has_room(priority):
            raise QueueFullError(
                self._model, depth=self._depth[priority], limit=self._max_size, retry_after=retry_after
            )
        ticket.place = next(self._places)
        self._enter(ticket)
        heapq.heappush(self._ready[priority], (ticket.place, ticket))
        self._offer_room(priority)  # there may be more than one place

    async def room(self, priority: RequestPriority) -> None:
        """Return when `put_nowait` would accept a ticket of `priority`; first come, first served.

        Raises GatewayClosedError if the queue is closed first.
        """
        while not self._closed and not self.has_room(priority):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns[priority].append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the turn had come: it is the next one's
                    self._offer_room(priority)
                raise
        if self._closed:
            raise GatewayClosedError

    def close(self) -> None:
        """Turn away those who wait for room, and whoever asks for it later. What is in the queue stays."""
        self._closed = True
        for turns in self._turns.values():
            while turns:
                turn = turns.popleft()
                if not turn.done():
                    turn.set_result(None)

    def put_back(self, ticket: Ticket, *, not_before: float) -> None:
        """Take an accepted ticket in again, at its old place once `not_before` has come. The bound does not apply."""
        ticket.delayed = True
        self._enter(ticket)
        self._held_back += 1
        heapq.heappush(self._delayed, (not_before, ticket.place, ticket))

    def release_due(self, now: float) -> float | None:
        """Make delayed tickets ready whose instant has come; return when the next one's comes."""
        while self._delayed:
            due, place, ticket = self._delayed[0]
            if ticket.waiting and due > now:
                return due
            heapq.heappop(self._delayed)
            if ticket.waiting:
                self._held_back -= 1
                ticket.delayed = False
                heapq.heappush(self._ready[ticket.request.priority], (place, ticket))
        return None

    def has_ready(self, priority: RequestPriority) -> bool:
        """Whether a ticket of `priority` could go now."""
        return self._first(priority) is not None

    def oldest(self) -> float:
        """When the oldest of the ready tickets was submitted. Raises ValueError if none is ready."""
        heads = (self._first(priority) for priority in RequestPriority)
        return min(ticket.submitted for ticket in heads if ticket is not None)

    def pop(self) -> Ticket:
        """Take out the best ready ticket. Raises IndexError if none is ready."""
        for priority in RequestPriority:
            ticket = self._first(priority)
            if ticket is not None:
                heapq.heappop(self._ready[priority])
                self._leave(ticket)
                return ticket
        raise IndexError("no ticket is ready")

    def discard(self, ticket: Ticket) -> bool:
        """Take `ticket` out wherever it is; False if it is not here."""
        if not ticket.waiting:
            return False
        self._leave(ticket)
        if ticket.delayed:
            self._held_back -= 1
        self._sweep(ticket.request.priority)
        return True

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over all that wait, in no particular order."""
        for entries in self._ready.values():
            yield from (ticket for _, ticket in entries if ticket.waiting)
        yield from (ticket for _, _, ticket in self._delayed if ticket.waiting)

    def _first(self, priority: RequestPriority) -> Ticket | None:
        entries = self._ready[priority]
        while entries:
            ticket = entries[0][1]
            if ticket.waiting:
                return ticket
            heapq.heappop(entries)
        return None

    def _enter(self, ticket: Ticket) -> None:
        ticket.waiting = True
        self._depth[ticket.request.priority] += 1

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._depth[ticket.request.priority] -= 1
        self._offer_room(ticket.request.priority)

    def _offer_room(self, priority: RequestPriority) -> None:
        """Wake the first who waits for a place, if there is one; it offers the rest when it has taken its own."""
        turns = self._turns[priority]
        while turns and self.has_room(priority):
            turn = turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _sweep(self, priority: RequestPriority) -> None:
        """Keep memory proportional to what waits, however many come and leave."""
        entries = self._ready[priority]
        if len(entries) > 2 * self._depth[priority] + 64:
            entries[:] = [entry for entry in entries if entry[1].waiting]
            heapq.heapify(entries)
        if len(self._delayed) > 2 * self._held_back + 64:
            self._delayed = [entry for entry in self._delayed if entry[2].waiting]
            heapq.heapify(self._delayed)
