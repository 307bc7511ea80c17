"""LLMGateway: wires the parts together and owns what runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from llm_gateway.batching import Lane, answers_of, lent_slot, on_behalf_of
from llm_gateway.budgets import BatchPurse, Budgets, JointBudgets
from llm_gateway.cache import CacheFigures, Missed, pieces_of
from llm_gateway.calls import CallWatch
from llm_gateway.clock import Clock, LoopClock
from llm_gateway.config import GatewayConfig, load_config
from llm_gateway.embedding import Embedding, checked, question
from llm_gateway.errors import BatchError, ConfigurationError, GatewayClosedError, GatewayError, InvalidRequestError
from llm_gateway.events import Observer, Observers, ShutdownBegan, ShutdownEnded
from llm_gateway.journal import Journal
from llm_gateway.limits import budgets_of
from llm_gateway.models import (
    EmbeddingResponse,
    LLMRequest,
    LLMResponse,
    ModelProvider,
    RequestPriority,
    StreamDelta,
)
from llm_gateway.serving import Means, Serving
from llm_gateway.stats import Stats

if TYPE_CHECKING:
    from llm_gateway.clients.base import ClientFactory
    from llm_gateway.clients.batches import BatchLine
    from llm_gateway.integrations.langchain import GatewayChatModel, GatewayEmbeddings
    from llm_gateway.jobs import Job
    from llm_gateway.jobs.opening import Place

log = logging.getLogger("llm_gateway")

AT_ONCE = 100  # requests of a batch that are taken in before others on the loop get their turn
MOST_SHOWN = 100  # waiting requests of each model in the statistics


class LLMGateway:
    """One door to every LLM: requests queue, batch, retry and are answered, priced and written down.

    Constructing needs neither an event loop nor a key. The gateway works in the event loop of its first request and
    belongs to it until that loop is closed; another loop that runs at the same time needs a gateway of its own.
    `async with` shuts it down at the end; without it, await `shutdown()`.

    Raises ConfigurationError for a malformed configuration, in one sentence that names the key.
    """

    _careful = True  # begin slowly at a public provider whose limits are unknown

    def __init__(
        self, config: Mapping[str, Any] | GatewayConfig | None = None, *, observers: Iterable[Observer] = ()
    ) -> None:
        """Take the configuration as a dict, and further observers of what happens."""
        self._config = config if isinstance(config, GatewayConfig) else load_config({} if config is None else config)
        self._clock: Clock = LoopClock()
        self._rng = Random(self._config.seed)  # noqa: S311 - jitter is no secret
        self._stats = Stats()
        self._journal = Journal(self._config.logs) if self._config.logs.dir else None
        observers = list(observers)
        self._calls = CallWatch()
        own: list[Observer] = [self._stats, self._calls, *([self._journal] if self._journal else [])]
        self._observer = Observers.of([*own, *observers])
        self._budgets = budgets_of(self._config)
        self._cache_figures = None if self._config.cache is None else CacheFigures()
        self._means = Means(
            config=self._config,
            observer=self._observer,
            rng=self._rng,
            budgets=self._budgets,
            cache_figures=self._cache_figures,
            tells_beginnings=bool(observers),
        )
        self._running: Serving | None = None
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None  # of the shutdown that is under way

    # --- asking -----------------------------------------------------------------------------------------------

    async def request(self, request: LLMRequest) -> LLMResponse:
        """Answer one request as soon as its model has a free slot, or, in the price lane "batch", its batch is over.

        Raises InvalidRequestError, ConfigurationError or QueueFullError before anything is sent, ProviderError when
        the attempts are used up or another one would not help, InvalidAnswerError when they brought no answer in the
        request's format, DeadlineExceededError, GatewayClosedError. After a cancel the request is out of the queue, or
        its provider call is cancelled; no other request is touched.
        """
        lane = self._lane(request)
        with lent_slot():
            since = await lane.turn(request) if lane.door.is_crowded else None
            if self._config.cache is not None and (caching := self._here().caching) is not None:
                key = caching.key(request, lane)
                if key is not None:
                    return await caching.answer(request, lane, key, since=since)
            if self._config.coalesce and request.temperature == 0:
                return await self._here().coalescing.answer(request, lane, since=since)
            ticket = lane.submit(request, since=since)
            try:
                return await ticket.reply
            finally:
                ticket.home.discard(ticket)

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
        if not self._closed:
            self._here()  # the clock may be this loop's own
        since = self._clock.now()
        lanes = await self._admit(asked, raising=not return_exceptions)
        with lent_slot():
            if self._config.cache is not None and (caching := self._here().caching) is not None:
                outcomes = await caching.batch(asked, lanes, since)
            else:
                outcomes = await answers_of(asked, lanes, since)
        if return_exceptions:
            return outcomes
        answers = [outcome for outcome in outcomes if isinstance(outcome, LLMResponse)]
        if len(answers) < len(outcomes):
            raise BatchError(outcomes)
        return answers

    async def stream(self, request: LLMRequest) -> AsyncGenerator[StreamDelta | LLMResponse, None]:
        """Answer one request piece by piece: yield deltas as they come, and the whole LLMResponse at last.

        Until the first piece everything is as for `request`: it waits its turn, is retried and may fall back, and the
        same errors are raised. If the answer breaks off after that, StreamInterruptedError has the text that came; if
        it came whole and does not fit the request's format, InvalidAnswerError has it. Leave the loop early and the
        connection is closed before `aclose` of this generator returns; wrap it in `contextlib.aclosing` to have that at
        once. A caller that takes no pieces makes its provider wait.
        """
        lane = self._lane(request)
        since = await lane.turn(request) if lane.door.is_crowded else None
        missed: Missed | None = None
        if self._config.cache is not None and (caching := self._here().caching) is not None:
            found = await caching.look(request, lane, since=since)
            if isinstance(found, LLMResponse):
                for piece_of_it in pieces_of(found):
                    yield piece_of_it
                yield found
                return
            missed, since = found, found.since
        ticket = lane.submit(request, since=since, streamed=True)
        if missed is not None and caching is not None:
            caching.follow(missed, lane, ticket.reply)
        pieces = ticket.pieces
        assert pieces is not None  # noqa: S101 - since it is streamed
        try:
            with lent_slot():
                while (piece := await pieces.take()) is not None:
                    yield piece
                yield ticket.reply.result()
        finally:
            call = ticket.call
            ticket.home.discard(ticket)
            if call is not None:
                await asyncio.wait((call,))

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: ModelProvider | str,
        priority: RequestPriority | None = None,
        agent: str | None = None,
        deadline: float | None = None,
        metadata: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> EmbeddingResponse:
        """Return the vectors of texts, in their order, from a model that the configuration marks with `embedding`.

        Texts of all callers that wait for the model go together into one provider call, as many as it takes, the best
        by the queue's order first; priority, fairness, limits, retries, budgets and the journal are those of requests.
        Where the queue is full it waits for room, as `batch` does. Left out, priority and agent are inherited.

        Raises InvalidRequestError before anything is sent, for a text that is empty or no text, by its place. Where
        some texts fail and others do not, EmbeddingError has the vectors that came; where all do, the error itself is
        raised, as by `request`. A rejected call is asked again in halves until the text at fault stands alone. After a
        cancel the caller's texts are out of the queue; a call that others wait for goes on.
        """
        given = {"priority": priority, "agent": agent, "deadline": deadline, "metadata": metadata}
        request = question(model, {**given, "request_id": request_id})
        found = checked(texts)
        lane = self._lane(request)
        if lane.call_room is None:
            reason = f"'{lane.model}' answers requests; ask a model that is configured with `embedding = true`."
            raise InvalidRequestError(reason, field="model", record="embed")
        with lent_slot():
            return await Embedding(lane, lane.call_room, request, found, since=self._clock.now()).run()

    def job(self, path: Place | str, **options: Any) -> Job:
        """Return a bulk job whose state is the file or database `path`; None: a temporary one. Use it in `async with`.

        `async for outcome in job.run(requests)` yields outcomes as they come, and resumes where a run was stopped or
        killed. `options` are those of `llm_gateway.jobs.Job`.
        """
        from llm_gateway.jobs import Job

        return Job(self, path, watch=self._calls, **options)

    @contextmanager
    def paying_from(self, budgets: Budgets, /) -> Iterator[None]:
        """Let every call in this context fall under these budgets of a job too, beside those of the configuration.

        Raises ConfigurationError if a model was asked before: calls under way would count nowhere.
        """
        if self._running is not None and self._running.lanes:
            raise ConfigurationError("budget: the gateway has made calls before; give the job a gateway of its own.")
        own = Budgets(self._config.budgets) if self._budgets is None else self._budgets
        self._budgets = self._means.budgets = joint = JointBudgets(own, budgets)
        try:
            yield
        finally:
            joint.part()

    def batch_line(self, model: str) -> BatchLine | None:
        """Return what a bulk job needs to send a model's requests in its provider's batches; None where it has none.

        It lasts until shutdown. Raises UnknownModelError, ConfigurationError, GatewayClosedError.
        """
        from llm_gateway.clients.batches import BatchLine

        if self._closed:
            raise GatewayClosedError
        upstream = self._here().lane(model).upstreams[0]
        make = getattr(upstream.client, "batch_client", None)
        client = make() if make is not None else None
        if client is None:
            return None
        purse = BatchPurse.of(self._budgets, model, upstream.worst_case)
        return BatchLine(
            client=client,
            label=upstream.label,
            price=upstream.price,
            purse=purse,
            observer=self._observer,
            with_text=self._config.logs.text,
        )

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> GatewayConfig:
        """The validated configuration, defaults filled in."""
        return self._config

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it works in; None before the first request, and once that loop is closed."""
        return None if self._running is None or self._running.loop.is_closed() else self._running.loop

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
            batches = {name: lane.provider_batches() for name, lane in self._running.lanes.items()}
            stats["provider_batches"] = {name: each for name, each in batches.items() if each is not None}
            stats["waiting"] = [each for lane in lanes for each in lane.waiting(MOST_SHOWN)]
        if self._budgets is not None:
            stats["budgets"] = self._budgets.snapshot()
        if self._cache_figures is not None:
            stats["cache"] = self._cache_figures.snapshot()
        return stats

    def eta(self, request: LLMRequest) -> float:
        """Return the seconds until the provider call for `request` would likely begin if it were asked now.

        An estimate from what waits ahead of its class, the times of recent calls, and where the limits stand; 0.0 if
        it would begin at once. Infinite while only the end of a call under way can tell. Nothing is submitted.
        Raises what `request` would raise before anything is sent.
        """
        return self._lane(request).eta(request)

    def on_behalf_of(self, request: LLMRequest) -> AbstractContextManager[None]:
        """Let every request made inside a `with` block inherit the class and the agent of `request`.

        Also those of tasks begun inside, and of every gateway. A request that is given a priority or an agent of its
        own keeps it. Requests asked from inside a provider call, by a model that is itself an agent, inherit without.
        """
        return on_behalf_of(request)

    def as_langchain(
        self,
        model: ModelProvider | str,
        *,
        priority: RequestPriority | None = None,
        agent: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: list[str] | None = None,
        deadline: float | None = None,
    ) -> GatewayChatModel:
        """Return a LangChain chat model whose calls go through this gateway, from any thread and any event loop.

        What is left out is as in LLMRequest; priority and agent are then inherited, inside `on_behalf_of`.
        """
        from llm_gateway.integrations.langchain import GatewayChatModel

        return GatewayChatModel(
            gateway=self,
            model=model,
            priority=priority,
            agent=agent,
            temperature=temperature,
            max_tokens=max_tokens,
            stop=stop,
            deadline=deadline,
        )

    def as_langchain_embeddings(
        self,
        model: ModelProvider | str,
        *,
        priority: RequestPriority | None = None,
        agent: str | None = None,
        deadline: float | None = None,
    ) -> GatewayEmbeddings:
        """Return a LangChain embedding model whose calls go through this gateway, from any thread and any event loop.

        `model` is one that is configured with `embedding`; what is left out is as in `embed`.
        """
        from llm_gateway.integrations.langchain import GatewayEmbeddings

        return GatewayEmbeddings(gateway=self, model=model, priority=priority, agent=agent, deadline=deadline)

    # --- the end ----------------------------------------------------------------------------------------------

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a limit to patience, not a cancel
        """Accept nothing more, finish what was accepted, and close every connection and file.

        After `timeout` seconds (default: `drain_timeout` of the configuration) what is left is cancelled, and its
        callers get GatewayClosedError. Safe to call twice: the second call waits for the first. If this call is
        cancelled, what is left is cancelled at once, and the closing goes on by itself.
        """
        home = self.loop
        if home is not None and home is not asyncio.get_running_loop() and home.is_running():
            # Somebody without a loop of his own asked first: it works in another thread.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.shutdown(timeout), home))
            return
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
        lanes = self._lanes()
        queued = sum(lane.depth(each) for lane in lanes for each in RequestPriority)
        in_flight = sum(lane.in_flight for lane in lanes)
        ended = self._stats.ended
        self._observer.observe(ShutdownBegan(queued=queued, in_flight=in_flight))
        for lane in lanes:
            lane.close()
        try:
            async with self._clock.timeout(patience) as self._patience:
                await self._drained()
        except TimeoutError:
            pass  # what is left is cancelled below, and its callers are told
        finally:
            self._patience = None
            if self._running is not None:
                self._running.gives_up = True
            cancelled = sum([lane.halt() for lane in self._lanes()])
            for lane in self._lanes():
                cancelled += await lane.give_up()
            await self._drained()
            drained = self._stats.ended - ended - cancelled
            self._observer.observe(ShutdownEnded(cancelled=cancelled, drained=drained))
            if self._running is not None and (lanes := self._lanes()):
                await self._running.disconnect(lanes)
            self._running = None
            if self._journal is not None:
                await asyncio.to_thread(self._journal.close)

    async def _drained(self) -> None:
        """Return when no lane has anything left; what one cannot answer may have gone to another, or to a new one."""
        while busy := [lane for lane in self._lanes() if not lane.is_idle]:
            for lane in busy:
                lane.close()
                await lane.drained()

    # --- wiring -----------------------------------------------------------------------------------------------

    def _connect(self) -> ClientFactory:
        """Return what makes the clients; called in the running loop. MockLLMGateway has scripted ones."""
        from llm_gateway.clients.factory import LangChainClients

        return LangChainClients()

    async def _admit(self, requests: Sequence[LLMRequest], *, raising: bool) -> list[Lane | GatewayError]:
        """Return the lane of each request, or what is wrong with it; nothing is sent yet."""
        seen: set[str] = set()
        lanes: list[Lane | GatewayError] = []
        for place, request in enumerate(requests, 1):
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
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
        model = request.model.value if isinstance(request.model, ModelProvider) else request.model
        lane = self._here().lane(model)
        lane.check(request)
        return lane

    def _here(self) -> Serving:
        """Return the part that belongs to the running loop."""
        self._check_loop()
        if self._running is None:
            clients = self._connect()  # which may set the clock
            self._running = Serving(self._means, clients, self._clock, careful=self._careful)
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
        running.abandon()
        self._running = None

    def _lanes(self) -> list[Lane]:
        return list(self._running.lanes.values()) if self._running and self._running.is_here() else []
