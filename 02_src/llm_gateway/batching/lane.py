"""The lane of one model: its queue, its deployments, and the pump that says when what is sent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from llm_gateway.answers import form_of
from llm_gateway.batching.asking import inherited
from llm_gateway.batching.calls import NEVER_SENT, Calls, FallBack
from llm_gateway.batching.door import Door
from llm_gateway.batching.pump import Pump
from llm_gateway.batching.riding import Riding
from llm_gateway.batching.together import room_of, size_of
from llm_gateway.budgets import Budgets
from llm_gateway.clock import Clock
from llm_gateway.config import BatchingSettings, ProviderBatchSettings
from llm_gateway.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    GatewayClosedError,
    GatewayError,
    InvalidRequestError,
    RequestTooLargeError,
)
from llm_gateway.events import Observer, RequestQueued
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority
from llm_gateway.price_lanes import LaneChoice, refusal
from llm_gateway.queue import Pieces, RequestQueue, Ticket
from llm_gateway.router import Outcomes, Spread, Upstream
from llm_gateway.tokens import Cost, Estimator

PAUSED = "The gateway was shut down while this request paused before another attempt."
AT_ONCE = 100  # waiting requests that are refused before others on the loop get their turn
ROUGH_OUTPUT = 512.0  # tokens of an answer whose length nobody bounds


class Lane:
    """The queue of one model, and the deployments that serve it.

    State changes only between awaits, on the loop that the lane was made in. `drained` and `cancel` end what runs.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        outcomes: Outcomes,
        *,
        settings: BatchingSettings,
        provider_batches: ProviderBatchSettings,
        fall_back: FallBack,
        estimator: Estimator,
        budgets: Budgets | None,
        clock: Clock,
        observer: Observer,
        tells_beginnings: bool = False,
    ) -> None:
        self.model = outcomes.model
        self.upstreams = upstreams
        self.call_room = room_of(upstreams)  # None: each ticket is a call of its own
        self._spread = Spread(upstreams)
        self._outcomes = outcomes
        self._estimator = estimator
        self._budgets = budgets
        self._clock = clock
        self._observer = observer
        self._queue = RequestQueue(self.model, max_size=settings.max_queue_size)
        self.door = Door(on_wait=lambda: self._pump.wake())  # noqa: PLW0108 - the pump is made below
        self._calls = Calls(
            outcomes,
            self._queue,
            self._spread,
            fall_back=fall_back,
            on_slot=self._free_slot,
            on_lent=lambda: self._pump.wake(),  # noqa: PLW0108 - the pump is made below
            on_idle=self._look_idle,
            estimator=estimator,
            budgets=budgets,
            clock=clock,
            observer=observer,
            tells_beginnings=tells_beginnings,
        )
        self._pump = Pump(
            self.door,
            self._queue,
            self._spread,
            self._calls,
            outcomes,
            settings=settings,
            room=self.call_room,
            fall_back=fall_back,
            estimator=estimator,
            budgets=budgets,
            clock=clock,
            observer=observer,
        )
        self._riding = Riding(
            upstreams=upstreams,
            outcomes=outcomes,
            settings=provider_batches,
            budgets=budgets,
            fall_back=fall_back,
            to_standard=self._leave_batches,
            on_idle=self._look_idle,
            observer=observer,
            clock=clock,
        )
        self._idle: asyncio.Future[None] | None = None
        self._lane = upstreams[0].deployment.settings.lane  # the price lane of requests that name none
        for upstream in upstreams:
            upstream.pace.on_change = self._pump.wake
        if budgets is not None:
            budgets.on_change.append(self._money_came)

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def is_resting(self) -> bool:
        """Whether the breaker of every deployment is open."""
        now = self._clock.now()
        return all(upstream.breaker.wait(now) > 0 for upstream in self.upstreams)

    @property
    def in_flight(self) -> int:
        """Provider calls under way."""
        return sum([upstream.in_flight for upstream in self.upstreams])

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        waits = len(self._queue) or self._calls.tasks or self.in_flight
        return not waits and self.door.is_clear and self._riding.is_idle

    def depth(self, priority: RequestPriority) -> int:
        """How many requests of `priority` wait, those that pause before a retry included."""
        return self._queue.depth(priority)

    def pace(self) -> dict[str, Any]:
        """Where the limits of the model's own deployment stand, and of its further ones, for statistics."""
        now = self._clock.now()
        own, *further = [
            upstream.pace.snapshot(now) | {"breaker": upstream.breaker.state} for upstream in self.upstreams
        ]
        if further:
            own["deployments"] = {
                upstream.label: snapshot for upstream, snapshot in zip(self.upstreams[1:], further, strict=True)
            }
        return own

    def provider_batches(self) -> dict[str, Any] | None:
        """How the batches at the provider stand, for statistics; None where no request has asked for one."""
        return self._riding.snapshot()

    def in_batches(self, request: LLMRequest) -> bool:
        """Whether a request goes in a provider's batch. Raises InvalidRequestError where there are none."""
        wanted = request.lane or self._lane
        return wanted != "standard" and self.call_room is None and self._riding.takes(request, wanted)

    def waiting(self, most: int) -> list[dict[str, Any]]:
        """Return the first requests that wait, in the order in which they would go if nobody else came."""
        now = self._clock.now()
        return [
            {
                "request_id": ticket.request.request_id,
                "model": self.model,
                "priority": ticket.priority.name.lower(),
                "agent": ticket.agent,
                "position": place,
                "waited": now - ticket.submitted,
            }
            for place, ticket in zip(range(1, most + 1), self._queue.in_order(most), strict=False)
        ]

    def eta(self, request: LLMRequest) -> float:
        """Return the seconds until a call for `request` would likely begin if it were submitted now.

        What waits ahead, by number and by estimated tokens, over the rates of slots and limits; of several deployments
        the soonest, with the load spread evenly. Infinite where a breaker waits for its probe. For one that goes in a
        provider's batch, until that leaves at the latest.
        """
        if self.in_batches(request):
            return self._riding.eta()
        now = self._clock.now()
        priority = inherited(request).priority
        count, tokens = self._queue.ahead(priority)
        share = count / len(self.upstreams)
        waits = []
        for upstream in self.upstreams:
            cost = self._estimator.expected(request, upstream.charge, max_tokens=upstream.max_tokens).cost
            tokens_each = tokens / count if count else 0.0
            scale = tokens_each / cost.tokens if cost.tokens else 0.0
            ahead = Cost(
                share, share * cost.input_tokens * scale, share * cost.output_tokens * scale, share * tokens_each
            )
            waits.append(upstream.likely_wait(cost, ahead, priority, now))
        return min(waits)

    # --- in and out -------------------------------------------------------------------------------------------

    def check(self, request: LLMRequest) -> None:
        """Raise InvalidRequestError for what every deployment is known to refuse, MissingDependencyError."""
        if request.response_format is not None:
            form_of(request.response_format)
        if request.lane is not None:
            self._check_lane(request.lane)
        *others, last = self.upstreams
        for upstream in others:
            try:
                upstream.client.check(request)
            except InvalidRequestError:
                continue
            return
        last.client.check(request)

    def _check_lane(self, lane: LaneChoice) -> None:
        deployments = [upstream.deployment for upstream in self.upstreams]
        reasons = [refusal(lane, kind=each.endpoint.kind, model=each.settings.model) for each in deployments]
        if all(reasons):
            raise InvalidRequestError(reasons[0] or "", field="lane", record="LLMRequest")

    def submit(
        self, request: LLMRequest, *, since: float | None = None, shared: bool = False, streamed: bool = False
    ) -> Ticket:
        """Accept a request. Raises QueueFullError, RequestTooLargeError, BudgetExceededError; then nothing changed.

        The reply is in the ticket. `since` is the instant from which its wait and its deadline count; default: now.
        A `shared` one has no deadline: its callers keep their own. The answer of a `streamed` one comes in pieces, too.
        """
        submitted = self._clock.now() if since is None else since
        reply: asyncio.Future[LLMResponse] = asyncio.get_running_loop().create_future()
        asker = inherited(request)
        ticket = Ticket(
            request=request,
            reply=reply,
            submitted=submitted,
            priority=asker.priority,
            agent=asker.agent,
            parent=asker.slot.ticket if asker.slot else None,
            nested=asker.is_call,
            deadline=None if shared else request.deadline,
            pieces=Pieces(reply) if streamed else None,
        )
        ticket.home = self
        if request.response_format is not None:
            ticket.form = form_of(request.response_format)
        rides = False
        if (wanted := request.lane or self._lane) != "standard":
            ticket.wanted = wanted
            rides = self._rides(request, wanted, streamed=streamed)
        if rides:
            self._riding.join(ticket)
        else:
            self._enter(ticket)
        if ticket.deadline is not None:
            ticket.alarm = self._clock.call_at(submitted + ticket.deadline, lambda: ticket.home.expire(ticket))
        self._observer.observe(
            RequestQueued(
                request_id=request.request_id,
                model=self.model,
                priority=ticket.priority,
                operation="chat" if self.call_room is None else "embeddings",
            )
        )
        self.door.came()
        if ticket.priority is RequestPriority.HIGH and self.call_room is None:  # somebody waits; vectors go together
            self._pump.hurry()
        else:
            self._pump.wake()
        return ticket

    def _rides(self, request: LLMRequest, wanted: LaneChoice, *, streamed: bool) -> bool:
        if streamed and request.lane == "batch":
            reason = "'batch' answers when a whole batch is over, so that nothing can be streamed; use another lane."
            raise InvalidRequestError(reason, field="lane", record="LLMRequest")
        return not streamed and self.call_room is None and self._riding.takes(request, wanted)

    def _enter(self, ticket: Ticket) -> None:
        self._examine(ticket)
        if ticket.nested:  # what a call under way waits for must not wait for those behind that call
            self._accept(ticket)
        else:
            self._queue.put_nowait(ticket, retry_after=lambda: self._hint(ticket.request))

    def _leave_batches(self, ticket: Ticket) -> None:
        """Let a request that no batch answered, or can answer in time, go on in the standard lane."""
        ticket.wanted = "standard"
        try:
            self._examine(ticket)
        except GatewayError as error:
            self._outcomes.refused(ticket, error)
            return
        self._accept(ticket)
        self._pump.wake()

    def adopt(self, ticket: Ticket) -> None:
        """Take a ticket over from the lane of another model, for which this one stands in.

        Raises GatewayError for one that this model cannot answer; then nothing changed but its estimate.
        """
        self.check(ticket.request)
        self._examine(ticket)
        ticket.tried += (ticket.home.model,)
        ticket.home.let_go(ticket)
        ticket.home = self
        ticket.failures = ticket.throttles = 0
        ticket.barred = frozenset()
        ticket.failed_at = None
        self._accept(ticket)
        self._pump.wake()

    async def turn(self, request: LLMRequest) -> float:
        """Return when `request` may be submitted without holding up the loop, and since when its wait counts.

        HIGH may at once. Raises GatewayClosedError.
        """
        since = self._clock.now()
        if inherited(request).priority is not RequestPriority.HIGH:
            try:
                await self.door.turn()
            finally:
                self._look_idle()
        return since

    async def room(self, request: LLMRequest) -> None:
        """Return when `request` fits; first come, first served. Raises GatewayClosedError."""
        asker = inherited(request)
        if self.in_batches(request):
            await self._riding.room()
        elif not asker.is_call:  # whose requests find room in any case
            await self._queue.room(asker.priority)

    def pass_room_on(self, request: LLMRequest) -> None:
        """Leave the place that `room` found for `request` to the next who waits."""
        if not self.in_batches(request):
            self._queue.pass_room_on(inherited(request).priority)

    def lift(self, ticket: Ticket, priority: RequestPriority, *, nested: bool) -> None:
        """Let a ticket go as early as one of `priority`, and as one that is `nested`, since such a caller joined it."""
        self._queue.lift(ticket, priority)
        if nested and not ticket.nested:
            ticket.nested = True
            if not self._riding.has(ticket):
                self._pump.nested.append(ticket)
        self._pump.wake()

    def discard(self, ticket: Ticket) -> None:
        """Forget a request whose caller has left: out of the queue, or its call cancelled. Its neighbours stay."""
        if not ticket.ended:
            self._outcomes.left(ticket)
            self._drop(ticket)
        elif not ticket.reply.cancelled():
            ticket.reply.exception()  # its caller left before it could look; that is no lost error

    def let_go(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue; another lane has it, or it is refused."""
        if ticket.nested and not self._riding.has(ticket):
            self._pump.nested.remove(ticket)
        if self._queue.discard(ticket):
            self._look_idle()

    def expire(self, ticket: Ticket) -> None:
        """Ring of the deadline."""
        self._outcomes.refused(ticket, DeadlineExceededError(ticket.deadline or 0.0, waited_for=ticket.state))
        self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        """Take `ticket` out of the queue, or cancel its call; one whose call is about to begin is skipped then."""
        if self._queue.discard(ticket):
            self._look_idle()
        elif ticket.call is not None:
            call, ticket.call = ticket.call, None  # None tells the call that it is cancelled alone
            call.cancel()
        else:
            self._riding.drop(ticket)

    def _examine(self, ticket: Ticket) -> None:
        """Raise what says that waiting would be in vain: a limit or a budget that the request never fits into."""
        budgets = self._budgets if self._budgets is not None and self._budgets.applies_to(self.model) else None
        worst = [upstream.worst_case(ticket.request) for upstream in self.upstreams] if budgets is not None else ()
        refusal: RequestTooLargeError | BudgetExceededError | None = None
        for place, upstream in enumerate(self.upstreams):
            try:
                if upstream.pace.is_limited:
                    upstream.pace.check(self._pump.estimate(ticket, upstream))
                if budgets is not None:
                    budgets.check(worst[place], model=self.model, agent=ticket.agent)
            except (RequestTooLargeError, BudgetExceededError) as error:
                refusal = error
            else:
                break
        else:
            if refusal is not None:
                raise refusal
        if ticket.estimate is None:
            ticket.cost = rough_cost(ticket.request) if self.call_room is None else float(size_of(ticket)[1])

    def _accept(self, ticket: Ticket) -> None:
        self._queue.accept(ticket)
        if ticket.nested:
            self._pump.nested.append(ticket)

    def _hint(self, request: LLMRequest) -> float | None:
        """Return when a request that finds no room may come again, None if nobody can tell."""
        eta = self.eta(request)
        return eta if math.isfinite(eta) and eta > 0 else None

    def _money_came(self) -> None:
        if self._pump.waits_for_money:
            self._pump.wake()
        self._riding.money_came()

    def _free_slot(self, upstream: Upstream) -> None:
        upstream.in_flight -= 1
        self._pump.wake()
        self._look_idle()

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send without waiting for company from now on, and turn away those who wait for room."""
        self._pump.draining = True
        self._queue.close()
        self._riding.close()
        self._pump.wake()

    async def drained(self) -> None:
        """Return when nothing waits and nothing is under way."""
        while not self.is_idle:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def halt(self) -> int:
        """Begin nothing more, and cancel what is under way; its callers get GatewayClosedError. Return how many."""
        cut_off = self.in_flight + self._riding.halt()
        self.door.close(NEVER_SENT)
        self._pump.stop()
        self._calls.cancel()
        return cut_off

    async def give_up(self) -> int:
        """After `halt`, refuse all that wait with GatewayClosedError, and return how many; the loop gets its turns."""
        count = 0
        while waiting := list(self._queue):
            for ticket in waiting:
                if not ticket.ended:
                    count += 1
                    self._outcomes.refused(ticket, GatewayClosedError(PAUSED if ticket.attempts else NEVER_SENT))
                    self._drop(ticket)
                    if count % AT_ONCE == 0:
                        await asyncio.sleep(0)
        return count

    def _look_idle(self) -> None:
        idle = self._idle
        if idle is not None and not idle.done() and self.is_idle:
            idle.set_result(None)


def rough_cost(request: LLMRequest) -> float:
    """Return about how many tokens a request takes, to share between agents; true up follows with its usage."""
    characters = sum([len(message.content) for message in request.messages])
    return characters / 4 + (request.max_tokens or ROUGH_OUTPUT)
