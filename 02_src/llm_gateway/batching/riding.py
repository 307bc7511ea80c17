"""Which requests of a lane go in provider batches, and the lane's batches once there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_gateway.batching.asking import inherited
from llm_gateway.batching.provider_batches import ProviderBatches, reserve_of
from llm_gateway.budgets import BatchPurse, Budgets
from llm_gateway.clock import Clock
from llm_gateway.config import ProviderBatchSettings
from llm_gateway.errors import InvalidRequestError
from llm_gateway.events import Observer
from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.price_lanes import LaneChoice, chosen
from llm_gateway.queue import Ticket
from llm_gateway.router import Outcomes, Upstream


@dataclass(slots=True, kw_only=True)
class Riding:
    """The way of a lane's requests into provider batches. They go to the first deployment that has them."""

    upstreams: Sequence[Upstream]
    outcomes: Outcomes
    settings: ProviderBatchSettings
    budgets: Budgets | None
    fall_back: Callable[[Ticket, str], bool]
    to_standard: Callable[[Ticket], None]
    on_idle: Callable[[], None]
    observer: Observer
    clock: Clock
    batches: ProviderBatches | None = field(default=None, init=False)

    def takes(self, request: LLMRequest, wanted: LaneChoice) -> bool:
        """Whether a request that wants this lane goes in a batch. Raises InvalidRequestError where there are none.

        One whose deadline is too near for any batch goes in the standard lane.
        """
        if wanted not in {"batch", "auto"}:
            return False
        deadline, settings = request.deadline, self.settings
        if deadline is not None and deadline - reserve_of(deadline) <= settings.max_wait + settings.poll:
            return False
        asker = inherited(request)
        is_low = asker.priority is RequestPriority.LOW and not asker.is_call
        for upstream in self.upstreams:
            kind, model = upstream.deployment.endpoint.kind, upstream.deployment.settings.model
            lane = chosen(wanted, kind=kind, model=model, is_low=is_low, patience=deadline)
            if lane == "batch" and (self.batches is not None or self._open(upstream)):
                return True
            if lane == "flex":
                return False
        if wanted == "batch":
            reason = f"the client of model '{self.outcomes.model}' has no batches; use another lane."
            raise InvalidRequestError(reason, field="lane", record="LLMRequest")
        return False

    # --- of requests that `takes` has accepted ------------------------------------------------------------------

    def join(self, ticket: Ticket) -> None:
        """Take in the ticket of a request. Raises what `ProviderBatches.join` raises."""
        self._made().join(ticket)

    async def room(self) -> None:
        """Return when one more fits. Raises GatewayClosedError."""
        await self._made().room()

    def eta(self) -> float:
        """Return the seconds until a request that came now would leave."""
        return self._made().eta()

    def _made(self) -> ProviderBatches:
        assert self.batches is not None  # noqa: S101 - `takes` has made them
        return self.batches

    # --- whether or not there are any ---------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits and nothing is under way."""
        return self.batches is None or self.batches.is_idle

    def has(self, ticket: Ticket) -> bool:
        """Whether a request is in a batch, or waits for one."""
        return self.batches is not None and self.batches.has(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Forget a request, as `ProviderBatches.drop`."""
        if self.batches is not None:
            self.batches.drop(ticket)

    def money_came(self) -> None:
        """Take in those that waited for money, as far as it reaches."""
        if self.batches is not None:
            self.batches.money_came()

    def close(self) -> None:
        """Let what gathers leave at once, and turn away those who wait for room."""
        if self.batches is not None:
            self.batches.close()

    def snapshot(self) -> dict[str, Any] | None:
        """Return how the batches stand; None where no request has asked for one."""
        return None if self.batches is None else self.batches.snapshot()

    def halt(self) -> int:
        """Refuse all who wait and cancel the provider's batches. Return how many waited."""
        return 0 if self.batches is None else self.batches.halt()

    def _open(self, upstream: Upstream) -> bool:
        make = getattr(upstream.client, "batch_client", None)
        client = make() if make is not None else None
        if client is None:
            return False
        self.batches = ProviderBatches(
            client,
            upstream,
            self.outcomes,
            settings=self.settings,
            purse=BatchPurse.of(self.budgets, self.outcomes.model, upstream.worst_case),
            fall_back=self.fall_back,
            to_standard=self.to_standard,
            on_idle=self.on_idle,
            observer=self.observer,
            clock=self.clock,
        )
        return True
