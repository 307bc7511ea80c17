"""Batches under way: their calls, and how each one ends."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from llm_gateway.batching.asking import ASKER, Asker, Slot
from llm_gateway.batching.price import in_lane, is_no_room
from llm_gateway.batching.together import Load, SharedCall
from llm_gateway.budgets import Budgets
from llm_gateway.clients.base import Completion
from llm_gateway.clock import Clock
from llm_gateway.errors import (
    GatewayClosedError,
    GatewayError,
    IncompleteResponseError,
    InvalidAnswerError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterruptedError,
)
from llm_gateway.events import AttemptBegan, BatchClosed, CloseReason, Observer
from llm_gateway.limits import read_standings
from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.queue import Pieces, RequestQueue, Spoilt, Ticket
from llm_gateway.router import Outcomes, Spread, Upstream, reading_of
from llm_gateway.router.upstream import is_of_deployment
from llm_gateway.tokens import Estimator

NEVER_SENT = "The gateway was shut down before this request was sent."
CUT_OFF = "The gateway was shut down while this request was under way; its provider may have charged for it."

FallBack = Callable[[Ticket, str], bool]
"""Move a ticket to the next model that may stand in after an error of this kind; False if there is none."""


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Requests that leave together, for one deployment."""

    batch_id: str
    tickets: list[Ticket] = field(default_factory=list)
    pending: set[Ticket] = field(default_factory=set)  # those whose calls have not begun
    load: Load | None = None  # of the one call that answers all of them, where that is how the model is asked

    def takes(self, ticket: Ticket) -> bool:
        """Whether a ticket can go with those that are in it."""
        return self.load is None or self.load.takes(ticket)


def classes_of(tickets: Iterable[Ticket]) -> dict[RequestPriority, int]:
    """Return how many tickets are of each class."""
    classes: dict[RequestPriority, int] = {}
    for ticket in tickets:
        classes[ticket.priority] = classes.get(ticket.priority, 0) + 1
    return classes


