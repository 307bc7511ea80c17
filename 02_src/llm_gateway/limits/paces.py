"""The paces of a gateway's deployments: made when one is first used, shared where the limits are shared."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from llm_gateway.budgets import Budgets, JointBudgets
from llm_gateway.clients.base import Deployment
from llm_gateway.clock import Clock
from llm_gateway.config import Endpoint, GatewayConfig, LimitSettings
from llm_gateway.limits.joint import JointPace
from llm_gateway.limits.pace import Pace
from llm_gateway.limits.settings import charge_of
from llm_gateway.limits.shared.budgets import Ledger, SharedBudgets
from llm_gateway.limits.shared.limiter import SharedLimiter
from llm_gateway.limits.shared.link import Link
from llm_gateway.limits.shared.pace import SharedPace
from llm_gateway.limits.shared.protocol import Store

IN_PROCESS = {"llamacpp"}  # kinds of providers that every process has one of its own of
HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}  # noqa: S104 - names of this host, which others use for theirs


class Paces:
    """Makes the pace of each deployment, inside the running loop.

    A model's own limits are its own; a provider's are those of its account, which all its models share. With
    `limits.redis_url` they are shared with every process that uses the same credential and the same store. Until
    `aclose` the paces own the tasks that talk to it.
    """

    def __init__(
        self, config: GatewayConfig, clock: Clock, *, careful: bool = True, store: Store | None = None
    ) -> None:
        """Share through `store`, default: the configuration's. Raises ConfigurationError if it cannot be used.

        `careful`: where nobody knows the limits of a public provider, begin slowly.
        """
        self._careful = careful
        self._config = config
        self._clock = clock
        self._accounts: dict[str, Pace] = {}
        self._links: dict[Pace, Link] = {}
        self._store = store or _store_of(config)
        self._keeper: asyncio.Task[None] | None = None
        self._ledger: Ledger | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def of(self, deployment: Deployment) -> JointPace:
        """Return the pace of a deployment: its model's own, and its account's if that has limits."""
        endpoint, settings = deployment.endpoint, deployment.settings
        own = self._pace(
            endpoint,
            settings.limits,
            name=f"model '{deployment.name}'",
            place=f"{credential_of(endpoint)}:{settings.model}",
            slots=settings.max_concurrency,
        )
        provider = self._config.providers.get(endpoint.name)
        if provider is None or provider.limits is None:
            return self._joint([own])
        account = self._accounts.get(endpoint.name)
        if account is None:
            account = self._accounts[endpoint.name] = self._pace(
                endpoint,
                provider.limits,
                name=f"provider '{endpoint.name}'",
                place=credential_of(endpoint),
                slots=None,
            )
        return self._joint([own, account])

    def share(self, budgets: Budgets) -> None:
        """Let budgets borrow from the ledger in the store, if they are `SharedBudgets`."""
        if isinstance(budgets, JointBudgets):
            budgets = budgets.own  # who brought the job's sees to them
        if self._store is None or not isinstance(budgets, SharedBudgets):
            return
        self._ledger = Ledger(budgets, self._store, key=f"{self._config.limits.prefix}:budgets", clock=self._clock)
        self._tasks.append(_in_background(self._ledger.run()))
        self._keep()

    async def aclose(self) -> None:
        """Give back what other processes can use, and close the connections. Safe to call twice."""
        talks: list[Link | Ledger] = list(self._links.values())
        if self._ledger is not None:
            talks.append(self._ledger)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._links, self._tasks, self._ledger = {}, [], None
        await asyncio.gather(*(talk.say_bye() for talk in talks))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def _pace(
        self,
        endpoint: Endpoint,
        limits: LimitSettings | Literal[False] | None,
        *,
        name: str,
        place: str,
        slots: int | None,
    ) -> Pace:
        settings = limits or LimitSettings()
        charge = settings.charge or charge_of(endpoint.kind)
        provider = self._config.providers.get(endpoint.name)
        known = limits is False or (provider is not None and provider.limits is not None and limits is None)
        asked = limits is not None or (self._careful and endpoint.is_public)
        cautious = slots is not None and asked and not known  # an account's other limits are its models' own
        now = self._clock.now()
        if self._store is None or endpoint.kind in IN_PROCESS:
            return Pace(settings, charge, now=now, name=name, cautious=cautious)
        shared = self._config.limits
        limiter = SharedLimiter(settings, charge, now=now, name=name, slots=slots, peers=shared.processes)
        pace = SharedPace(settings, charge, now=now, name=name, cautious=cautious, limiter=limiter)
        # The braces keep all that belongs together on one server of a cluster.
        key = f"{shared.prefix}:pace:{{{place}}}"
        link = Link(pace, self._store, key=key, name=name, clock=self._clock, lease=shared.lease_seconds)
        task = _in_background(link.run())
        task.add_done_callback(link.ended)
        self._tasks.append(task)
        self._links[pace] = link
        self._keep()
        return pace

    def _keep(self) -> None:
        if self._keeper is None and self._store is not None:
            self._keeper = _in_background(_close_at_the_end(self._store))

    def _joint(self, paces: Sequence[Pace]) -> JointPace:
        links = [self._links[pace] for pace in paces if pace in self._links]

        def state() -> dict[str, Any]:
            return max((link.state for link in links), key=lambda each: bool(each["state"] == "alone"))

        return JointPace(paces, shared=state if links else None)


def budgets_of(config: GatewayConfig) -> Budgets | None:
    """Return the budgets of a configuration, shared if its limits are; None if there are none."""
    if config.budgets.is_empty:
        return None
    return Budgets(config.budgets) if config.limits.redis_url is None else SharedBudgets(config.budgets)


def credential_of(endpoint: Endpoint) -> str:
    """Return what stands for a credential in the names of keys; nobody can read the credential from it."""
    host = urlsplit(endpoint.base_url or "").hostname
    parts = (
        endpoint.kind,
        endpoint.base_url or "",
        endpoint.api_key.get_secret_value() if endpoint.api_key else "",
        socket.gethostname() if host in HERE else "",
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


async def _close_at_the_end(store: Store) -> None:
    """Close the connections when this is cancelled, be it by a loop that ends without `aclose`."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await store.aclose()


def _in_background(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # A context of its own: the first caller's tracing is not the others'.
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


def _store_of(config: GatewayConfig) -> Store | None:
    if config.limits.redis_url is None:
        return None
    from llm_gateway.limits.shared.store import RedisStore

    return RedisStore(config.limits.redis_url.get_secret_value())
