"""What becomes of each attempt's outcome: to the caller, or back for another attempt."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llm_gateway.answers import Reading
from llm_gateway.clients.base import Completion
from llm_gateway.clients.telling import told
from llm_gateway.clock import Clock
from llm_gateway.errors import GatewayError, InvalidAnswerError, ProviderError, RateLimitError
from llm_gateway.events import AttemptFailed, Observer, RequestDone, RetryScheduled
from llm_gateway.models import LLMResponse, Receipt
from llm_gateway.price_lanes import PRICE_SHARES, PriceLane
from llm_gateway.queue import Spoilt, Ticket
from llm_gateway.retry import RetryPolicy
from llm_gateway.router.upstream import Upstream, is_of_deployment

UNFIT = "The answer does not fit the format that was asked for."


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Takes the outcomes of the calls of one model: to the caller, or back for another attempt."""

    model: str
    label: str  # of its own deployment, where a request never came to one
    policy: RetryPolicy
    rng: Random
    observer: Observer
    clock: Clock
    with_text: bool  # hand prompts and answers to the observer

    def answered(
        self, ticket: Ticket, completion: Completion, upstream: Upstream, reading: Reading | None = None
    ) -> float | None:
        """Give the caller its response, with the receipt. Return the call's cost in US dollars, None if unknown.

        An answer that was read and does not fit is kept in the ticket instead; what follows is `asks_again`'s to say.
        """
        usage = completion.usage
        cost = None if usage is None else upstream.price.cost(usage)
        price_lane = ticket.price_lane
        if price_lane != "standard":
            price_lane = completion.price_lane or price_lane
            cost = None if cost is None else cost * PRICE_SHARES[price_lane]
        if ticket.ended:  # its deadline passed at this very moment
            return cost
        response = self._response(ticket, completion, cost, price_lane, upstream)
        if reading is not None:
            if reading.problem is not None:
                self._spoilt(ticket, response, reading, upstream)
                return cost
            response.__dict__["parsed"] = reading.value  # nobody has seen the record yet
        # A caller that left at this very moment has paid all the same.
        outcome = "ok" if settle(ticket, response) else "cancelled"
        self._done(ticket, outcome, response=response)
        return cost

    def _response(
        self, ticket: Ticket, completion: Completion, cost: float | None, price_lane: PriceLane, upstream: Upstream
    ) -> LLMResponse:
        usage = completion.usage
        if ticket.spoilt is not None and (before := ticket.spoilt.response.receipt) is not None:
            usage = None if usage is None or before.usage is None else before.usage + usage
            cost = None if cost is None or before.cost_usd is None else before.cost_usd + cost
        receipt = Receipt.trusted(
            queue_wait=ticket.queue_wait,
            attempts=ticket.attempts,
            provider_time=ticket.provider_time,
            deployment=upstream.label,
            usage=usage,
            reserved_tokens=round(ticket.estimate.cost.tokens) if ticket.estimate and ticket.grant else None,
            cost_usd=cost,
            time_to_first_token=ticket.time_to_first_token,
            price_lane=price_lane,
            cached=False,
            saved_usd=None,
            coalesced=False,
        )
        return LLMResponse.trusted(
            request_id=ticket.request.request_id,
            content=completion.content,
            tool_calls=list(completion.tool_calls) or None,
            model=self.model,
            tokens_used=None if usage is None else usage.total_tokens,
            finish_reason=completion.finish_reason,
            receipt=receipt,
            parsed=None,
        )

    # --- answers that do not fit ------------------------------------------------------------------------------

    def _spoilt(self, ticket: Ticket, response: LLMResponse, reading: Reading, upstream: Upstream) -> None:
        problem = reading.problem or ""
        ticket.spoilt = Spoilt(
            original=ticket.request if ticket.spoilt is None else ticket.spoilt.original,
            response=response,
            problem=problem,
            advice=reading.advice,
        )
        self.observer.observe(
            AttemptFailed(
                request_id=ticket.request.request_id,
                batch_id=ticket.batch_id or "",
                model=self.model,
                deployment=upstream.label,
                attempt=ticket.attempts,
                kind=InvalidAnswerError.kind,
                status=None,
                message=problem if self.with_text else UNFIT,
                provider_time=self.clock.now() - ticket.started,
            )
        )

    def asks_again(self, ticket: Ticket) -> bool:
        """Whether a request may have another answer in the place of one that does not fit; if so, say so to all.

        Every such answer is an attempt. The deployment is well, so there is no pause and the quota is untouched.
        """
        ticket.failures += 1
        if ticket.failures >= self.policy.max_attempts:
            return False
        self.observer.observe(
            RetryScheduled(
                request_id=ticket.request.request_id,
                model=self.model,
                attempt=ticket.attempts,
                wait=0.0,
                kind=InvalidAnswerError.kind,
            )
        )
        return True

    def failed(self, ticket: Ticket, error: ProviderError, took: float, upstream: Upstream) -> None:
        """Note that an attempt failed after `took` seconds; what follows is `wait_after`'s to say."""
        ticket.last_error = error
        self.observer.observe(
            AttemptFailed(
                request_id=ticket.request.request_id,
                batch_id=ticket.batch_id or "",
                model=self.model,
                deployment=upstream.label,
                attempt=ticket.attempts,
                kind=error.kind,
                status=error.status,
                message=str(error) if self.with_text else error.summary,
                provider_time=took,
            )
        )

    def wait_after(
        self, ticket: Ticket, error: ProviderError, upstream: Upstream, *, elsewhere: bool = False
    ) -> float | None:
        """Return the seconds to wait before another attempt; None: another one would not help, or is one too many.

        An attempt that met a rate limit is none, and takes nothing from the quota. `elsewhere` says that another
        deployment of the model is left: for what will never succeed at this one, and for what it has no permits for.
        """
        draw = self.rng.random()
        wait: float | None
        if isinstance(error, RateLimitError):
            ticket.throttles += 1
            wait = self.policy.delay_of_throttle(ticket.throttles, error, draw=draw)
            if elsewhere and ticket.throttles <= self.policy.max_throttles:
                wait = 0.0  # the gate keeps it from coming back here
        else:
            ticket.failures += 1
            wait = self.policy.delay(ticket.failures, error, draw=draw)
            if wait is None and is_of_deployment(error) and elsewhere and ticket.failures < self.policy.max_attempts:
                wait = 0.0
            elif wait is not None and not ticket.echo and not upstream.quota.take(error):
                wait = None
        if wait is not None:
            self.again(ticket, error, wait)
        return wait

    def left_flex(self, ticket: Ticket, error: ProviderError) -> None:
        """Note that a request goes on in the standard lane, at once and without a loss of attempts."""
        ticket.left_flex = True
        self.again(ticket, error, 0.0)

    def again(self, ticket: Ticket, error: ProviderError, wait: float) -> None:
        """Note that another attempt follows in `wait` seconds."""
        self.observer.observe(
            RetryScheduled(
                request_id=ticket.request.request_id,
                model=self.model,
                attempt=ticket.attempts,
                wait=wait,
                kind=error.kind,
            )
        )

    def refused(self, ticket: Ticket, error: BaseException) -> None:
        """Give the caller an error, caused by that of the last attempt; there will be no further one."""
        if isinstance(error, ProviderError):
            error.attempts = ticket.attempts
        if ticket.spoilt is not None and isinstance(error, GatewayError):
            error.response = ticket.spoilt.response
        if error.__cause__ is None and error is not ticket.last_error:
            error.__cause__ = ticket.last_error
        if settle(ticket, error):
            self._done(ticket, error.kind if isinstance(error, GatewayError) else type(error).__name__)

    def left(self, ticket: Ticket) -> None:
        """Note that the caller no longer waits."""
        ticket.reply.cancel()
        self._done(ticket, "cancelled")

    def _done(self, ticket: Ticket, outcome: str, *, response: LLMResponse | None = None) -> None:
        request = ticket.request
        ticket.end(self.clock.now())
        if ticket.alarm is not None:
            ticket.alarm.cancel()
            ticket.alarm = None
        # An answer that does not fit was paid for, however the request ends.
        paid = response or (ticket.spoilt.response if ticket.spoilt else None)
        receipt = paid.receipt if paid else None
        self.observer.observe(
            RequestDone(
                request_id=request.request_id,
                batch_id=ticket.batch_id,
                model=self.model,
                deployment=ticket.served_by.label if ticket.served_by else self.label,
                priority=ticket.priority,
                outcome=outcome,
                attempt=ticket.attempts,
                queue_wait=ticket.queue_wait,
                provider_time=ticket.provider_time,
                time_to_first_token=ticket.time_to_first_token,
                agent=ticket.agent,
                usage=receipt.usage if receipt else None,
                cost_usd=receipt.cost_usd if receipt else None,
                price_lane=None if receipt is None or receipt.price_lane == "standard" else receipt.price_lane,
                finish_reason=response.finish_reason if response else None,
                metadata=request.metadata,
                prompt=[told(message) for message in request.messages] if self.with_text else None,
                answer=paid.content if paid and self.with_text else None,
            )
        )


def settle(ticket: Ticket, outcome: LLMResponse | BaseException) -> bool:
    """Answer the caller; False if it is answered already or has left."""
    if ticket.reply.done():
        return False
    if isinstance(outcome, BaseException):
        ticket.reply.set_exception(outcome)
    else:
        ticket.reply.set_result(outcome)
    return True
