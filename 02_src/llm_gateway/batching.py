"""Lanes and batches: when what is sent.

A batch is what queued while the slots were busy. An idle lane sends after one tick of the event loop, so that a
`gather` of agents forms one batch with no timer; a busy one sends the best waiting requests as slots come free.
"""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llm_gateway.clients.base import ChatClient, Completion
from llm_gateway.clock import Clock, Timer
from llm_gateway.config import BatchingSettings
from llm_gateway.errors import (
    DeadlineExceededError,
    GatewayClosedError,
    GatewayError,
    ProviderError,
    RateLimitError,
    RequestTooLargeError,
)
from llm_gateway.events import BatchClosed, BatchOpened, CloseReason, Observer, RequestQueued
from llm_gateway.limits import Grant, JointPace, Wait, read_standings
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority
from llm_gateway.queue import RequestQueue, Ticket
from llm_gateway.router import Outcomes
from llm_gateway.tokens import Cost, Estimator

ALL = tuple(RequestPriority)
HIGH_ALONE = (RequestPriority.HIGH,)
HEADROOM = 10  # of so many slots one stays free for HIGH
SMOOTHING = 0.1  # weight of the newest call in the running mean of call times


@dataclass(slots=True, kw_only=True)
class Batch:
    """Requests that leave together."""

    batch_id: str
    tickets: list[Ticket] = field(default_factory=list)
    pending: set[Ticket] = field(default_factory=set)  # those whose calls have not begun


