"""What becomes of the requests of a provider batch: to their callers, into another batch, or into the standard lane."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from llm_gateway.batching.provider_batch import End, ProviderBatch, Rider
from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches import BatchClient
from llm_gateway.clock import Clock
from llm_gateway.errors import GatewayClosedError, InvalidAnswerError, ProviderError, RequestRejectedError
from llm_gateway.events import Observer, RetryScheduled
from llm_gateway.price_lanes import PRICE_SHARES, UNSERVED
from llm_gateway.queue import Ticket
from llm_gateway.router import Outcomes, Upstream, reading_of

QUEUE_IS_FULL = "token_limit_exceeded"  # OpenAI: the batches under way have more input tokens than the account may
LEFT = (
    "The gateway was shut down while this request waited for a provider's batch, which was cancelled; its provider may "
    "have charged for it. A bulk job, gateway.job(path), keeps its batches."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Takes the results of batches at one deployment: to whoever waits, or back for another turn."""

    client: BatchClient
    upstream: Upstream
    outcomes: Outcomes
    observer: Observer
    clock: Clock
    fall_back: Callable[[Ticket, str], bool]
    pay: Callable[[Rider, float | None], None]  # settles the money held for a request; None: nobody knows the cost
    turn: Callable[[Rider], None]  # lets a request have another batch, or go on in the standard lane
    drop: Callable[[Ticket], None]  # forgets a request that has its outcome

    def take(self, rider: Rider, outcome: Completion | ProviderError | None) -> None:
        """Take the result of one request; None: it was not served."""
        if outcome is None:
            self.pay(rider, 0.0)
            self._again(rider, UNSERVED)
        elif isinstance(outcome, ProviderError):
            self.pay(rider, 0.0)
            self._failed(rider, outcome)
        else:
            self._answered(rider, outcome)

    def _failed(self, rider: Rider, error: ProviderError) -> None:
        if not rider.counts:
            return
        ticket = rider.ticket
        self.outcomes.failed(ticket, error, ticket.end_attempt(self.clock.now()), self.upstream)
        if error.retryable:
            self._again(rider, error.kind)
        elif self.fall_back(ticket, error.kind):
            self.drop(ticket)
        else:
            self.refuse(rider, error)

    def _answered(self, rider: Rider, completion: Completion) -> None:
        ticket, usage = rider.ticket, completion.usage
        if not rider.counts:
            cost = None if usage is None else self.upstream.price.cost(usage)
            self.pay(rider, None if cost is None else cost * PRICE_SHARES["batch"])
            return
        ticket.end_attempt(self.clock.now())
        completion = self.client.finished(ticket.request, replace(completion, price_lane="batch"))
        reading = None
        if ticket.form is not None and not completion.tool_calls:
            reading = reading_of(completion, ticket.form)
        self.pay(rider, self.outcomes.answered(ticket, completion, self.upstream, reading))
        if ticket.ended or ticket.spoilt is None:
            self.drop(ticket)
            return
        if not (reading is not None and reading.hopeless) and self.outcomes.asks_again(ticket):
            ticket.request = ticket.spoilt.repeated()
            self.turn(rider)
            return
        ticket.request = ticket.spoilt.original
        if self.fall_back(ticket, InvalidAnswerError.kind):
            self.drop(ticket)
        else:
            self.refuse(rider, InvalidAnswerError(ticket.spoilt.problem))

    def settle_rest(self, batch: ProviderBatch, end: End) -> None:
        """Decide on the requests of a batch that it left without an outcome."""
        error = end.error
        if end.refusal is not None and end.refusal.code != QUEUE_IS_FULL:
            words = (end.refusal.reason or end.refusal.code or "no reason given").rstrip(".")
            deployment = self.upstream.deployment
            error = RequestRejectedError(
                f"{self.upstream.label} refused the batch that this request was in: {words}; mend that, or ask in "
                "another lane.",
                provider=deployment.endpoint.name,
                model=deployment.settings.model,
            )
        crowded = end.refusal is not None and end.refusal.code == QUEUE_IS_FULL and batch.requests > 1
        for rider in list(batch.riders.values()):
            self.pay(rider, None if end.in_doubt else 0.0)
            if end.state == "left":
                self.refuse(rider, GatewayClosedError(LEFT))
            elif error is not None:
                self._failed(rider, copy.copy(error))  # what it tells of the attempts is its ticket's own
            else:
                # Too much at once, or ended for another's deadline: not as if a batch had not answered this one.
                rider.turns -= crowded or batch.must_end
                self._again(rider, UNSERVED)
        batch.riders.clear()

    def _again(self, rider: Rider, kind: str) -> None:
        """Let a request have another batch, or go on in the standard lane."""
        if not rider.counts:
            return
        ticket = rider.ticket
        if ticket.calling:
            ticket.end_attempt(self.clock.now())
        self.retry_told(ticket, kind)
        self.turn(rider)

    def refuse(self, rider: Rider, error: BaseException) -> None:
        """Give a caller an error, if one waits."""
        if rider.counts:
            self.outcomes.refused(rider.ticket, error)
            self.drop(rider.ticket)

    def retry_told(self, ticket: Ticket, kind: str) -> None:
        """Tell that another attempt follows, if there was one before."""
        if ticket.attempts:
            self.observer.observe(
                RetryScheduled(
                    request_id=ticket.request.request_id,
                    model=self.outcomes.model,
                    attempt=ticket.attempts,
                    wait=0.0,
                    kind=kind,
                )
            )
