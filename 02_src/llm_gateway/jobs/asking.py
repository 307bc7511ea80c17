"""One leased row is asked, and what is known of its calls afterwards."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from llm_gateway.answers import AnswerSchema
from llm_gateway.calls import CallWatch, Heard
from llm_gateway.clock import Clock
from llm_gateway.errors import (
    BudgetExceededError,
    ConfigurationError,
    DeadlineExceededError,
    GatewayClosedError,
    GatewayError,
    InvalidAnswerError,
    JobError,
    ProviderError,
    QueueFullError,
)
from llm_gateway.events import AttemptBegan, AttemptFailed, RequestDone, RetryScheduled
from llm_gateway.jobs.encoding import request_of, response_json, to_json
from llm_gateway.jobs.records import Calls, Failure, Lease, Verdict
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority, TokenUsage
from llm_gateway.price_lanes import PriceLane

FULL_QUEUE_PAUSE = 1.0  # seconds before a row that found the queue full tries again, where no better hint is known
LONGEST_PAUSE = 30.0


class Answering(Protocol):
    """What a job needs of a gateway."""

    async def request(self, request: LLMRequest, /) -> LLMResponse:
        """Answer one request, as LLMGateway does."""


@dataclass(frozen=True, slots=True)
class Halt:
    """The row cannot be asked until the configuration is mended or the budget raised; it stays pending."""

    error: ConfigurationError | BudgetExceededError


class CallCount:
    """Counts the calls of one lease: those recorded, those made, those that failed."""

    # What holds for nearly every row is no attribute of its own.
    recorded = 1  # the lease itself recorded the first
    failed = 0
    unfit = 0  # answered, and not in the format of the request: paid all the same
    done: RequestDone | None = None  # the end of the request; None also for one that was never accepted

    def __init__(self, lease: Lease, record_call: Callable[[Lease], None], cancel: Callable[[], object]) -> None:
        """Take what records one more call of the lease, and what ends the row where that is impossible."""
        self._lease = lease
        self._record_call = record_call
        self._cancel = cancel

    def heard(self, event: Heard) -> None:
        """Take note of an event of the request, and record a call before it is made."""
        if type(event) is RequestDone:  # the first, as it comes once a request and the others hardly ever
            self.done = event
        elif isinstance(event, AttemptFailed):
            unfit = event.kind == InvalidAnswerError.kind
            self.unfit += unfit
            self.failed += not unfit
        elif isinstance(event, RetryScheduled):
            self._record(self.recorded + 1)
        elif isinstance(event, AttemptBegan) and event.attempt > self.recorded:  # of a model that stands in
            self._record(event.attempt)

    def _record(self, recorded: int) -> None:
        try:
            self._record_call(self._lease)
        except JobError:
            self._cancel()  # a call that is not recorded must not be made: the row leaves the gateway's queue at once
        else:
            self.recorded = recorded

    def answered(self, response: LLMResponse) -> Calls:
        """Return the calls of a lease that ended with an answer."""
        receipt = response.receipt
        if receipt is None:
            return self._calls(1, answered=self.unfit + 1, refused=1, usage=None, cost_usd=None)
        # A call that identical requests shared stands in the receipt of one of them; a kept answer is no call of ours.
        usage = None if receipt.cached else receipt.usage
        made = receipt.attempts
        return self._calls(made, answered=self.unfit + 1, refused=made, usage=usage, cost_usd=receipt.cost_usd)

    def failed_known(self) -> Calls:
        """Return the calls of a lease that ended with an error of the provider, or before any call."""
        return self._ended(refused=self.done.attempt if self.done else 0)

    def broken_off(self) -> Calls:
        """Return the calls of a lease that ended while a call may have been under way: that one is in doubt."""
        return self._ended(refused=self.failed)

    def _ended(self, *, refused: int) -> Calls:
        done = self.done
        if done is None:
            return self._calls(0, answered=0, refused=0, usage=None, cost_usd=None)
        return self._calls(done.attempt, answered=self.unfit, refused=refused, usage=done.usage, cost_usd=done.cost_usd)

    def _calls(
        self, made: int, *, answered: int, refused: int, usage: TokenUsage | None, cost_usd: float | None
    ) -> Calls:
        recorded = self.recorded
        made = min(recorded, made)
        answered = min(made, answered)
        refused = min(made - answered, refused)
        return Calls(
            answered=answered,
            refused=refused,
            unsent=recorded - made,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cost_usd=cost_usd or 0.0,
            unpriced=answered if cost_usd is None else 0,
        )


@dataclass(slots=True, kw_only=True)
class Asker:
    """Asks rows through a gateway. Every call it makes was recorded before."""

    gateway: Answering
    watch: CallWatch
    record_call: Callable[[Lease], None]  # blocks until it is on disk, or raises JobError
    clock: Clock
    on_bug: Callable[[Lease, str], None]  # hears of a bug, with its traceback
    schema: AnswerSchema | None = None
    max_answers: int = 1  # how many answers a row may cost before one that fits the schema is given up
    priority: RequestPriority | None = None
    has_flex: Callable[[str], bool] = lambda _model: False
    lane_of: Callable[[str], PriceLane] | None = None  # the price lane of a model's rows that name none

    async def ask(self, lease: Lease, known: LLMRequest | None, task: asyncio.Task[Any]) -> Verdict | Halt:
        """Return what becomes of a row. After a cancel it is pending, and the call under way is in doubt.

        `known` is the lease's request where somebody has it at hand, so that it need not be read again; `task` is the
        one in which this is awaited.
        """
        count = CallCount(lease, self.record_call, task.cancel)
        try:
            request = self._request(lease, known)
            response = await self._answer(request, count)
        except (GatewayClosedError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                task.uncancel()  # what is known must still be recorded; whoever cancelled waits for that
            calls = count.broken_off()
            return Verdict(calls=calls, broken_off=count.recorded > calls.refused + calls.unsent)
        except (ConfigurationError, BudgetExceededError) as error:
            return Halt(error)
        except DeadlineExceededError as error:
            return Verdict(calls=count.broken_off(), failure=failure_of(error))
        except GatewayError as error:
            unfit = isinstance(error, InvalidAnswerError)
            return Verdict(calls=count.failed_known(), failure=failure_of(error), invalid=unfit)
        except Exception as error:  # noqa: BLE001 - a bug that one row meets must not cost the others their answers
            self.on_bug(lease, "".join(traceback.format_exception(error)))
            return Verdict(calls=count.failed_known(), failure=failure_of(error))
        return self.judged(lease, response, count.answered(response))

    def _request(self, lease: Lease, known: LLMRequest | None) -> LLMRequest:
        request = request_of(lease.request) if known is None else known
        changes: dict[str, object] = {}
        if self.priority is not None and request.priority is not self.priority:
            changes["priority"] = self.priority
        if self.lane_of is not None and request.lane is None:
            changes["lane"] = self.lane_of(request.model)
        elif request.lane in {"batch", "auto"}:  # batches of rows are the job's own, and kept in its state
            changes["lane"] = self._lane_of_call(request)
        return request.model_copy(update=changes) if changes else request

    def _lane_of_call(self, request: LLMRequest) -> PriceLane:
        """Return the lane of a row that names "batch" or "auto" itself and is asked by itself."""
        priority = self.priority or request.priority
        flexible = request.lane == "auto" and priority is RequestPriority.LOW and self.has_flex(request.model)
        return "flex" if flexible else "standard"

    async def _answer(self, request: LLMRequest, count: CallCount) -> LLMResponse:
        """Ask until the queue has room."""
        heard = count.heard
        self.watch.follow(request.request_id, heard)
        try:
            while True:
                try:
                    return await self.gateway.request(request)
                except QueueFullError as error:
                    pause = FULL_QUEUE_PAUSE if error.retry_after is None else error.retry_after
                await self.clock.sleep(min(max(pause, FULL_QUEUE_PAUSE), LONGEST_PAUSE))
        finally:
            self.watch.leave(request.request_id, heard)

    def judged(self, lease: Lease, response: LLMResponse, calls: Calls) -> Verdict:
        """Hold an answer against the schema."""
        if self.schema is not None:
            try:
                self.schema.check(response.content)
            except InvalidAnswerError as error:
                spent = lease.invalid + 1 >= self.max_answers
                return Verdict(calls=calls, failure=failure_of(error) if spent else None, invalid=True)
        return Verdict(calls=calls, answer=response_json(response))


def failure_of(error: BaseException) -> Failure:
    """Return what is recorded of an error."""
    kind = error.kind if isinstance(error, GatewayError) else "bug"
    told = {
        "kind": kind,
        "message": str(error) or type(error).__name__,
        "retryable": bool(getattr(error, "retryable", False)),
    }
    if isinstance(error, ProviderError):
        told |= {"attempts": error.attempts, "status": error.status}
    if isinstance(error, GatewayError) and error.response is not None:
        told["answer"] = error.response.content  # paid for
    return Failure(kind=kind, body=to_json(told))
