"""The queue of one lane: bounded, by classes with guaranteed shares, fair between the agents of a class."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import count

from llm_gateway.errors import GatewayClosedError, QueueFullError
from llm_gateway.models import RequestPriority
from llm_gateway.queue.fairness import FairLine
from llm_gateway.queue.shares import Shares
from llm_gateway.queue.ticket import Ticket

ALL = tuple(RequestPriority)
PLACES = count()  # one row for all queues, so that a place tells in which one a ticket is


class RequestQueue:
    """HIGH before NORMAL before LOW but for the shares of the latter; within a class agents take turns by tokens.

    One agent's requests go by submission, and a retry takes its old place. The bound holds for each class on its own,
    so that a flood of LOW leaves room for HIGH. Every operation costs at most O(log n).
    """

    def __init__(self, model: str, *, max_size: int) -> None:
        self._model = model
        self._max_size = max_size
        self._bulk_size = max(1, max_size // 2)  # a batch that waits for room leaves the rest to single requests
        self._ready = {each: FairLine(each) for each in RequestPriority}
        self._shares = Shares()
        self._delayed: list[tuple[float, int, Ticket]] = []
        self._depth = dict.fromkeys(RequestPriority, 0)
        self._held_back = dict.fromkeys(RequestPriority, 0)  # of those, how many pause before a retry
        self._cost = dict.fromkeys(RequestPriority, 0.0)  # tokens by estimate, when they came in
        self._turns: dict[RequestPriority, deque[asyncio.Future[None]]] = {each: deque() for each in RequestPriority}
        self._closed = False

    # --- how much waits ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many wait, those that pause before a retry included."""
        return sum(self._depth.values())

    def depth(self, priority: RequestPriority) -> int:
        """How many of `priority` wait."""
        return self._depth[priority]

    def ready(self, classes: Collection[RequestPriority] = ALL) -> int:
        """How many of `classes` could go now, had there been a call of `release_due` just before."""
        depth, held_back = self._depth, self._held_back
        return sum([depth[each] - held_back[each] for each in classes])

    def oldest(self, classes: Collection[RequestPriority] = ALL) -> float:
        """When the longest waiting of those whose turn it is was submitted; minus infinity if it is nobody's."""
        heads = (self._ready[each].best() for each in classes)
        return min((ticket.submitted for ticket in heads if ticket is not None), default=-math.inf)

    def has_room(self, priority: RequestPriority) -> bool:
        """Whether `put_nowait` would accept a ticket of `priority`."""
        return self._depth[priority] < self._max_size

    # --- in ---------------------------------------------------------------------------------------------------

    def put_nowait(self, ticket: Ticket, *, retry_after: Callable[[], float | None] = lambda: None) -> None:
        """Append `ticket` to its class. Raises QueueFullError with the hint `retry_after()`; then nothing changed."""
        priority = ticket.priority
        if not self.has_room(priority):
            raise QueueFullError(
                self._model, depth=self._depth[priority], limit=self._max_size, retry_after=retry_after()
            )
        self.accept(ticket)
        self._offer_room(priority)  # there may be more than one place

    def accept(self, ticket: Ticket) -> None:
        """Append a ticket that another queue had accepted already. The bound does not apply."""
        ticket.place = next(PLACES)
        self._enter(ticket)
        self._ready[ticket.priority].push(ticket)

    async def room(self, priority: RequestPriority) -> None:
        """Return when less than half of the bound of `priority` is taken; first come, first served.

        So the longest batch leaves room for those that do not wait. Raises GatewayClosedError if the queue is closed
        first.
        """
        while not self._closed and not self._has_bulk_room(priority):
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

    def pass_room_on(self, priority: RequestPriority) -> None:
        """Wake the next who waits for room, since the one that was woken does not need it."""
        self._offer_room(priority)

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
        self._held_back[ticket.priority] += 1
        heapq.heappush(self._delayed, (not_before, ticket.place, ticket))

    def release_due(self, now: float) -> float | None:
        """Make delayed tickets ready whose instant has come; return when the next one's comes."""
        while self._delayed:
            due, place, ticket = self._delayed[0]
            here = ticket.waiting and ticket.place == place
            if here and due > now:
                return due
            heapq.heappop(self._delayed)
            if here:
                self._held_back[ticket.priority] -= 1
                ticket.delayed = False
                self._ready[ticket.priority].push(ticket)
        return None

    # --- out --------------------------------------------------------------------------------------------------

    def best(self, classes: Collection[RequestPriority] = ALL) -> Ticket | None:
        """Return the ticket of `classes` that goes next, and leave it here; None if none is ready."""
        live = [each for each in classes if self._depth[each] > self._held_back[each]]
        if len(live) == 1:  # as mostly: nobody to share with
            return self._ready[live[0]].best()
        heads = {each: head for each in live if (head := self._ready[each].best()) is not None}
        chosen = self._shares.choose({each: head.cost for each, head in heads.items()})
        return None if chosen is None else heads[chosen]

    def set_aside(self, agent: str | None) -> None:
        """Leave an agent out of `best` until `bring_back`, in every class: what it waits for, others do not need."""
        for line in self._ready.values():
            line.set_aside(agent)

    def bring_back(self) -> None:
        """Let those that were set aside have their turns again."""
        for line in self._ready.values():
            line.bring_back()

    def take(self, ticket: Ticket) -> None:
        """Take out the ticket that `best` returned; its agent and its class are charged its cost."""
        waiting = [each for each in ALL if self._depth[each] > self._held_back[each]]
        self._shares.served(ticket.priority, ticket.cost, waiting)
        self._ready[ticket.priority].take(ticket)
        self._leave(ticket)

    def pull(self, ticket: Ticket) -> None:
        """Take a ready ticket out before its turn; its agent is charged its cost."""
        self._ready[ticket.priority].pull(ticket)
        self._leave(ticket)

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Charge the agent of a ticket `tokens` more than its cost was; fewer if negative."""
        self._ready[ticket.priority].charge(ticket.agent, tokens)

    def discard(self, ticket: Ticket) -> bool:
        """Take `ticket` out wherever it is; False if it is not here."""
        if not ticket.waiting:
            return False
        self._leave(ticket)
        if ticket.delayed:
            self._held_back[ticket.priority] -= 1
            ticket.delayed = False
        self._sweep(ticket.priority)
        return True

    def lift(self, ticket: Ticket, priority: RequestPriority) -> None:
        """Move a ticket to a higher class, at the place of its submission. The bound does not apply.

        One that is not here, since its call is under way, comes back as one of that class.
        """
        old = ticket.priority
        if priority >= old:
            return
        if not ticket.waiting:
            ticket.priority = priority
            return
        self._depth[old] -= 1
        self._depth[priority] += 1
        self._cost[old] -= ticket.counted
        self._cost[priority] += ticket.counted
        ticket.priority = priority
        if ticket.delayed:
            self._held_back[old] -= 1
            self._held_back[priority] += 1
        else:
            self._ready[priority].push(ticket)  # what it leaves in its old line is skipped there
        self._sweep(old)
        self._offer_room(old)

    def in_order(self, most: int) -> Iterator[Ticket]:
        """Iterate over those that could go now, as they go if nobody else comes; the shares of classes left aside.

        At least the first `most` of each class.
        """
        for each in ALL:
            yield from self._ready[each].in_order(most)

    def ahead(self, priority: RequestPriority) -> tuple[int, float]:
        """Return how many requests, of how many tokens by estimate, are of `priority` or go before it."""
        classes = [each for each in ALL if each <= priority]
        return sum(self._depth[each] for each in classes), sum(self._cost[each] for each in classes)

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over all that wait, in no particular order."""
        for line in self._ready.values():
            yield from line
        yield from (ticket for _, place, ticket in self._delayed if ticket.waiting and ticket.place == place)

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _enter(self, ticket: Ticket) -> None:
        ticket.waiting = True
        ticket.counted = ticket.cost
        self._depth[ticket.priority] += 1
        self._cost[ticket.priority] += ticket.counted

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._depth[ticket.priority] -= 1
        self._cost[ticket.priority] -= ticket.counted
        self._offer_room(ticket.priority)

    def _has_bulk_room(self, priority: RequestPriority) -> bool:
        return self._depth[priority] < self._bulk_size

    def _offer_room(self, priority: RequestPriority) -> None:
        """Wake the first who waits for a place, if there is one; it offers the rest when it has taken its own."""
        turns = self._turns[priority]
        while turns and self._has_bulk_room(priority):
            turn = turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _sweep(self, priority: RequestPriority) -> None:
        """Keep memory proportional to what waits, however many come and leave."""
        self._ready[priority].sweep(self._depth[priority] - self._held_back[priority])
        if len(self._delayed) > 2 * sum(self._held_back.values()) + 64:
            self._delayed = [entry for entry in self._delayed if entry[2].waiting and entry[2].place == entry[1]]
            heapq.heapify(self._delayed)