class Lane:
    """The queue of one deployment, its slots, and the batches under way.

    State changes only between awaits, on the loop that the lane was made in. A lane owns the tasks of its batches;
    `drain` and `cancel` end them.
    """

    def __init__(
        self,
        client: ChatClient,
        outcomes: Outcomes,
        *,
        settings: BatchingSettings,
        pace: JointPace,
        estimator: Estimator,
        clock: Clock,
        observer: Observer,
    ) -> None:
        deployment = outcomes.deployment
        self._pace = pace
        self._estimator = estimator
        self._charge = pace.paces[0].charge
        self._max_tokens = deployment.settings.max_tokens
        self.client = client
        self._model = deployment.name
        self._label = deployment.label
        self._outcomes = outcomes
        self._settings = settings
        self._max_wait = settings.max_wait_ms / 1000
        self._slots = deployment.settings.max_concurrency
        self._headroom = self._slots // HEADROOM  # slots that stay free for HIGH
        self._clock = clock
        self._observer = observer
        self._queue = RequestQueue(self._model, max_size=settings.max_queue_size)
        self._open: Batch | None = None
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: Timer | None = None
        self._pump_is_due = False
        self._draining = False
        self._idle: asyncio.Future[None] | None = None
        self._mean_call: float | None = None

    @property
    def in_flight(self) -> int:
        """Provider calls under way."""
        return self._in_flight

    def pace(self) -> dict[str, Any]:
        """Where the limits stand, for statistics."""
        return self._pace.snapshot(self._clock.now())

    def depth(self, priority: RequestPriority) -> int:
        """How many requests of `priority` wait, those that pause before a retry included."""
        return self._queue.depth(priority)

    # --- in and out -------------------------------------------------------------------------------------------

    def submit(self, request: LLMRequest, *, since: float | None = None) -> Ticket:
        """Accept a request. Raises QueueFullError, RequestTooLargeError; then nothing changed.

        The reply is in the ticket. `since` is the instant from which its wait and its deadline count; default: now.
        """
        submitted = self._clock.now() if since is None else since
        reply: asyncio.Future[LLMResponse] = asyncio.get_running_loop().create_future()
        ticket = Ticket(request=request, reply=reply, submitted=submitted)
        ticket.cost = rough_cost(request)
        if self._pace.is_limited:
            self._pace.check(self._estimate(ticket))
        self._queue.put_nowait(ticket, retry_after=self._retry_hint(request.priority))
        if request.deadline is not None:
            ticket.alarm = self._clock.call_at(submitted + request.deadline, lambda: self._expire(ticket))
        self._observer.observe(
            RequestQueued(request_id=request.request_id, model=self._model, priority=request.priority)
        )
        self._wake()
        return ticket

    async def room(self, priority: RequestPriority) -> None:
        """Return when a request of `priority` fits; first come, first served. Raises GatewayClosedError."""
        await self._queue.room(priority)

    def discard(self, ticket: Ticket) -> None:
        """Forget a request whose caller has left: out of the queue, or its call cancelled. Its neighbours stay."""
        if not ticket.ended:
            self._outcomes.left(ticket)
            self._drop(ticket)
        elif not ticket.reply.cancelled():
            ticket.reply.exception()  # its caller left before it could look; that is no lost error

    def _expire(self, ticket: Ticket) -> None:
        """Ring of the deadline."""
        deadline = ticket.request.deadline or 0.0
        self._outcomes.refused(ticket, DeadlineExceededError(deadline, waited_for=ticket.state))
        self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        """Take `ticket` out of the queue, or cancel its call; one whose call is about to begin is skipped then."""
        if self._queue.discard(ticket):
            self._look_idle()
        elif ticket.call is not None:
            call, ticket.call = ticket.call, None  # None tells the call that it is cancelled alone
            call.cancel()

    def _retry_hint(self, priority: RequestPriority) -> float | None:
        """Seconds until the queue of `priority` has likely gone through, by the mean time of a call."""
        if self._mean_call is None:
            return None
        ahead = sum(self._queue.depth(each) for each in RequestPriority if each <= priority)
        return ahead * self._mean_call / self._slots

    # --- the pump ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let the pump run after one tick of the loop, in which others may come."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump, context=contextvars.Context())

    def _pump(self) -> None:
        """Send what may go now, and set the alarm for what may go later."""
        self._pump_is_due = False
        now = self._clock.now()
        due = self._queue.release_due(now)
        while self._queue.ready(self._classes(0)):
            batch = self._open or self._open_batch()
            why, company = self._waits_for_company(now)
            if company is not None:
                due = company if due is None else min(due, company)
                break
            permits = self._fill(batch, now)
            if batch.tickets:
                self._send(batch, why or self._why_closed(batch, permits))
            if permits is not None:
                due = permits if due is None else min(due, permits)
                break
        self._set_alarm(due)

    def _classes(self, taken: int) -> Collection[RequestPriority]:
        """Which classes may have the next slot, when `taken` are given away but not yet in flight."""
        free = self._slots - self._in_flight - taken
        if free > self._headroom:
            return ALL
        return HIGH_ALONE if free > 0 else ()

    def _waits_for_company(self, now: float) -> tuple[CloseReason | None, float | None]:
        """Return why a batch leaves if that is known before it is filled, and until when it waits instead."""
        if self._draining:
            return "drain", None
        if not self._max_wait or self._queue.ready(HIGH_ALONE):
            return None, None  # a user who waits never waits for company
        ready = self._queue.ready()
        if ready >= min(self._settings.max_batch_size, self._slots - self._headroom - self._in_flight):
            return None, None
        company = self._queue.oldest() + self._max_wait
        # The alarm rings on the loop's own clock: what is due within its resolution is due.
        return ("wait", None) if now >= company - 1e-9 else (None, company)

    def _fill(self, batch: Batch, now: float) -> float | None:
        """Put the best waiting tickets into a batch, as many as it, the slots and the limits hold.

        Returns when permits for the next one will be there, None if it does not wait for permits.
        """
        while len(batch.tickets) < self._settings.max_batch_size:
            ticket = self._queue.best(self._classes(len(batch.tickets)))
            if ticket is None:
                return None
            if self._pace.is_free(now):
                self._take(batch, ticket, None)
                continue
            try:
                grant = self._pace.reserve(self._estimate(ticket), now)
            except RequestTooLargeError as error:  # the provider told a lower limit since it was accepted
                self._queue.discard(ticket)
                self._outcomes.refused(ticket, error)
                continue
            if isinstance(grant, Wait):
                return now + grant.seconds
            self._take(batch, ticket, grant)
        return None

    def _take(self, batch: Batch, ticket: Ticket, grant: Grant | None) -> None:
        ticket.grant = grant
        self._queue.take(ticket)
        batch.tickets.append(ticket)

    def _estimate(self, ticket: Ticket) -> Cost:
        """Return what the call of a ticket will be charged; worked out where there is a limit, since it takes time."""
        if ticket.estimate is None:
            request = ticket.request
            ticket.estimate = self._estimator.expected(request, self._charge, max_tokens=self._max_tokens)
            ticket.cost = ticket.estimate.cost.tokens
        return ticket.estimate.cost

    def _why_closed(self, batch: Batch, permits: float | None) -> CloseReason:
        if len(batch.tickets) == self._settings.max_batch_size:
            return "size"
        if permits is not None:
            return "permits"
        return "slots" if self._queue.ready() else "idle"

    def _open_batch(self) -> Batch:
        batch = self._open = Batch(batch_id=uuid.uuid4().hex[:16])
        self._observer.observe(BatchOpened(batch_id=batch.batch_id, model=self._model, deployment=self._label))
        return batch

    def _send(self, batch: Batch, why: CloseReason) -> None:
        self._open = None
        size = len(batch.tickets)
        batch.pending.update(batch.tickets)
        self._in_flight += size
        self._observer.observe(
            BatchClosed(
                batch_id=batch.batch_id,
                model=self._model,
                deployment=self._label,
                size=size,
                why=why,
                classes=Counter(ticket.priority for ticket in batch.tickets),
            )
        )
        # A context of its own: tracing and callbacks of the caller that happened to wake the pump are not the others'.
        task = asyncio.get_running_loop().create_task(self._run(batch), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(partial(self._batch_ended, batch))

    def _set_alarm(self, due: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if due is None else self._clock.call_at(due, self._wake)

    # --- batches under way ------------------------------------------------------------------------------------

    async def _run(self, batch: Batch) -> None:
        from llm_gateway.clients.runnable import CallEach

        async def call(ticket: Ticket) -> None:
            batch.pending.discard(ticket)
            try:
                if ticket.ended:  # its caller left, or its deadline passed, after the batch closed
                    self._unsent(ticket)
                else:
                    await self._call(ticket, batch.batch_id)
            finally:
                self._free_slot()

        for outcome in await CallEach(call).abatch(batch.tickets, return_exceptions=True):
            if isinstance(outcome, Exception):
                # Its caller has it too; but a bug must also reach whoever watches the loop.
                context = {"message": "a call of the gateway met a bug", "exception": outcome}
                asyncio.get_running_loop().call_exception_handler(context)

    async def _call(self, ticket: Ticket, batch_id: str) -> None:
        """Make one provider call and hand on its outcome. Raises what is a bug, after the caller was told."""
        task = ticket.call = asyncio.current_task()
        ticket.begin_attempt(self._clock.now(), batch_id)
        try:
            await self._attempt(ticket)
        except asyncio.CancelledError:
            if ticket.call is None and task is not None:  # only this call is cancelled, by `_drop`; the batch goes on
                task.uncancel()
                return
            self._outcomes.refused(ticket, GatewayClosedError(CUT_OFF))
            raise
        except Exception as bug:
            self._outcomes.refused(ticket, bug)
            raise
        finally:
            ticket.call = None
            if ticket.grant is not None:  # neither answered nor refused: nobody knows what the provider counted
                self._pace.keep(ticket.grant)
                ticket.grant = None

    async def _attempt(self, ticket: Ticket) -> None:
        try:
            completion = await self.client.generate(ticket.request)
        except ProviderError as error:
            self._after_failure(ticket, error)
        except GatewayError as error:
            self._outcomes.refused(ticket, error)
        else:
            now = self._clock.now()
            self._note_call(ticket.end_attempt(now))
            self._outcomes.answered(ticket, completion)
            self._settle(ticket, completion, now)

    def _settle(self, ticket: Ticket, completion: Completion, now: float) -> None:
        """Give back the permits that were not used, or owe more, and learn from what was used."""
        usage = completion.usage
        if usage is not None:
            self._queue.charge(ticket, usage.total_tokens - ticket.cost)
        grant = ticket.grant
        if grant is None and not completion.headers:
            return
        grant = grant or self._pace.free(ticket.started)
        actual = grant[0].cost
        if usage is not None:
            actual = self._estimator.charged(ticket.request, usage, self._charge, max_tokens=self._max_tokens)
            if ticket.estimate is not None:
                self._estimator.learn(ticket.request, ticket.estimate, usage)
        standings = read_standings(completion.headers) if completion.headers else {}
        self._pace.answered(grant, actual, now, standings)
        ticket.grant = None

    def _unsent(self, ticket: Ticket) -> None:
        """Give back the permits of a call that will not be made."""
        if ticket.grant is not None:
            self._pace.refund(ticket.grant, self._clock.now())
            ticket.grant = None

    def _after_failure(self, ticket: Ticket, error: ProviderError) -> None:
        now = self._clock.now()
        took = ticket.end_attempt(now)
        if isinstance(error, RateLimitError):
            standings = read_standings(error.headers) if error.headers else {}
            draw = self._outcomes.rng.random()
            grant = ticket.grant or self._pace.free(ticket.started)
            self._pace.refused(grant, now, hint=error.retry_after, draw=draw, standings=standings)
            ticket.grant = None
        wait = self._outcomes.failed(ticket, error, took)
        if wait is not None and not ticket.ended:
            self._queue.put_back(ticket, not_before=now + wait)

    def _note_call(self, took: float) -> None:
        old = self._mean_call
        self._mean_call = took if old is None else old + SMOOTHING * (took - old)

    def _free_slot(self) -> None:
        self._in_flight -= 1
        self._wake()
        self._look_idle()

    def _batch_ended(self, batch: Batch, task: asyncio.Task[None]) -> None:
        """Settle what is left of a batch; also of one that was cancelled before its task took the first step."""
        self._tasks.discard(task)
        for ticket in batch.pending:
            self._unsent(ticket)
            self._outcomes.refused(ticket, GatewayClosedError(NEVER_SENT))
            self._free_slot()
        batch.pending.clear()
        if not task.cancelled() and (bug := task.exception()) is not None:
            context = {"message": "a batch of the gateway failed", "exception": bug, "task": task}
            task.get_loop().call_exception_handler(context)
        self._look_idle()

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send without waiting for company from now on, and turn away those who wait for room."""
        self._draining = True
        self._queue.close()
        self._wake()

    async def drained(self) -> None:
        """Return when nothing waits and nothing is under way."""
        while len(self._queue) or self._in_flight or self._tasks:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def cancel(self) -> int:
        """End everything; every caller gets GatewayClosedError. Await `drained` to see the calls gone.

        Returns how many requests that ends. Nothing begins after this.
        """
        waiting = list(self._queue)
        for ticket in waiting:
            self._queue.discard(ticket)
            self._outcomes.refused(ticket, GatewayClosedError(PAUSED if ticket.attempts else NEVER_SENT))
        cut_off = self._in_flight
        for task in self._tasks:
            task.cancel()
        self._set_alarm(None)
        return len(waiting) + cut_off

    def _look_idle(self) -> None:
        idle = self._idle
        if idle is not None and not idle.done() and not (len(self._queue) or self._in_flight or self._tasks):
            idle.set_result(None)


ROUGH_OUTPUT = 512.0  # tokens of an answer whose length nobody bounds


def rough_cost(request: LLMRequest) -> float:
    """Return about how many tokens a request takes, to share between agents; true up follows with its usage."""
    characters = sum([len(message.content) for message in request.messages])
    return characters / 4 + (request.max_tokens or ROUGH_OUTPUT)


NEVER_SENT = "The gateway was shut down before this request was sent."
PAUSED = "The gateway was shut down while this request paused before another attempt."
CUT_OFF = "The gateway was shut down while this request was under way; its provider may have charged for it."
