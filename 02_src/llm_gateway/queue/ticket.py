"""One accepted request on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llm_gateway.answers import AnswerForm
from llm_gateway.budgets import Hold
from llm_gateway.clients.base import Completion
from llm_gateway.clock import Timer
from llm_gateway.config import Charge
from llm_gateway.errors import ProviderError
from llm_gateway.limits import Grant
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority
from llm_gateway.price_lanes import LaneChoice, PriceLane
from llm_gateway.queue.pieces import Pieces
from llm_gateway.queue.spoilt import Spoilt
from llm_gateway.tokens import Estimate


class Server(Protocol):
    """The deployment that a call goes to, as far as a ticket cares."""

    @property
    def label(self) -> str:
        """Provider, slash, model id."""


class Home(Protocol):
    """Where a ticket is at home: the lane that queues it and makes its calls."""

    model: str

    def discard(self, ticket: Ticket, /) -> None:
        """Forget it, since its caller has left."""

    def expire(self, ticket: Ticket, /) -> None:
        """End it, since its deadline has passed."""

    def lift(self, ticket: Ticket, priority: RequestPriority, /, *, nested: bool) -> None:
        """Let it go as early as one of `priority`, and as one that is `nested`, since such a caller joined it."""

    def let_go(self, ticket: Ticket, /) -> None:
        """Take it out of the queue, for another lane."""


class Together(Protocol):
    """The one call that answers several tickets, as far as a ticket cares."""

    async def answer(self, ticket: Ticket, /) -> Completion:
        """Return what the call has for a ticket. Raises what the call raises."""


class Ticket:
    """A request from its submission until its reply is settled. Instants in seconds.

    Defaults stand on the class: most of these never change for most requests, and there may be 100,000 of them.
    """

    home: Home  # the lane it is in now
    agent: str | None = None  # whose turn it takes
    parent: Ticket | None = None  # in whose call this one was asked
    nested: bool = False  # a call waits for it: it may go in the slot of one that waits
    deadline: float | None = None  # seconds from `submitted`
    cost: float = 1.0  # what its agent is charged in the queue, in tokens by estimate
    counted: float = 0.0  # of that, what its queue counts
    estimated_for: tuple[Charge, int | None] | None = None  # what the estimate was made for: how is charged, max_tokens
    estimate: Estimate | None = None  # of what its call will be charged
    grant: Grant | None = None  # permits of the call that is about to begin or under way
    hold: Hold | None = None  # US dollars that the call may cost at worst
    throttles: int = 0  # calls that met a rate limit; they cost no attempt
    attempts: int = 0  # provider calls begun
    failures: int = 0  # attempts that failed since it is in this lane, throttles apart
    served_by: Server | None = None  # of the last call
    failed_at: str | None = None  # label of the deployment that failed it last
    barred: frozenset[str] = frozenset()  # labels of those that will never answer it
    probe: bool = False  # its call is the one that an open breaker lets through
    tried: tuple[str, ...] = ()  # models whose lanes it was in before
    started: float = 0.0  # when the last call began
    queue_wait: float = 0.0  # in the queue and between attempts, all together
    provider_time: float = 0.0  # in all calls that ended
    batch_id: str | None = None  # of the last call
    pieces: Pieces | None = None  # of an answer that is streamed
    time_to_first_token: float | None = None  # from the beginning of the call that is streamed
    together: Together | None = None  # the call that answers it and others, of a lane of embeddings
    vectors: Sequence[list[float]] | None = None  # what such a call had for it
    party: object = None  # of those that a rejected call was parted into: only they go together
    parted: bool = False  # its call was rejected, and the fault may be another's
    echo: bool = False  # another ticket of its call has told the deployment how that ended
    call: asyncio.Task[object] | None = None  # while in flight
    alarm: Timer | None = None  # rings at the deadline
    place: int = -1  # in the order of submission
    waiting: bool = False  # in the queue, ready or delayed
    delayed: bool = False  # in the queue, but it may not go yet
    calling: bool = False  # in the provider's hands
    last_error: ProviderError | None = None  # of the attempt that failed last
    form: AnswerForm | None = None  # that its answer must have
    spoilt: Spoilt | None = None  # the last answer that did not have it
    wanted: LaneChoice | None = None  # its price lane; None: the standard one
    price_lane: PriceLane = "standard"  # of the last call
    left_flex: bool = False  # the flex lane had no room for it, or took too long
    ended: bool = False  # answered, refused, or its caller has left

    def __init__(
        self,
        request: LLMRequest,
        reply: asyncio.Future[LLMResponse],
        *,
        submitted: float,
        priority: RequestPriority,
        agent: str | None = None,
        parent: Ticket | None = None,
        nested: bool = False,
        deadline: float | None = None,
        cost: float = 1.0,
        pieces: Pieces | None = None,
    ) -> None:
        """Begin where a caller has just asked."""
        self.request = request
        self.reply = reply
        self.submitted = submitted
        self.priority = priority  # its class now; joining a waiting request can lift it
        self.agent = agent
        self.cost = cost
        if parent is not None:
            self.parent = parent
        if nested:
            self.nested = nested
        if deadline is not None:
            self.deadline = deadline
        if pieces is not None:
            self.pieces = pieces

    def begin_attempt(self, now: float, batch_id: str) -> None:
        """Note that a provider call begins."""
        self.attempts += 1
        self.calling = True
        self.started = now
        self.batch_id = batch_id
        self.queue_wait = now - self.submitted - self.provider_time

    def end_attempt(self, now: float) -> float:
        """Note that the call ended; return how long it took."""
        self.calling = False
        took = now - self.started
        self.provider_time += took
        return took

    def end(self, now: float) -> None:
        """Note that nothing more happens, so that both times are whole wherever the request was."""
        self.ended = True
        if self.calling:
            self.end_attempt(now)
        else:
            self.queue_wait = now - self.submitted - self.provider_time

    @property
    def state(self) -> str:
        """Where the request is, in words for an error's sentence."""
        if self.calling:
            return f"in the provider's hands, attempt {self.attempts}"
        return f"pausing before attempt {self.attempts + 1}" if self.delayed else "waiting in the queue"
