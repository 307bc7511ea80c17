"""The provider batches of one model behind plain awaits: requests gather, leave together, and get their answers."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from llm_gateway.batching.delivery import LEFT, QUEUE_IS_FULL, Delivery
from llm_gateway.batching.provider_batch import BatchWatch, ProviderBatch, Rider
from llm_gateway.budgets import BatchPurse, Hold
from llm_gateway.clients.batches import BatchClient, custom_id
from llm_gateway.clock import Clock
from llm_gateway.config import ProviderBatchSettings
from llm_gateway.errors import (
    GatewayClosedError,
    GatewayError,
    InvalidRequestError,
    QueueFullError,
)
from llm_gateway.events import Observer, ProviderBatchChanged
from llm_gateway.queue import Ticket
from llm_gateway.router import Outcomes, Upstream

TURNS = 2  # batches that a request is in before it is asked in the standard lane; each may take a day
LARGEST = 64 * 1024 * 1024  # bytes of a batch, which stands in memory while it is sent; providers take more
CHARACTERS_A_TOKEN = 4.0
FAREWELL = 10.0  # seconds that the calls under way have at a shutdown, to tell the provider that nobody waits
LONGEST_STANDARD = 3600.0  # seconds before its deadline in which a request belongs in the standard lane,
STANDARD_SHARE = 4.0  # or such a part of the deadline, if that is shorter
LATE = "late"  # the kind of a retry in the standard lane, since the deadline is near


class ProviderBatches:
    """Gathers requests of one model into batches at one deployment, and gives each caller its answer.

    Requests with a deadline gather apart, so that a batch that must end for one of them ends for no one who has time.
    State changes only between awaits. Owns the tasks.
    """

    def __init__(
        self,
        client: BatchClient,
        upstream: Upstream,
        outcomes: Outcomes,
        *,
        settings: ProviderBatchSettings,
        purse: BatchPurse | None,
        fall_back: Callable[[Ticket, str], bool],
        to_standard: Callable[[Ticket], None],
        on_idle: Callable[[], None],
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._outcomes = outcomes
        self._settings = settings
        self._purse = purse
        self._to_standard = to_standard
        self._on_idle = on_idle
        self._observer = observer
        self._clock = clock
        self._riders: dict[Ticket, Rider] = {}  # whose callers wait
        self._poor: dict[Rider, None] = {}  # of those, the ones that wait for money
        self._filling: dict[bool, ProviderBatch] = {}  # by whether its requests have deadlines
        self._ready: list[ProviderBatch] = []  # full, but the provider's queue of tokens has no room
        self._under_way: list[ProviderBatch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._draining = self._halted = False
        tokens = settings.enqueued_tokens
        self._token_room = math.inf if tokens is None else float(tokens)
        self._delivery = Delivery(
            client=client,
            upstream=upstream,
            outcomes=outcomes,
            observer=observer,
            clock=clock,
            fall_back=fall_back,
            pay=self._pay,
            turn=self._turn,
            drop=self.drop,
        )
        self._watch = BatchWatch(
            client=client,
            clock=clock,
            settings=settings,
            policy=outcomes.policy,
            rng=outcomes.rng,
            told=self._tell,
            take=self._delivery.take,
            known=lambda: {each.batch_id for each in self._under_way if each.batch_id},
        )

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits and nothing is under way."""
        return not (self._riders or self._tasks)

    def snapshot(self) -> dict[str, Any]:
        """Return how many requests gather and how the batches stand, for statistics."""
        return {
            "gathering": sum(len(each.riders) for each in self._filling.values()) + len(self._poor),
            "waiting": sum(each.waiting for each in [*self._ready, *self._under_way]),
            "batches": [each.snapshot() for each in [*self._ready, *self._under_way]],
        }

    def has(self, ticket: Ticket) -> bool:
        """Whether a request is here."""
        return ticket in self._riders

    def eta(self) -> float:
        """Return the seconds until a request that came now would leave."""
        longest = self._settings.max_wait
        opened = [each.opened for each in self._filling.values()]
        return max(0.0, min(opened) + longest - self._clock.now()) if opened else longest

    # --- in ---------------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Return when one more fits. Raises GatewayClosedError."""
        while len(self._riders) >= self._settings.max_waiting and not self._draining:
            self._room.clear()
            await self._room.wait()
        if self._draining:
            raise GatewayClosedError

    def join(self, ticket: Ticket) -> None:
        """Take a request in. Raises QueueFullError, BudgetExceededError, InvalidRequestError; then nothing changed."""
        most = self._settings.max_waiting
        if len(self._riders) >= most:
            raise QueueFullError(self._outcomes.model, depth=len(self._riders), limit=most)
        rider = Rider(ticket=ticket)
        deadline = ticket.request.deadline  # also of a shared call, whose ticket has none
        if deadline is not None:
            reserve = reserve_of(deadline)
            rider.late_at = ticket.submitted + deadline - reserve
            rider.gone_at = rider.late_at + reserve / 2
        if self._purse is not None:
            self._purse.check(ticket.request, ticket.agent)
        self._enter(rider)
        self._riders[ticket] = rider
        if rider.late_at is not None:
            rider.alarm = self._clock.call_at(rider.late_at, partial(self._late, rider))

    def _enter(self, rider: Rider) -> None:
        """Hold its money and put it into the batch that is being filled, or let it wait for money."""
        if self._purse is not None:
            hold = self._purse.reserve(rider.ticket.request, rider.ticket.agent)
            if not isinstance(hold, Hold):
                self._poor[rider] = None
                return
            rider.hold = hold
        try:
            self._write(rider)
        except BaseException:
            self._pay(rider, 0.0)
            raise

    def _write(self, rider: Rider) -> None:
        """Write its line into the batch that is being filled; one that is full leaves."""
        limits, kind = self._client.limits, rider.late_at is not None
        largest = min(LARGEST, limits.size, self._token_room * CHARACTERS_A_TOKEN)
        batch = self._filling.get(kind) or ProviderBatch()
        line = self._line(rider, batch)
        if batch.riders and batch.size + len(line) + 1 > largest:
            self._leave(kind)
            batch = ProviderBatch()
            line = self._line(rider, batch)
        if kind not in self._filling:
            self._filling[kind] = batch
            batch.opened = self._clock.now()
            batch.alarm = self._clock.call_at(batch.opened + self._settings.max_wait, partial(self._leave, kind))
        batch.add(rider, batch.numbers, line)
        if self._draining or len(batch.riders) >= min(limits.requests, self._settings.max_requests):
            self._leave(kind)

    def _line(self, rider: Rider, batch: ProviderBatch) -> bytes:
        batch.numbers += 1
        line = self._client.line(custom_id(batch.intent, batch.numbers), rider.ticket.request)
        if line is None:
            reason = "this request needs an API that the provider's batches do not have; use the lane 'standard'."
            raise InvalidRequestError(reason, field="lane", record="LLMRequest")
        return line

    def money_came(self) -> None:
        """Take in those that waited for money, in their order, as far as it reaches."""
        while self._poor and not self._halted:
            rider = next(iter(self._poor))
            del self._poor[rider]
            try:
                self._enter(rider)
            except GatewayError as error:
                self._delivery.refuse(rider, error)
            if rider in self._poor:
                self._poor = {rider: None, **self._poor}
                return

    # --- leaving ----------------------------------------------------------------------------------------------

    def _leave(self, kind: bool) -> None:  # noqa: FBT001 - the key of what is being filled
        """Let a batch leave, as soon as the provider's queue of tokens has room for it."""
        batch = self._filling.pop(kind)
        if batch.alarm is not None:
            batch.alarm.cancel()
        batch.requests = len(batch.riders)
        batch.state = "ready"
        self._ready.append(batch)
        self._send()

    def _send(self) -> None:
        while self._ready and not self._halted:
            batch = self._ready[0]
            size = sum(each.size for each in self._under_way) + batch.size
            if self._under_way and size > self._token_room * CHARACTERS_A_TOKEN:
                return
            del self._ready[0]
            if not batch.riders:  # they left meanwhile
                continue
            now = self._clock.now()
            for rider in batch.riders.values():
                ticket = rider.ticket
                ticket.served_by, ticket.price_lane = self._upstream, "batch"
                ticket.begin_attempt(now, batch.intent)
            batch.state, batch.requests, batch.has_left = "leaving", len(batch.riders), True
            self._under_way.append(batch)
            # A context of its own, as that of any call.
            task = asyncio.get_running_loop().create_task(self._run(batch), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, batch))

    async def _run(self, batch: ProviderBatch) -> None:
        end = await self._watch.run(batch)
        if end.refusal is not None and end.refusal.code == QUEUE_IS_FULL:
            others = sum(each.size for each in self._under_way) - batch.size
            self._token_room = max(others, batch.size / 2) / CHARACTERS_A_TOKEN
        self._under_way.remove(batch)
        self._delivery.settle_rest(batch, end)

    def _ended(self, batch: ProviderBatch, task: asyncio.Task[None]) -> None:
        """Settle what is left of a batch whose task was cancelled or met a bug, and send what waited for its end."""
        self._tasks.discard(task)
        bug = None if task.cancelled() else task.exception()
        if batch in self._under_way:
            self._under_way.remove(batch)
        for rider in list(batch.riders.values()):
            self._pay(rider, None)
            self._delivery.refuse(rider, bug or GatewayClosedError(LEFT))
        batch.riders.clear()
        if bug is not None:
            context = {"message": "a provider batch of the gateway failed", "exception": bug, "task": task}
            task.get_loop().call_exception_handler(context)
        self._send()
        self._on_idle()

    # --- again ------------------------------------------------------------------------------------------------

    def _turn(self, rider: Rider) -> None:
        rider.turns += 1
        if rider.batch is not None:
            rider.batch.waiting -= 1
            rider.batch = None
        is_late = rider.late_at is not None and self._clock.now() >= rider.late_at
        if rider.turns >= TURNS or is_late or self._draining:
            self._go_standard(rider)
            return
        try:
            self._enter(rider)
        except GatewayError as error:
            self._delivery.refuse(rider, error)

    def _late(self, rider: Rider) -> None:
        """Ring where the standard lane begins: at once for what gathers, for what is under way once that is ended."""
        batch, now = rider.batch, self._clock.now()
        if batch is not None and batch.has_left and rider.gone_at is not None and now < rider.gone_at:
            batch.end()
            rider.alarm = self._clock.call_at(rider.gone_at, partial(self._late, rider))
            return
        self._delivery.retry_told(rider.ticket, LATE)
        self._go_standard(rider)

    def _go_standard(self, rider: Rider) -> None:
        ticket = rider.ticket
        if ticket.calling:
            ticket.end_attempt(self._clock.now())
        self.drop(ticket)
        self._to_standard(ticket)

    # --- parts ------------------------------------------------------------------------------------------------

    def drop(self, ticket: Ticket) -> None:
        """Forget a request: its caller has left, or it goes elsewhere, or it is answered.

        When nobody waits for a batch any more, the provider's batch is cancelled.
        """
        rider = self._riders.pop(ticket, None)
        if rider is None:
            return
        rider.is_dropped = True
        if rider.alarm is not None:
            rider.alarm.cancel()
        self._poor.pop(rider, None)
        self._step_out(rider)
        self._room.set()
        self._on_idle()

    def _step_out(self, rider: Rider) -> None:
        batch = rider.batch
        if batch is None:
            return
        if batch.has_left:
            batch.waiting -= 1
            if not batch.waiting and batch.riders:
                batch.end(leave=self._draining)
            return
        batch.drop(rider)
        self._pay(rider, 0.0)
        for kind, filling in list(self._filling.items()):
            if filling is batch and not batch.riders:
                del self._filling[kind]
                if batch.alarm is not None:
                    batch.alarm.cancel()

    def _pay(self, rider: Rider, cost: float | None) -> None:
        """Settle the money held for a request; None: nobody knows what it cost."""
        hold, rider.hold = rider.hold, None
        if hold is not None and self._purse is not None:
            self._purse.settle(hold, cost)

    def _tell(self, batch: ProviderBatch) -> None:
        self._observer.observe(
            ProviderBatchChanged(
                batch_id=batch.intent,
                provider_batch_id=batch.batch_id,
                model=self._outcomes.model,
                deployment=self._upstream.label,
                state=batch.state,
                size=batch.requests,
                waiting=batch.waiting,
                served=batch.served,
            )
        )

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let what gathers leave at once, turn away those who wait for room, and leave what nobody waits for."""
        self._draining = True
        self._room.set()
        for kind in list(self._filling):
            self._leave(kind)
        for batch in self._under_way:
            if not batch.waiting:
                batch.end(leave=True)

    def halt(self) -> int:
        """Refuse all who wait with GatewayClosedError and cancel the provider's batches. Return how many waited."""
        self._draining = self._halted = True
        for batch in self._under_way:
            batch.end(leave=True)
        riders = list(self._riders.values())
        for rider in riders:
            self._delivery.refuse(rider, GatewayClosedError(LEFT))
        self._ready.clear()
        if self._tasks:
            self._clock.call_at(self._clock.now() + FAREWELL, self._cancel)
        return len(riders)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


def reserve_of(deadline: float) -> float:
    """Return the seconds before a deadline in which a request belongs in the standard lane."""
    return min(deadline / STANDARD_SHARE, LONGEST_STANDARD)
