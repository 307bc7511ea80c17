"""What belongs to one event loop: its connections, its lanes, and how a lane is opened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from llm_gateway import collector
from llm_gateway.batching import Lane
from llm_gateway.budgets import Budgets
from llm_gateway.cache import Answers, CacheFigures, Caching, store_of
from llm_gateway.clock import Clock
from llm_gateway.coalescing import Coalescing
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import GatewayError
from llm_gateway.events import Observer
from llm_gateway.limits import Paces
from llm_gateway.pricing import price_of
from llm_gateway.queue import Ticket
from llm_gateway.retry import RetryPolicy, RetryQuota
from llm_gateway.router import Deployments, Outcomes, Upstream
from llm_gateway.tokens import Estimator

if TYPE_CHECKING:
    from llm_gateway.clients.base import ClientFactory

log = logging.getLogger("llm_gateway")


@dataclass(slots=True, kw_only=True)
class Means:
    """What a gateway works with in whichever loop: what it was told, what it has learned, what it may spend."""

    config: GatewayConfig
    observer: Observer
    rng: Random
    budgets: Budgets | None
    cache_figures: CacheFigures | None  # None: nothing is kept
    tells_beginnings: bool  # whether somebody wants to hear when a call begins
    deployments: Deployments = field(init=False)
    quotas: dict[str, RetryQuota] = field(default_factory=dict)
    estimator: Estimator = field(default_factory=Estimator)

    def __post_init__(self) -> None:
        """Find the deployments of every model."""
        self.deployments = Deployments(self.config)


class Serving:
    """The clients and the lanes of a gateway in the running event loop."""

    def __init__(self, means: Means, clients: ClientFactory, clock: Clock, *, careful: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.lanes: dict[str, Lane] = {}
        self.coalescing = Coalescing(clock)
        self.gives_up = False  # nothing begins any more, elsewhere either
        self._means = means
        self._clients = clients
        self._clock = clock
        self._paces = Paces(means.config, clock, careful=careful)
        if means.budgets is not None:
            self._paces.share(means.budgets)
        self.caching = self._cached()

    def is_here(self) -> bool:
        """Whether its loop is the running one."""
        return self.loop is asyncio._get_running_loop()  # noqa: SLF001 - None where no loop runs

    def lane(self, model: str) -> Lane:
        """Return the lane of a model, opened if it is not yet.

        Raises UnknownModelError, ConfigurationError and MissingDependencyError; then nothing was opened.
        """
        lane = self.lanes.get(model)
        return self._open(model) if lane is None else lane

    def _open(self, model: str) -> Lane:
        import llm_gateway.clients.runnable  # noqa: F401 - LangChain's import is nobody's time in the queue

        means = self._means
        upstreams = self._upstreams(model)
        lane = self.lanes[model] = Lane(
            upstreams,
            self._outcomes(model, upstreams[0].label),
            settings=means.config.batching,
            provider_batches=means.config.provider_batches,
            fall_back=self._fall_back,
            estimator=means.estimator,
            budgets=means.budgets,
            clock=self._clock,
            observer=means.observer,
            tells_beginnings=means.tells_beginnings,
        )
        if means.config.freeze:
            collector.freeze()
        return lane

    def _upstreams(self, model: str) -> list[Upstream]:
        means = self._means
        # All clients before anything else is made: without a key nothing stays behind.
        clients = [(deployment, self._clients.connect(deployment)) for deployment in means.deployments[model]]
        return [
            Upstream(
                deployment=deployment,
                client=client,
                pace=self._paces.of(deployment),
                quota=means.quotas.setdefault(f"{model} {deployment.label}", RetryQuota.full(means.config.retry.quota)),
                price=price_of(deployment),
            )
            for deployment, client in clients
        ]

    def _outcomes(self, model: str, label: str) -> Outcomes:
        means, retry = self._means, self._means.config.retry
        policy = RetryPolicy(
            max_attempts=retry.max_attempts,
            base=retry.base_delay,
            longest=retry.max_delay,
            longest_hint=retry.longest_hint,
            max_throttles=retry.max_throttles,
        )
        return Outcomes(
            model=model,
            label=label,
            policy=policy,
            rng=means.rng,
            observer=means.observer,
            clock=self._clock,
            with_text=means.config.logs.text,
        )

    def _cached(self) -> Caching | None:
        config, figures = self._means.config, self._means.cache_figures
        if config.cache is None or figures is None:
            return None
        store, name = store_of(config, config.cache)
        return Caching(
            config.cache,
            Answers(store, name, ttl=config.cache.ttl, max_bytes=config.cache.max_bytes, figures=figures),
            coalescing=self.coalescing,
            observer=self._means.observer,
            clock=self._clock,
            is_kept=lambda model: config.models[model].cache,
            with_text=config.logs.text,
        )

    def _fall_back(self, ticket: Ticket, kind: str) -> bool:
        """Hand a ticket to the next model that may stand in after an error of `kind`; False if there is none.

        The list is that of the model that was asked for. One whose breaker is open, or that cannot take this request,
        is passed over.
        """
        asked = ticket.tried[0] if ticket.tried else ticket.home.model
        for model in self._means.config.models[asked].fallbacks_after(kind):
            if self.gives_up or model in ticket.tried or model == ticket.home.model:
                continue
            try:
                lane = self.lane(model)
                if not lane.is_resting:
                    lane.adopt(ticket)
                    return True
            except GatewayError as error:
                log.warning("model '%s' cannot stand in for '%s': %s", model, asked, type(error).__name__)
        return False

    # --- the end ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Let go of what belonged to a loop that is closed; nothing of it can be awaited any more."""
        self._clients.abandon()
        if self.caching is not None:
            self.caching.abandon()
        if self._means.budgets is not None:
            self._means.budgets.on_change.clear()  # the lanes of that loop hear of nothing any more

    async def disconnect(self, lanes: Iterable[Lane]) -> None:
        """Close every connection; one that cannot be closed keeps none of the others open."""
        closers = [upstream.client.aclose for lane in lanes for upstream in lane.upstreams]
        closers += [self._clients.aclose, self._paces.aclose]
        if self.caching is not None:
            closers.append(self.caching.aclose)
        for close in closers:
            try:
                await close()
            except Exception:
                log.exception("a connection could not be closed")