class Calls:
    """The batches of one lane that are under way.

    Each of their tickets holds a slot of its upstream from `send` until `on_slot` is called for it. Owns the tasks.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        queue: RequestQueue,
        spread: Spread,
        *,
        fall_back: FallBack,
        on_slot: Callable[[Upstream], None],
        on_lent: Callable[[], None],
        on_idle: Callable[[], None],
        estimator: Estimator,
        budgets: Budgets | None,
        clock: Clock,
        observer: Observer,
        tells_beginnings: bool,
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._outcomes = outcomes
        self._queue = queue
        self._spread = spread
        self._fall_back = fall_back
        self._on_slot = on_slot
        self._on_lent = on_lent
        self._on_idle = on_idle
        self._estimator = estimator
        self._budgets = budgets
        self._clock = clock
        self._observer = observer
        self._is_cancelled = False
        self.tells_beginnings = tells_beginnings  # whether somebody wants to hear when a call begins

    def send(self, batch: Batch, upstream: Upstream, why: CloseReason) -> None:
        """Let a batch leave."""
        batch.pending.update(batch.tickets)
        self._observer.observe(
            BatchClosed(
                batch_id=batch.batch_id,
                model=self._outcomes.model,
                deployment=upstream.label,
                size=len(batch.tickets),
                why=why,
                classes=classes_of(batch.tickets),
            )
        )
        # A context of its own: tracing and callbacks of the caller that happened to wake the pump are not the others'.
        task = asyncio.get_running_loop().create_task(self._run(batch, upstream), context=contextvars.Context())
        self.tasks.add(task)
        task.add_done_callback(partial(self._batch_ended, batch, upstream))

    def cancel(self) -> None:
        """Cancel every call; its caller gets GatewayClosedError. None is repeated any more."""
        self._is_cancelled = True
        for task in self.tasks:
            task.cancel()

    # --- one batch --------------------------------------------------------------------------------------------

    async def _run(self, batch: Batch, upstream: Upstream) -> None:
        from llm_gateway.clients.runnable import CallEach

        shared = None if batch.load is None else self._share(batch, upstream)

        async def call(ticket: Ticket) -> None:
            batch.pending.discard(ticket)
            try:
                if ticket.ended:  # its caller left, or its deadline passed, after the batch closed
                    self._unsent(ticket, upstream)
                else:
                    await self._call(ticket, batch.batch_id, upstream)
            finally:
                if shared is None:
                    self._on_slot(upstream)

        try:
            outcomes = await CallEach(call).abatch(batch.tickets, return_exceptions=True)
        finally:
            if shared is not None:
                await shared.ended()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                # Its caller has it too; but a bug must also reach whoever watches the loop.
                context = {"message": "a call of the gateway met a bug", "exception": outcome}
                asyncio.get_running_loop().call_exception_handler(context)

    def _share(self, batch: Batch, upstream: Upstream) -> SharedCall:
        """Let one call answer a batch. It has one slot, until all of it has ended."""
        shared = SharedCall(upstream.client, batch.tickets)
        for ticket in batch.tickets:
            ticket.together = shared
        return shared

    def _batch_ended(self, batch: Batch, upstream: Upstream, task: asyncio.Task[None]) -> None:
        """Settle what is left of a batch; also of one that was cancelled before its task took the first step."""
        self.tasks.discard(task)
        for ticket in batch.pending:
            self._unsent(ticket, upstream)
            self._outcomes.refused(ticket, GatewayClosedError(NEVER_SENT))
            if batch.load is None:
                self._on_slot(upstream)
        batch.pending.clear()
        if batch.load is not None:
            self._on_slot(upstream)
        if not task.cancelled() and (bug := task.exception()) is not None:
            context = {"message": "a batch of the gateway failed", "exception": bug, "task": task}
            task.get_loop().call_exception_handler(context)
        self._on_idle()

    # --- one call ---------------------------------------------------------------------------------------------

    async def _call(self, ticket: Ticket, batch_id: str, upstream: Upstream) -> None:
        """Make one provider call and hand on its outcome. Raises what is a bug, after the caller was told."""
        task = ticket.call = asyncio.current_task()
        slot = Slot(ticket, upstream, self._on_lent)
        ASKER.set(Asker(ticket.priority, ticket.agent, slot))  # of the task that makes this call, and no other
        ticket.begin_attempt(self._clock.now(), batch_id)
        # Repetitions are always told: a job has written down the first call of a row, and must hear of all others.
        if self.tells_beginnings or ticket.attempts > 1:
            self._began(ticket, batch_id, upstream)
        try:
            await self._attempt(ticket, upstream)
        except asyncio.CancelledError:
            if ticket.call is None and task is not None:  # only this call is cancelled, by the lane; the batch goes on
                task.uncancel()
                return
            self._outcomes.refused(ticket, GatewayClosedError(CUT_OFF))
            raise
        except Exception as bug:
            self._outcomes.refused(ticket, bug)
            raise
        finally:
            ticket.call = None
            slot.end()
            self._unknown(ticket, upstream)

    def _began(self, ticket: Ticket, batch_id: str, upstream: Upstream) -> None:
        self._observer.observe(
            AttemptBegan(
                request_id=ticket.request.request_id,
                batch_id=batch_id,
                model=self._outcomes.model,
                deployment=upstream.label,
                provider=upstream.deployment.endpoint.kind,
                attempt=ticket.attempts,
                queue_wait=ticket.queue_wait,
            )
        )

    async def _attempt(self, ticket: Ticket, upstream: Upstream) -> None:
        request = ticket.request if ticket.wanted is None else in_lane(ticket, upstream)
        try:
            if ticket.together is not None:
                completion = await ticket.together.answer(ticket)
            elif ticket.pieces is None:
                completion = await upstream.client.generate(request)
            else:
                completion = await self._stream(ticket, request, ticket.pieces, upstream)
        except ProviderError as error:
            self._after_failure(ticket, error, upstream)
        except GatewayError as error:
            self._outcomes.refused(ticket, error)
        else:
            now = self._clock.now()
            took = ticket.end_attempt(now)
            if not ticket.echo:
                upstream.note_call(took)
                upstream.note_success(ticket, now)
            reading = None
            if ticket.form is not None and not completion.tool_calls:  # a call of a tool is no answer yet
                reading = reading_of(completion, ticket.form)
            cost = self._outcomes.answered(ticket, completion, upstream, reading)
            if ticket.hold is not None and self._budgets is not None and cost is not None:
                self._budgets.settle(ticket.hold, cost)
                ticket.hold = None
            self._settle(ticket, completion, now, upstream)
            if ticket.spoilt is not None and not ticket.ended:
                self._after_unfit(ticket, ticket.spoilt, now, hopeless=reading is not None and reading.hopeless)

    async def _stream(self, ticket: Ticket, request: LLMRequest, pieces: Pieces, upstream: Upstream) -> Completion:
        """Hand on the pieces of an answer as they come, and return the whole of it."""
        async with aclosing(upstream.client.stream(request)) as stream:
            async for piece in stream:
                if isinstance(piece, Completion):
                    return piece
                if ticket.time_to_first_token is None:
                    ticket.time_to_first_token = self._clock.now() - ticket.started
                await pieces.put(piece)
        raise IncompleteResponseError(
            f"{upstream.label} ended the stream without an answer.",
            provider=upstream.deployment.endpoint.name,
            model=upstream.deployment.settings.model,
            request_id=ticket.request.request_id,
        )

    def _settle(self, ticket: Ticket, completion: Completion, now: float, upstream: Upstream) -> None:
        """Give back the permits that were not used, or owe more, and learn from what was used."""
        usage = completion.usage
        if usage is not None:
            self._queue.charge(ticket, usage.total_tokens - ticket.cost)
        grant = ticket.grant
        if grant is None and not completion.headers:
            return
        grant = grant or upstream.pace.free(ticket.started)
        actual = grant[0].cost
        if usage is not None:
            actual = self._estimator.charged(ticket.request, usage, upstream.charge, max_tokens=upstream.max_tokens)
            if ticket.together is not None:
                actual = actual._replace(requests=grant[0].cost.requests)  # of the call, one ticket has paid for all
            if ticket.estimate is not None:
                self._estimator.learn(ticket.request, ticket.estimate, usage)
        standings = read_standings(completion.headers) if completion.headers else {}
        upstream.pace.answered(grant, actual, now, standings)
        ticket.grant = None

    def _after_failure(self, ticket: Ticket, error: ProviderError, upstream: Upstream) -> None:
        now = self._clock.now()
        took = ticket.end_attempt(now)
        if not ticket.echo:
            upstream.note_failure(ticket, error, now)
        self._give_back(ticket, error)
        self._outcomes.failed(ticket, error, took, upstream)
        if ticket.parted and not (ticket.ended or self._is_cancelled):
            self._outcomes.again(ticket, error, 0.0)
            self._queue.put_back(ticket, not_before=now)
            return
        if isinstance(error, RateLimitError) and not ticket.echo:
            self._throttled(ticket, error, upstream, now)
        elif is_of_deployment(error):
            ticket.barred |= {upstream.label}
        ticket.failed_at = upstream.label
        if ticket.pieces is not None and ticket.pieces.count:  # too late to ask again: the caller has seen some of it
            self._outcomes.refused(ticket, StreamInterruptedError(error, partial=ticket.pieces.text))
            return
        if self._is_cancelled:  # and the client made an error of that
            self._outcomes.refused(ticket, GatewayClosedError(CUT_OFF))
            return
        self._try_again(ticket, error, upstream, now)

    def _try_again(self, ticket: Ticket, error: ProviderError, upstream: Upstream, now: float) -> None:
        """Put a ticket back into the queue, hand it to another model, or refuse it."""
        if ticket.price_lane == "flex" and is_no_room(error) and not ticket.ended:
            self._outcomes.left_flex(ticket, error)
            self._queue.put_back(ticket, not_before=now)
            return
        elsewhere = self._spread.has_other(ticket, upstream, now, throttled=isinstance(error, RateLimitError))
        wait = self._outcomes.wait_after(ticket, error, upstream, elsewhere=elsewhere)
        if wait is not None:
            if not ticket.ended:
                self._queue.put_back(ticket, not_before=now + wait)
        elif ticket.ended or not self._fall_back(ticket, error.kind):
            self._outcomes.refused(ticket, error)

    def _after_unfit(self, ticket: Ticket, spoilt: Spoilt, now: float, *, hopeless: bool) -> None:
        """Ask again with the answer that does not fit and what is wrong with it, or give up."""
        seen = ticket.pieces is not None and ticket.pieces.count > 0  # by the caller, so that it is too late
        if not (hopeless or seen or self._is_cancelled):
            ticket.estimate = None  # of another prompt
            if self._outcomes.asks_again(ticket):
                ticket.request = spoilt.repeated()
                self._queue.put_back(ticket, not_before=now)
                return
            ticket.request = spoilt.original  # another model begins anew
            if self._fall_back(ticket, InvalidAnswerError.kind):
                return
        self._outcomes.refused(ticket, InvalidAnswerError(spoilt.problem))

    def _throttled(self, ticket: Ticket, error: RateLimitError, upstream: Upstream, now: float) -> None:
        """Shut the gate of the deployment: the refusal is news for all who wait."""
        standings = read_standings(error.headers) if error.headers else {}
        grant = ticket.grant or upstream.pace.free(ticket.started)
        draw = self._outcomes.rng.random()
        upstream.pace.refused(grant, now, hint=error.retry_after, draw=draw, standings=standings)
        ticket.grant = None

    def _give_back(self, ticket: Ticket, error: ProviderError) -> None:
        """Release the money of a call that failed; nobody knows what one cost that broke off or took too long."""
        if ticket.hold is None or self._budgets is None:
            return
        if not isinstance(error, ProviderTimeoutError | IncompleteResponseError):
            self._budgets.release(ticket.hold)
            ticket.hold = None

    def _unsent(self, ticket: Ticket, upstream: Upstream) -> None:
        """Give back the permits and the money of a call that will not be made."""
        now = self._clock.now()
        upstream.abandon(ticket, now)
        if ticket.grant is not None and ticket.together is not None:
            upstream.pace.keep(ticket.grant)  # it may be the one that paid for a call that others wait for
        elif ticket.grant is not None:
            upstream.pace.refund(ticket.grant, now)
        ticket.grant = None
        if ticket.hold is not None and self._budgets is not None:
            self._budgets.release(ticket.hold)
            ticket.hold = None

    def _unknown(self, ticket: Ticket, upstream: Upstream) -> None:
        """Let what is still reserved count as used: neither answered nor refused, nobody knows what was charged."""
        if ticket.probe:
            upstream.abandon(ticket, self._clock.now())
        if ticket.grant is not None:
            upstream.pace.keep(ticket.grant)
            ticket.grant = None
        if ticket.hold is not None and self._budgets is not None:
            self._budgets.settle(ticket.hold, ticket.hold.amount)
            ticket.hold = None
