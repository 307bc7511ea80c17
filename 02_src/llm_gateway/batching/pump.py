"""The pump of one lane: when a request leaves, in which batch, and for which deployment. It never polls."""

from __future__ import annotations

import asyncio
import contextvars
import math
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from llm_gateway.batching.calls import Batch, Calls, FallBack
from llm_gateway.batching.door import Door
from llm_gateway.batching.together import Load, Room
from llm_gateway.budgets import Account, Budgets, Hold
from llm_gateway.clock import Clock, Timer
from llm_gateway.config import BatchingSettings
from llm_gateway.errors import BudgetExceededError, GatewayError, RequestTooLargeError
from llm_gateway.events import BatchOpened, CloseReason, Observer
from llm_gateway.limits import Wait
from llm_gateway.models import RequestPriority
from llm_gateway.queue import RequestQueue, Ticket
from llm_gateway.router import Outcomes, Spread, Upstream
from llm_gateway.tokens import Cost, Estimator

ALL = tuple(RequestPriority)
HIGH_ALONE = (RequestPriority.HIGH,)
NOT_LOW = (RequestPriority.HIGH, RequestPriority.NORMAL)
ROUNDING = 1e-9  # seconds; the alarm rings on the loop's own clock, and what is due within its resolution is due


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing takes the best request now."""

    until: float = math.inf  # the earliest instant at which that may change by itself; infinite: an event changes it
    permits: bool = False  # it waits for permits of a limit, or for money of a budget
    only_low: bool = False  # because it is LOW: others may still go
    only_agent: bool = False  # for money of its agent's: other agents may still go

    @classmethod
    def sooner(cls, one: Blocked | None, other: Blocked) -> Blocked:
        """Return what holds when either may change."""
        if one is None:
            return other
        return cls(
            min(one.until, other.until),
            one.permits or other.permits,
            one.only_low or other.only_low,
            one.only_agent or other.only_agent,
        )


class Pump:
    """Takes the best requests out of the queue as slots, permits and money come free, and sends them in batches."""

    def __init__(
        self,
        door: Door,
        queue: RequestQueue,
        spread: Spread,
        calls: Calls,
        outcomes: Outcomes,
        *,
        settings: BatchingSettings,
        room: Room | None,
        fall_back: FallBack,
        estimator: Estimator,
        budgets: Budgets | None,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._stopped = False
        self._room = room  # of one call that answers a whole batch; None: each request is a call
        self._loading: dict[Upstream, Batch] = {}  # the batches that are put together right now, if they are calls
        self.draining = False  # nothing waits for company any more
        self.waits_for_money = False  # until a call under way costs less than its worst case
        self.nested: list[Ticket] = []  # of the queue's tickets, those that may go in the slot of a call that waits
        self._door = door
        self._queue = queue
        self._spread = spread
        self._calls = calls
        self._outcomes = outcomes
        self._max_size = settings.max_batch_size if room is None else room.texts
        self._max_wait = settings.max_wait_ms / 1000
        self._fall_back = fall_back
        self._estimator = estimator
        self._budgets = budgets
        self._clock = clock
        self._observer = observer
        self._open: Batch | None = None
        self._alarm: Timer | None = None
        self._is_due = False
        self._has_hurried = False  # in this turn of the loop

    def wake(self) -> None:
        """Let the pump run after one tick of the loop, in which others may come."""
        if not self._is_due and not self._stopped:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pump, context=contextvars.Context())

    def hurry(self) -> None:
        """Send what may go before this turn of the loop ends; after that, all others of the turn go together."""
        self.wake()
        if not self._has_hurried and not self._stopped:
            self._has_hurried = True
            try:
                contextvars.Context().run(self._send)
            except Exception as bug:  # noqa: BLE001 - of the gateway's own, for whoever watches the loop, not for a caller
                context = {"message": "the pump of the gateway met a bug", "exception": bug}
                asyncio.get_running_loop().call_exception_handler(context)

    def stop(self) -> None:
        """Send nothing more, and ring no more."""
        self._stopped = True
        self._set_alarm(math.inf)

    def estimate(self, ticket: Ticket, upstream: Upstream) -> Cost:
        """Return what a call of a ticket will be charged; worked out where there is a limit, since it takes time."""
        made_for = upstream.charge, upstream.max_tokens
        if ticket.estimate is None or ticket.estimated_for != made_for:
            ticket.estimate = self._estimator.expected(ticket.request, made_for[0], max_tokens=made_for[1])
            ticket.estimated_for = made_for
            ticket.cost = ticket.estimate.cost.tokens
        return ticket.estimate.cost

    # --- one turn ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin a turn: call the next in, and send what may go."""
        self._is_due = self._has_hurried = False
        if not self._stopped:
            self._door.open()
            self._send()

    def _send(self) -> None:
        """Send what may go now, and set the alarm for what may go later."""
        self.waits_for_money = False
        now = self._clock.now()
        due = self._queue.release_due(now)
        self._queue.bring_back()
        alarm = math.inf if due is None else due
        if self.nested:
            alarm = min(alarm, self._send_nested(now))
        while self._queue.ready(self._classes()):
            self._open = self._open or self._open_batch()
            why, company = self._waits_for_company(now)
            if company is not None:
                alarm = min(alarm, company)
                break
            until = self._fill_and_send(why, now)
            if until is not None:
                alarm = min(alarm, until)
                break
        self._set_alarm(alarm)

    def _classes(self) -> Collection[RequestPriority]:
        """Which classes may have the next slot."""
        upstreams = self._spread.upstreams
        for upstream in upstreams:
            if upstream.has_slot(RequestPriority.NORMAL):
                return ALL
        return HIGH_ALONE if any(each.has_slot(RequestPriority.HIGH) for each in upstreams) else ()

    def _waits_for_company(self, now: float) -> tuple[CloseReason | None, float | None]:
        """Return why a batch leaves if that is known before it is filled, and until when it waits instead."""
        if self.draining:
            return "drain", None
        if not self._max_wait or self._queue.ready(HIGH_ALONE):
            return None, None  # a user who waits never waits for company
        if self._queue.ready() >= min(self._max_size, sum([each.free_slots for each in self._spread.upstreams])):
            return None, None
        company = self._queue.oldest() + self._max_wait
        return ("wait", None) if now >= company - ROUNDING else (None, company)

    def _fill_and_send(self, why: CloseReason | None, now: float) -> float | None:
        """Send the best waiting requests, until a batch is full or nothing more may go.

        Returns when more may go, infinite if only an event changes that; None if there may be more right now.
        """
        batches: dict[Upstream, Batch] = {}
        blocked: Blocked | None = None
        without_low = False
        is_full = False
        if self._room is not None:
            self._loading = batches
        while not is_full:
            classes = ALL if self._loading else self._classes()  # riding takes no slot
            ticket = self._queue.best([each for each in classes if each in NOT_LOW] if without_low else classes)
            if ticket is None:
                break
            if self._room is not None and not all(each.takes(ticket) for each in batches.values()):
                is_full = True
                break
            place = self._place(ticket, now)
            if isinstance(place, Upstream):
                is_full = self._put(ticket, place, batches)
            elif place is not None:
                blocked = Blocked.sooner(blocked, place)
                if place.only_agent:
                    self._queue.set_aside(ticket.agent)
                    continue
                if without_low or not place.only_low:
                    break
                without_low = True
        for upstream, batch in batches.items():
            is_loaded = is_full and self._room is not None
            self._calls.send(batch, upstream, why or ("size" if is_loaded else self._why_closed(batch, blocked)))
        self._loading = {}
        return None if is_full else math.inf if blocked is None else blocked.until

    def _put(self, ticket: Ticket, upstream: Upstream, batches: dict[Upstream, Batch]) -> bool:
        """Put a ticket into the batch for `upstream`; return whether that one is full now."""
        batch = batches.get(upstream)
        if batch is None:
            batch, self._open = self._open or self._open_batch(), None
            batches[upstream] = batch
        self._queue.take(ticket)
        batch.tickets.append(ticket)
        return len(batch.tickets) >= self._max_size if batch.load is None else batch.load.add(ticket)

    def _why_closed(self, batch: Batch, blocked: Blocked | None) -> CloseReason:
        if len(batch.tickets) >= self._max_size:
            return "size"
        if blocked is not None and blocked.permits:
            return "permits"
        return "slots" if self._queue.ready() else "idle"

    def _open_batch(self) -> Batch:
        batch = Batch(batch_id=uuid.uuid4().hex[:16], load=None if self._room is None else Load(self._room))
        upstreams = self._spread.upstreams
        label = upstreams[0].label if len(upstreams) == 1 else None
        self._observer.observe(BatchOpened(batch_id=batch.batch_id, model=self._outcomes.model, deployment=label))
        return batch

    def _send_nested(self, now: float) -> float:
        """Send what calls under way wait for in the slots of calls that wait; return when more of it may go."""
        self.nested = [ticket for ticket in self.nested if not ticket.ended]
        soonest = math.inf
        for ticket in sorted(self.nested, key=lambda each: (each.priority, each.place)):
            if ticket.delayed or not ticket.waiting:
                continue
            if not any(upstream.has_lent_slot for upstream in self._spread.upstreams):
                break
            place = self._place(ticket, now, lent=True)
            if isinstance(place, Blocked):
                soonest = min(soonest, place.until)
            elif place is not None:
                batch = self._open_batch()
                self._queue.pull(ticket)
                batch.tickets.append(ticket)
                self._calls.send(batch, place, "slots")
        return soonest

    # --- one request ------------------------------------------------------------------------------------------

    def _place(self, ticket: Ticket, now: float, *, lent: bool = False) -> Upstream | Blocked | None:
        """Reserve all that a call of a ticket needs, and return where it goes; with `lent` in a slot that is lent.

        None: it is no longer this lane's to send; it was refused, or another model's lane has it.
        """
        blocked: Blocked | None = None
        resting = True
        refusal: BaseException | None = ticket.last_error
        for upstream in self._spread.candidates(ticket):
            rides = upstream in self._loading
            if not rides and not (upstream.has_lent_slot if lent else upstream.has_slot(ticket.priority)):
                blocked, resting = blocked or Blocked(), False
                continue
            rest = upstream.breaker.wait(now)
            if rest > 0:
                blocked = Blocked.sooner(blocked, Blocked(now + rest))
                continue
            resting = False
            try:
                place = self._reserve(ticket, upstream, now, rides=rides)
            except (RequestTooLargeError, BudgetExceededError) as error:
                refusal = error  # by this deployment: its limit was told since, or the money is gone
                continue
            if place is None:
                self._assign(ticket, upstream, now, rides=rides)
                return upstream
            blocked = Blocked.sooner(blocked, place)
        if blocked is not None and not (resting and self._fall_back(ticket, "unavailable")):
            return blocked
        if blocked is None:
            ticket.home.let_go(ticket)
            self._outcomes.refused(ticket, refusal or GatewayError("no deployment is left to ask"))
        return None

    def _reserve(self, ticket: Ticket, upstream: Upstream, now: float, *, rides: bool) -> Blocked | None:
        """Reserve the permits and the money of a call; or nothing, and return what it waits for.

        One that `rides` in a call that another ticket has opened takes no permit of a request.
        """
        pace, grant = upstream.pace, None
        if not pace.is_free(now):
            low, high = ticket.priority is RequestPriority.LOW, ticket.priority is RequestPriority.HIGH
            cost = self.estimate(ticket, upstream)
            outcome = pace.reserve(cost._replace(requests=0.0) if rides else cost, now, low=low, high=high)
            if isinstance(outcome, Wait):
                return Blocked(now + outcome.seconds, permits=True, only_low=outcome.only_low)
            grant = outcome
        if self._budgets is not None and self._budgets.applies_to(self._outcomes.model):
            hold: Hold | Account | None = None
            try:
                amount = upstream.worst_case(ticket.request)
                hold = self._budgets.reserve(amount, model=self._outcomes.model, agent=ticket.agent)
            finally:
                if not isinstance(hold, Hold) and grant is not None:
                    pace.refund(grant, now)
            if isinstance(hold, Account):
                self.waits_for_money = True
                return Blocked(permits=True, only_agent=hold.of_agent)
            ticket.hold = hold
        ticket.grant = grant
        return None

    def _assign(self, ticket: Ticket, upstream: Upstream, now: float, *, rides: bool) -> None:
        ticket.served_by = upstream
        if rides:
            return
        upstream.in_flight += 1
        if upstream.breaker.state != "closed":
            ticket.probe = upstream.breaker.begin()
        self._spread.chosen(upstream, now)

    def _set_alarm(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if due == math.inf else self._clock.call_at(due, self._ring)

    def _ring(self) -> None:
        """Begin a turn now, unless one is due anyway: nobody comes just because time passes."""
        if not self._is_due and not self._stopped:
            contextvars.Context().run(self._pump)
