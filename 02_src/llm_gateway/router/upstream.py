"""One deployment as its lane sees it, and which of several the next call goes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_gateway.clients.base import ChatClient, Deployment
from llm_gateway.config import Charge
from llm_gateway.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ModelNotFoundError,
    ProviderError,
    QuotaExhaustedError,
)
from llm_gateway.limits import JointPace
from llm_gateway.limits.base import COLUMNS
from llm_gateway.models import EmbeddingRequest, LLMRequest, RequestPriority, TokenUsage
from llm_gateway.pricing import Price
from llm_gateway.queue import Ticket
from llm_gateway.retry import RetryQuota, is_throttle
from llm_gateway.router.breaker import Breaker
from llm_gateway.tokens import Cost, most_input

HEADROOM = 10  # of so many slots one stays free for HIGH
SMOOTHING = 0.1  # weight of the newest call in the running mean of call times
LEAST_ROOM = 0.01  # share of its permits below which a deployment counts as full


@dataclass(slots=True, eq=False, kw_only=True)
class Upstream:
    """A deployment: its client, and everything that says whether a call may begin there. Times in seconds."""

    deployment: Deployment
    client: ChatClient
    pace: JointPace
    quota: RetryQuota
    price: Price
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0  # provider calls under way, and those that are about to begin
    lent: int = 0  # of those, how many wait for requests of their own: nested ones may go in their slots
    mean_call: float | None = None  # running mean of how long a call takes
    turn: float = 0.0  # of the stride scheduler: the lowest goes next

    label: str = field(init=False)  # what receipts and logs call it
    slots: int = field(init=False)  # calls that may be under way at the same time
    kept: int = field(init=False)  # of those, how many stay free for HIGH
    charge: Charge = field(init=False)  # how its provider charges
    max_tokens: int | None = field(init=False)  # of the answer to a request that says nothing of it

    def __post_init__(self) -> None:
        """Work out once what every call looks at."""
        settings = self.deployment.settings
        self.label = self.deployment.label
        self.slots = settings.max_concurrency
        self.kept = self.slots // HEADROOM
        self.charge = self.pace.paces[0].charge
        self.max_tokens = settings.max_tokens

    @property
    def free_slots(self) -> int:
        """How many more calls may begin, those kept free for HIGH not counted."""
        return self.slots - self.kept - self.in_flight

    def worst_case(self, request: LLMRequest) -> float:
        """Return the US dollars that a call cannot exceed. Raises InvalidRequestError, ConfigurationError."""
        most = request.max_tokens or self.max_tokens
        if isinstance(request, EmbeddingRequest):
            most = 0  # vectors cost nothing
        if most is None:
            reason = f"missing; a budget needs the longest answer. Set it, or models.{self.deployment.name}.max_tokens."
            raise InvalidRequestError(reason, field="max_tokens", record="LLMRequest")
        cost = self.price.cost(TokenUsage(input_tokens=most_input(request), output_tokens=most))
        if cost is None:
            name = self.deployment.name
            raise ConfigurationError(
                f"Configuration key models.{name}.price: the price of {self.label} is unknown, and a budget needs it; "
                "set input and output in US dollars for a million tokens, 0 for a model of your own."
            )
        return cost

    def likely_wait(self, cost: Cost, ahead: Cost, priority: RequestPriority, now: float) -> float:
        """Return the seconds until a call of `cost` likely begins, behind waiting ones that cost `ahead` in all."""
        waits = [self.breaker.wait(now)]
        for pace in self.pace.paces:
            waits.append(pace.gate.wait(now))
            for resource, level in pace.limiter.levels(now).items():
                column = COLUMNS[resource]
                missing = ahead[column] + min(cost[column], level.burst) - level.level
                waits.append(missing / level.rate if level.rate > 0 else math.inf)
        kept = 0 if priority is RequestPriority.HIGH else self.kept
        behind = ahead.requests + 1.0 + self.in_flight + kept - self.slots
        if behind > 0 and self.mean_call is not None:
            waits.append((behind - 0.5) / self.slots * self.mean_call)  # those under way are half done
        return max(0.0, *waits)

    def has_slot(self, priority: RequestPriority) -> bool:
        """Whether a call of `priority` may have a slot; a tenth of them stays free for HIGH."""
        return self.slots - self.in_flight > (0 if priority is RequestPriority.HIGH else self.kept)

    @property
    def has_lent_slot(self) -> bool:
        """Whether a nested request may go in the slot of a call that waits."""
        return self.lent > 0 and self.in_flight < self.slots + self.lent

    def room(self, now: float) -> float:
        """Return the share of its slots and permits that is free, whichever is scarcest; from nearly 0 to 1."""
        share = 1.0 - self.in_flight / self.slots
        for pace in self.pace.paces:
            for level in pace.limiter.levels(now).values():
                share = min(share, level.level / level.burst)
        return max(LEAST_ROOM, share)

    def is_open(self, now: float) -> bool:
        """Whether neither its breaker nor the gate of a refused call keeps calls back."""
        return self.breaker.wait(now) <= 0 and all(pace.gate.wait(now) <= 0 for pace in self.pace.paces)

    def note_call(self, took: float) -> None:
        """Take the time of a call that was answered into account."""
        old = self.mean_call
        self.mean_call = took if old is None else old + SMOOTHING * (took - old)

    def note_success(self, ticket: Ticket, now: float) -> None:
        """Note that a call was answered: the deployment is well."""
        self.quota.succeeded()
        self.breaker.succeeded(now, probe=ticket.probe)
        ticket.probe = False

    def note_failure(self, ticket: Ticket, error: ProviderError, now: float) -> None:
        """Note that a call failed: by the deployment's fault, by the request's, or because it is only busy."""
        if is_deployments_fault(error):
            self.breaker.failed(now, probe=ticket.probe)
        else:
            self.breaker.succeeded(now, probe=ticket.probe)
        ticket.probe = False

    def abandon(self, ticket: Ticket, now: float) -> None:
        """Note that a call of `ticket` ends without a verdict on the deployment."""
        if ticket.probe:
            self.breaker.abandoned(now)
            ticket.probe = False


def is_deployments_fault(error: ProviderError) -> bool:
    """Whether an error says that the deployment is not well. A throttle does not; a key that is refused does."""
    return (error.retryable and not is_throttle(error)) or is_of_deployment(error)


def is_of_deployment(error: ProviderError) -> bool:
    """Whether the same request may well succeed elsewhere, though never there."""
    return isinstance(error, AuthenticationError | ModelNotFoundError | QuotaExhaustedError)


class Spread:
    """Spreads the calls of one model over its upstreams.

    Stride scheduling (Waldspurger and Weihl, "Stride Scheduling", MIT 1995): each call moves its upstream back by
    1 / (weight · room), so that calls spread by the weights, and fewer go to where little room is left. An upstream
    that could not be used for a while brings no credit.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self.upstreams = upstreams
        self._reached = 0.0  # the turn of the one that was chosen last

    def candidates(self, ticket: Ticket) -> Sequence[Upstream]:
        """Return where a call of `ticket` may go, in the order to try them; the one that failed it last is last."""
        if len(self.upstreams) == 1 and not ticket.barred:
            return self.upstreams
        allowed = [each for each in self.upstreams if each.label not in ticket.barred]
        return sorted(allowed, key=lambda each: (each.label == ticket.failed_at, each.turn))

    def has_other(self, ticket: Ticket, upstream: Upstream, now: float, *, throttled: bool) -> bool:
        """Whether another one than `upstream` is left for a ticket; one that is open now, if `throttled`."""
        return len(self.upstreams) > 1 and any(
            each is not upstream and (each.is_open(now) or not throttled) for each in self.candidates(ticket)
        )

    def chosen(self, upstream: Upstream, now: float) -> None:
        """Note that a call goes to `upstream`."""
        if len(self.upstreams) > 1:
            self._reached = max(self._reached, upstream.turn)
            stride = 1.0 / (upstream.deployment.settings.weight * upstream.room(now))
            upstream.turn = self._reached + stride
