"""What the gateway's observers hear of a job's provider batches: the journal, the statistics, dashboards."""

from __future__ import annotations

from dataclasses import dataclass

from llm_gateway.clients.batches import BatchLine
from llm_gateway.clients.telling import told
from llm_gateway.errors import ProviderError
from llm_gateway.events import AttemptFailed, ProviderBatchChanged, RequestDone, RequestQueued, RetryScheduled
from llm_gateway.jobs.batch_book import StoredBatch
from llm_gateway.jobs.encoding import request_of
from llm_gateway.jobs.records import Lease
from llm_gateway.models import LLMResponse
from llm_gateway.price_lanes import UNSERVED


@dataclass(frozen=True, slots=True)
class BatchNews:
    """Tells of batches, and of their rows once what became of them is on the disk.

    A row is told as a request that was queued and ended, as if a caller had asked for it in the batch lane. One that
    has no answer yet and goes back is told when it ends, wherever that is.
    """

    model: str
    line: BatchLine

    def changed(self, batch: StoredBatch, *, state: str, waiting: int, served: int, batch_id: str | None) -> None:
        """Tell that a batch was made, went on to another state, or ended; the fields are those of the event."""
        self.line.observer.observe(
            ProviderBatchChanged(
                batch_id=batch.intent,
                provider_batch_id=batch_id,
                model=self.model,
                deployment=batch.deployment,
                state=state,
                size=batch.requests,
                waiting=waiting,
                served=served,
            )
        )

    def ended(self, batch: StoredBatch, lease: Lease, answer: LLMResponse | ProviderError | None) -> None:
        """Tell what a batch did for a row; None: it did not serve it."""
        if isinstance(answer, LLMResponse):
            self._done(batch, lease, "ok", answer)
            return
        if answer is not None:
            self._failed(batch, lease, answer)
        if answer is None or answer.retryable:
            kind = UNSERVED if answer is None else answer.kind
            retry = RetryScheduled(request_id=lease.key, model=self.model, attempt=1, wait=0.0, kind=kind)
            self.line.observer.observe(retry)
        else:
            self._done(batch, lease, answer.kind, None)

    def _failed(self, batch: StoredBatch, lease: Lease, error: ProviderError) -> None:
        self.line.observer.observe(
            AttemptFailed(
                request_id=lease.key,
                batch_id=batch.intent,
                model=self.model,
                deployment=batch.deployment,
                attempt=1,
                kind=error.kind,
                status=error.status,
                message=str(error) if self.line.with_text else error.summary,
                provider_time=batch.age,
            )
        )

    def _done(self, batch: StoredBatch, lease: Lease, outcome: str, response: LLMResponse | None) -> None:
        request = request_of(lease.request)
        receipt = response.receipt if response is not None else None
        self.line.observer.observe(RequestQueued(request_id=lease.key, model=self.model, priority=request.priority))
        self.line.observer.observe(
            RequestDone(
                request_id=lease.key,
                batch_id=batch.intent,
                model=self.model,
                deployment=batch.deployment,
                priority=request.priority,
                outcome=outcome,
                attempt=1,
                queue_wait=0.0,
                provider_time=receipt.provider_time if receipt else batch.age,
                agent=request.agent,
                usage=receipt.usage if receipt else None,
                cost_usd=receipt.cost_usd if receipt else None,
                price_lane="batch",
                finish_reason=response.finish_reason if response else None,
                metadata=request.metadata,
                prompt=[told(message) for message in request.messages] if self.line.with_text else None,
                answer=response.content if response and self.line.with_text else None,
            )
        )
