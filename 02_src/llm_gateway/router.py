"""Which deployment serves a request, and what becomes of each attempt's outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clock import Clock
from llm_gateway.config import GatewayConfig, endpoint_of
from llm_gateway.errors import GatewayError, ProviderError, RateLimitError
from llm_gateway.events import AttemptFailed, Observer, RequestDone, RetryScheduled
from llm_gateway.models import LLMResponse, Receipt, TokenUsage
from llm_gateway.queue import Ticket
from llm_gateway.retry import RetryPolicy, RetryQuota

Pricer = Callable[[TokenUsage], float | None]
"""US dollars for what a call used; None where the price is unknown."""


class Deployments:
    """The configuration's models as deployments, each made when it is first asked for."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._made: dict[str, Deployment] = {}

    def __getitem__(self, model: str) -> Deployment:
        """Return what serves `model`. Raises UnknownModelError."""
        made = self._made.get(model)
        if made is None:
            settings = self._config.model(model)
            endpoint = endpoint_of(self._config, settings.provider)
            made = Deployment(name=model, endpoint=endpoint, settings=settings)
            if endpoint.api_key or not endpoint.key_variable:  # a key that is missing now may be there the next time
                self._made[model] = made
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Takes the outcomes of one deployment's calls: to the caller, or back for another attempt."""

    deployment: Deployment
    policy: RetryPolicy
    quota: RetryQuota
    rng: Random
    price: Pricer
    observer: Observer
    clock: Clock
    with_text: bool  # hand prompts and answers to the observer

    def answered(self, ticket: Ticket, completion: Completion) -> None:
        """Give the caller its response, with the receipt."""
        self.quota.succeeded()
        if ticket.ended:  # its deadline passed at this very moment
            return
        usage = completion.usage
        cost = None if usage is None else self.price(usage)
        receipt = Receipt(
            queue_wait=ticket.queue_wait,
            attempts=ticket.attempts,
            provider_time=ticket.provider_time,
            deployment=self.deployment.label,
            usage=usage,
            reserved_tokens=round(ticket.estimate.cost.tokens) if ticket.estimate and ticket.grant else None,
            cost_usd=cost,
        )
        response = LLMResponse(
            request_id=ticket.request.request_id,
            content=completion.content,
            tool_calls=list(completion.tool_calls) or None,
            model=self.deployment.name,
            tokens_used=None if usage is None else usage.total_tokens,
            finish_reason=completion.finish_reason,
            receipt=receipt,
        )
        # A caller that left at this very moment has paid all the same.
        outcome = "ok" if settle(ticket, response) else "cancelled"
        self._done(ticket, outcome, completion=completion, cost=cost)

    def failed(self, ticket: Ticket, error: ProviderError, took: float) -> float | None:
        """Return the seconds to wait before another attempt; None: there is none, and the caller has its error.

        `took` is how long the failed call was under way, in seconds.
        """
        ticket.last_error = error
        self.observer.observe(
            AttemptFailed(
                request_id=ticket.request.request_id,
                batch_id=ticket.batch_id or "",
                model=self.deployment.name,
                deployment=self.deployment.label,
                attempt=ticket.attempts,
                kind=error.kind,
                status=error.status,
                message=str(error) if self.with_text else error.summary,
                provider_time=took,
            )
        )
        wait = self._wait(ticket, error)
        if wait is None:
            error.attempts = ticket.attempts
            self.refused(ticket, error)
            return None
        self.observer.observe(
            RetryScheduled(
                request_id=ticket.request.request_id,
                model=self.deployment.name,
                attempt=ticket.attempts,
                wait=wait,
                kind=error.kind,
            )
        )
        return wait

    def _wait(self, ticket: Ticket, error: ProviderError) -> float | None:
        """Seconds until the next attempt. One that met a rate limit is none, and takes nothing from the quota."""
        draw = self.rng.random()
        if isinstance(error, RateLimitError):
            ticket.throttles += 1
            return self.policy.delay_of_throttle(ticket.throttles, error, draw=draw)
        wait = self.policy.delay(ticket.attempts - ticket.throttles, error, draw=draw)
        return wait if wait is not None and self.quota.take(error) else None

    def refused(self, ticket: Ticket, error: BaseException) -> None:
        """Give the caller an error, caused by that of the last attempt; there will be no further one."""
        if error.__cause__ is None and error is not ticket.last_error:
            error.__cause__ = ticket.last_error
        if settle(ticket, error):
            self._done(ticket, error.kind if isinstance(error, GatewayError) else type(error).__name__)

    def left(self, ticket: Ticket) -> None:
        """Note that the caller no longer waits."""
        ticket.reply.cancel()
        self._done(ticket, "cancelled")

    def _done(
        self, ticket: Ticket, outcome: str, *, completion: Completion | None = None, cost: float | None = None
    ) -> None:
        request = ticket.request
        ticket.end(self.clock.now())
        if ticket.alarm is not None:
            ticket.alarm.cancel()
            ticket.alarm = None
        self.observer.observe(
            RequestDone(
                request_id=request.request_id,
                batch_id=ticket.batch_id,
                model=self.deployment.name,
                deployment=self.deployment.label,
                priority=request.priority,
                outcome=outcome,
                attempt=ticket.attempts,
                queue_wait=ticket.queue_wait,
                provider_time=ticket.provider_time,
                agent=request.agent,
                usage=completion.usage if completion else None,
                cost_usd=cost,
                finish_reason=completion.finish_reason if completion else None,
                metadata=request.metadata,
                prompt=[message.model_dump(exclude_none=True) for message in request.messages]
                if self.with_text
                else None,
                answer=completion.content if completion and self.with_text else None,
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
