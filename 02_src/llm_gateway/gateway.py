"""LLMGateway: wires the parts together and owns what runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from llm_gateway.batching import Lane
from llm_gateway.clock import Clock, LoopClock
from llm_gateway.config import GatewayConfig, LimitSettings, load_config
from llm_gateway.errors import BatchError, GatewayClosedError, GatewayError, InvalidRequestError
from llm_gateway.events import Observer, Observers, ShutdownBegan, ShutdownEnded
from llm_gateway.journal import Journal
from llm_gateway.limits import JointPace, Pace, charge_of
from llm_gateway.models import LLMRequest, LLMResponse, ModelProvider, RequestPriority
from llm_gateway.pricing import price_of
from llm_gateway.queue import Ticket
from llm_gateway.retry import RetryPolicy, RetryQuota
from llm_gateway.router import Deployments, Outcomes
from llm_gateway.stats import Stats
from llm_gateway.tokens import Estimator

if TYPE_CHECKING:
    from llm_gateway.clients.base import ClientFactory, Deployment

log = logging.getLogger("llm_gateway")


class LLMGateway:
    """One door to every LLM: requests queue, batch, retry and are answered, priced and written down.

    Constructing needs neither an event loop nor a key. The gateway works in the event loop of its first request and
    belongs to it until that loop is closed; another loop that runs at the same time needs a gateway of its own.
    `async with` shuts it down at the end; without it, await `shutdown()`.

    Raises ConfigurationError for a malformed configuration, in one sentence that names the key.
    """

    def __init__(
        self, config: Mapping[str, Any] | GatewayConfig | None = None, *, observers: Iterable[Observer] = ()
    ) -> None:
        """Take the configuration as a dict, and further observers of what happens."""
        self._config = config if isinstance(config, GatewayConfig) else load_config({} if config is None else config)
        self._clock: Clock = LoopClock()
        self._rng = Random(self._config.seed)  # noqa: S311 - jitter is no secret
        self._stats = Stats()
        self._journal = Journal(self._config.logs) if self._config.logs.dir else None
        own: list[Observer] = [self._stats, self._journal] if self._journal else [self._stats]
        self._observer = Observers.of([*own, *observers])
        self._deployments = Deployments(self._config)
        self._quotas: dict[str, RetryQuota] = {}
        self._estimator = Estimator()
        self._running: _Running | None = None
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None  # of the shutdown that is under way

    # --- asking -----------------------------------------------------------------------------------------------

    async def request(self, request: LLMRequest) -> LLMResponse:
        """Answer one request as soon as its model has a free slot.

        Raises InvalidRequestError, ConfigurationError or QueueFullError before anything is sent, ProviderError when
        the attempts are used up or another one would not help, DeadlineExceededError, GatewayClosedError. After a
        cancel the request is out of the queue, or its provider call is cancelled; no other request is touched.
        """
        lane = self._lane(request)
        ticket = lane.submit(request)
        try:
            return await ticket.reply
        finally:
            lane.discard(ticket)

    @overload
    async def batch(
        self, requests: Iterable[LLMRequest], *, return_exceptions: Literal[False] = False
    ) -> list[LLMResponse]: ...

    @overload
    async def batch(
        self, requests: Iterable[LLMRequest], *, return_exceptions: bool
    ) -> list[LLMResponse | BaseException]: ...

    async def batch(
        self, requests: Iterable[LLMRequest], *, return_exceptions: bool = False
    ) -> list[LLMResponse] | list[LLMResponse | BaseException]:
        """Answer many requests; the responses stand in the order of the requests.

        Where the queue is full it waits for room, and leaves half of it to single requests. Where items fail,
        BatchError is raised after all have ended, with every outcome in `.outcomes`; with `return_exceptions` the
        errors stand in their places instead. A malformed request (unknown model, an id twice) raises before anything
        is sent, or takes its place as an error. Deadlines count from this call. After a cancel none of the requests is
        under way. On a gateway that is shut down it raises GatewayClosedError either way.
        """
        asked = list(requests)
        lanes = self._admit(asked, raising=not return_exceptions)
        since = self._clock.now()
        entered: list[tuple[Lane, Ticket] | GatewayError | None] = [None] * len(asked)
        queues: dict[tuple[Lane, RequestPriority], list[int]] = {}
        for place, (request, lane) in enumerate(zip(asked, lanes, strict=True)):
            if isinstance(lane, Lane):
                queues.setdefault((lane, request.priority), []).append(place)
            else:
                entered[place] = lane

        async def enter(lane: Lane, places: Sequence[int]) -> None:
            for place in places:
                entered[place] = await _enter(lane, asked[place], since)

        try:
            # A full queue must not hold up the items that go to another one.
            async with asyncio.TaskGroup() as group:
                for (lane, _), places in queues.items():
                    group.create_task(enter(lane, places))
            outcomes = [each if isinstance(each, GatewayError) else await _outcome(each) for each in entered]
        finally:
            for each in entered:
                if isinstance(each, tuple):
                    each[0].discard(each[1])
        if return_exceptions:
            return outcomes
        answers = [outcome for outcome in outcomes if isinstance(outcome, LLMResponse)]
        if len(answers) < len(outcomes):
            raise BatchError(outcomes)
        return answers

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> GatewayConfig:
        """The validated configuration, defaults filled in."""
        return self._config

    @property
    def log_path(self) -> Path | None:
        """The journal's file now; None before its first line, or where the journal is off."""
        return self._journal.log_path if self._journal else None

    def get_stats(self) -> dict[str, Any]:
        """Return what happened so far, as plain dicts, lists, numbers and strings. Times in seconds, cost in USD."""
        lanes = self._running.lanes.values() if self._running else ()
        queued = {each.name.lower(): sum(lane.depth(each) for lane in lanes) for each in RequestPriority}
        stats = self._stats.snapshot(queued=queued, in_flight=sum(lane.in_flight for lane in lanes))
        if self._running is not None and self._running.is_here():
            stats["pace"] = {name: lane.pace() for name, lane in self._running.lanes.items()}
        return stats

    # --- the end ----------------------------------------------------------------------------------------------

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a limit to patience, not a cancel
        """Accept nothing more, finish what was accepted, and close every connection and file.

        After `timeout` seconds (default: `drain_timeout` of the configuration) what is left is cancelled, and its
        callers get GatewayClosedError. Safe to call twice: the second call waits for the first. If this call is
        cancelled, what is left is cancelled at once, and the closing goes on by itself.
        """
        if self._ending is None:
            self._check_loop()
            self._closed = True
            self._ending = asyncio.create_task(self._end(self._config.drain_timeout if timeout is None else timeout))
        if self._ending.get_loop() is not asyncio.get_running_loop():
            return  # it ended with its loop
        try:
            await asyncio.shield(self._ending)
        except asyncio.CancelledError:
            if self._patience is not None and not self._patience.expired():
                self._patience.reschedule(self._clock.now())
            raise

    async def __aenter__(self) -> Self:
        """Return the gateway itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down; without waiting for answers if the body failed."""
        await self.shutdown(None if error is None else 0.0)

    async def _end(self, patience: float) -> None:
        lanes = list(self._running.lanes.values()) if self._running and self._running.is_here() else []
        queued = sum(lane.depth(each) for lane in lanes for each in RequestPriority)
        in_flight = sum(lane.in_flight for lane in lanes)
        ended = self._stats.ended
        self._observer.observe(ShutdownBegan(queued=queued, in_flight=in_flight))
        for lane in lanes:
            lane.close()
        try:
            async with self._clock.timeout(patience) as self._patience:
                for lane in lanes:
                    await lane.drained()
        except TimeoutError:
            pass  # what is left is cancelled below, and its callers are told
        finally:
            self._patience = None
            cancelled = sum([lane.cancel() for lane in lanes])
            for lane in lanes:
                await lane.drained()
            drained = self._stats.ended - ended - cancelled
            self._observer.observe(ShutdownEnded(cancelled=cancelled, drained=drained))
            await self._disconnect(lanes)
            self._running = None
            if self._journal is not None:
                await asyncio.to_thread(self._journal.close)

    async def _disconnect(self, lanes: Iterable[Lane]) -> None:
        """Close every connection; one that cannot be closed keeps none of the others open."""
        closers = [lane.client.aclose for lane in lanes]
        if self._running is not None and lanes:
            closers.append(self._running.clients.aclose)
        for close in closers:
            try:
                await close()
            except Exception:
                log.exception("a connection could not be closed")

    # --- wiring -----------------------------------------------------------------------------------------------

    def _connect(self) -> ClientFactory:
        """Return what makes the clients; called in the running loop. MockLLMGateway has scripted ones."""
        from llm_gateway.clients.factory import LangChainClients

        return LangChainClients()

    def _admit(self, requests: Sequence[LLMRequest], *, raising: bool) -> list[Lane | GatewayError]:
        """Return the lane of each request, or what is wrong with it; nothing is sent yet."""
        seen: set[str] = set()
        lanes: list[Lane | GatewayError] = []
        for request in requests:
            try:
                lane = self._lane(request)
                if request.request_id in seen:
                    reason = f"'{request.request_id}' stands twice in this batch; give each request its own id."
                    raise InvalidRequestError(reason, field="request_id", record="LLMRequest")
                seen.add(request.request_id)
                lanes.append(lane)
            except GatewayError as error:
                if raising or isinstance(error, GatewayClosedError):
                    raise
                lanes.append(error)
        return lanes

    def _lane(self, request: LLMRequest) -> Lane:
        """Return the lane that serves `request`, after every check that needs no provider."""
        if not isinstance(request, LLMRequest):
            raise InvalidRequestError(f"expected an LLMRequest, got {type(request).__name__}.")
        if self._closed:
            raise GatewayClosedError
        running = self._here()
        model = request.model.value if isinstance(request.model, ModelProvider) else request.model
        lane = running.lanes.get(model) or self._open_lane(running, model)
        lane.client.check(request)
        return lane

    def _here(self) -> _Running:
        """Return the part that belongs to the running loop."""
        self._check_loop()
        if self._running is None:
            self._running = _Running(asyncio.get_running_loop(), self._connect())
        return self._running

    def _check_loop(self) -> None:
        """Forget what belonged to a loop that is closed. Raises GatewayError if another loop uses this gateway."""
        running = self._running
        if running is None or running.is_here():
            return
        if not running.loop.is_closed():
            raise GatewayError(
                "This gateway serves another event loop that is still open; build an LLMGateway for each loop."
            )
        running.clients.abandon()
        self._running = None

    def _open_lane(self, running: _Running, model: str) -> Lane:
        import llm_gateway.clients.runnable  # noqa: F401 - LangChain's import is nobody's time in the queue

        deployment = self._deployments[model]
        retry = self._config.retry
        outcomes = Outcomes(
            deployment=deployment,
            policy=RetryPolicy(
                max_attempts=retry.max_attempts,
                base=retry.base_delay,
                longest=retry.max_delay,
                longest_hint=retry.longest_hint,
                max_throttles=retry.max_throttles,
            ),
            quota=self._quotas.setdefault(model, RetryQuota.full(retry.quota)),
            rng=self._rng,
            price=price_of(deployment).cost,
            observer=self._observer,
            clock=self._clock,
            with_text=self._config.logs.text,
        )
        lane = running.lanes[model] = Lane(
            running.clients.connect(deployment),
            outcomes,
            settings=self._config.batching,
            pace=self._pace(running, deployment),
            estimator=self._estimator,
            clock=self._clock,
            observer=self._observer,
        )
        return lane

    def _pace(self, running: _Running, deployment: Deployment) -> JointPace:
        """Return the pace of a deployment: its model's own, and its account's if that has limits."""
        endpoint, settings, now = deployment.endpoint, deployment.settings, self._clock.now()
        own = settings.limits or LimitSettings()
        charge = own.charge or charge_of(endpoint.kind)
        cautious = settings.limits is not None
        paces = [Pace(own, charge, now=now, name=f"model '{deployment.name}'", cautious=cautious)]
        account = self._config.providers.get(endpoint.name)
        if account is not None and account.limits is not None:
            shared = running.accounts.get(endpoint.name)
            if shared is None:
                charge = account.limits.charge or charge_of(endpoint.kind)
                shared = Pace(account.limits, charge, now=now, name=f"provider '{endpoint.name}'", cautious=False)
                running.accounts[endpoint.name] = shared
            paces.append(shared)
        return JointPace(paces)


class _Running:
    """What belongs to one event loop: its clients and its lanes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clients: ClientFactory) -> None:
        self.loop = loop
        self.clients = clients
        self.lanes: dict[str, Lane] = {}
        self.accounts: dict[str, Pace] = {}  # of the providers whose limits all their models share

    def is_here(self) -> bool:
        """Whether its loop is the running one."""
        return self.loop is asyncio._get_running_loop()  # noqa: SLF001 - None where no loop runs


async def _enter(lane: Lane, request: LLMRequest, since: float) -> tuple[Lane, Ticket] | GatewayError:
    """Submit as soon as there is room."""
    try:
        await lane.room(request.priority)
        return lane, lane.submit(request, since=since)
    except GatewayError as error:
        return error


async def _outcome(entered: tuple[Lane, Ticket] | None) -> LLMResponse | BaseException:
    """Wait for an answer or an error; our own cancellation is neither."""
    assert entered is not None  # noqa: S101 - all have entered before any is waited for
    reply = entered[1].reply
    if not reply.done():
        await asyncio.wait((reply,))
    return reply.exception() or reply.result()
