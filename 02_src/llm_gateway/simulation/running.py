"""A trace through the real gateway, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from llm_gateway.config import GatewayConfig, LimitSettings, LogSettings, SharedSettings, load_config
from llm_gateway.errors import ConfigurationError, DeadlineExceededError, GatewayError
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import LLMResponse
from llm_gateway.sentences import sentence_of
from llm_gateway.simulation.analysis import analyse, capacities_of, wait_spans
from llm_gateway.simulation.provider import Call, SimulatedProvider
from llm_gateway.simulation.result import Ending, SimulationResult
from llm_gateway.simulation.trace import TracedRequest, works_of
from llm_gateway.simulation.troubles import Acceleration, Trouble
from llm_gateway.simulation.virtual_time import run_virtual
from llm_gateway.simulation.work import Latency, Work


class SimulatedGateway(LLMGateway):
    """LLMGateway over a SimulatedProvider; run it in a VirtualTimeLoop."""

    _careful = False  # what the provider enforces is told

    def __init__(self, config: GatewayConfig, provider: SimulatedProvider) -> None:
        """Take a configuration and what answers in the place of all its providers."""
        self._provider = provider
        super().__init__(config)

    def _connect(self) -> SimulatedProvider:
        return self._provider


def simulate(
    trace: Iterable[TracedRequest],
    config: Mapping[str, Any] | GatewayConfig | None = None,
    *,
    limits: LimitSettings | Mapping[str, Any] | None = None,
    latency: Latency | None = None,
    troubles: Sequence[Trouble] = (),
    acceleration: Acceleration | None = None,
    hints: bool = True,
    headers: bool = True,
    load: float = 1.0,
    seed: int = 0,
) -> SimulationResult:
    """Send a trace through the real gateway to simulated providers, in virtual time, and return what happened.

    The providers enforce the limits of the configuration; or `limits`, on each model of the trace, which are then told
    to the gateway too, unless the configuration has limits for the model of its own: so it can be wrong about them, or
    with `limits = {}` ignorant of them. `latency` holds instead of the trace's; `load` 2.0 lets the same requests come
    in half the time. Requests of one instant enter as one `batch()`, others by `request()`. The same arguments give
    the same result. No key is needed, nothing is sent, and no journal is written; a Redis that the configuration names
    is left alone, and identical requests do not share calls.

    Raises ConfigurationError for a configuration or limits that are malformed, or a trace without a request;
    UnknownModelError for a model that is not configured. It runs an event loop of its own, so call it outside of one,
    in a coroutine as `await asyncio.to_thread(simulate, trace, …)`.
    """
    _check_outside_of_loops()
    coming = sorted(trace, key=lambda each: each.at)
    if not coming:
        raise ConfigurationError("There is no request in the trace; give at least one.")
    enforced = None if limits is None else checked_limits(limits)
    told = _told(config, {each.model_name for each in coming}, enforced, seed)
    works = works_of(coming, latency, seed)
    by_id = {f"r{number}": work for number, work in enumerate(works)}
    provider = SimulatedProvider(
        limits=enforced,
        accounts={name: each.limits for name, each in told.providers.items() if each.limits is not None},
        work=lambda request, _rng: by_id[request.request_id],
        troubles=troubles,
        acceleration=acceleration,
        hints=hints,
        headers=headers,
        seed=seed,
    )
    outcomes = run_virtual(_run(SimulatedGateway(told, provider), coming, works, load))
    endings = _endings(coming, outcomes, provider.ledger, load)
    waits = wait_spans(endings, provider.ledger, list(by_id))
    return analyse(endings, provider.ledger, waits, capacities_of(provider))


def checked_limits(limits: LimitSettings | Mapping[str, Any]) -> LimitSettings:
    """Return limits that may be a dict of the configuration's keys. Raises ConfigurationError."""
    if isinstance(limits, LimitSettings):
        return limits
    try:
        return LimitSettings.model_validate(dict(limits))
    except ValidationError as error:
        key, reason = sentence_of(error, LimitSettings)
        raise ConfigurationError(f"limits.{key}: {reason}") from None


def _check_outside_of_loops() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise GatewayError(
        "simulate() runs an event loop of its own, and this thread already runs one; "
        "await asyncio.to_thread(simulate, …) instead."
    )


def _told(
    config: Mapping[str, Any] | GatewayConfig | None, names: set[str], limits: LimitSettings | None, seed: int
) -> GatewayConfig:
    """Return the configuration of the gateway. Raises ConfigurationError, UnknownModelError."""
    loaded = config if isinstance(config, GatewayConfig) else load_config({} if config is None else config)
    models = dict(loaded.models)
    for name in sorted(names):
        settings = loaded.model(name)
        if limits is not None and settings.limits is None:
            models[name] = settings.model_copy(update={"limits": limits})
    changes: dict[str, Any] = {
        "models": models,
        "logs": LogSettings(dir=False),
        "limits": SharedSettings(),  # nothing outside of this process lives in its time
        "cache": None,
        "coalesce": False,  # prompts of one size are one text here, and were not in the trace
    }
    if loaded.seed is None:
        changes["seed"] = seed
    return loaded.model_copy(update=changes)


async def _run(
    gateway: SimulatedGateway, trace: Sequence[TracedRequest], works: Sequence[Work], load: float
) -> list[LLMResponse | GatewayError]:
    """Let every request come at its time; return the outcomes in the order of the trace."""
    now = asyncio.get_running_loop().time
    outcomes: dict[int, LLMResponse | GatewayError] = {}

    async def enter(places: Sequence[int]) -> None:
        requests = [trace[place].to_request(f"r{place}", works[place]) for place in places]
        if len(requests) > 1:
            ended: Sequence[object] = await gateway.batch(requests, return_exceptions=True)
        else:
            try:
                ended = [await gateway.request(requests[0])]
            except GatewayError as error:
                ended = [error]
        for place, outcome in zip(places, ended, strict=True):
            if not isinstance(outcome, LLMResponse | GatewayError):
                raise outcome if isinstance(outcome, BaseException) else TypeError(outcome)
            outcomes[place] = outcome

    async with gateway, asyncio.TaskGroup() as group:
        for at, places in groupby(range(len(trace)), key=lambda place: trace[place].at / load):
            if at > now():
                await asyncio.sleep(at - now())
            group.create_task(enter(list(places)))
    return [outcomes[place] for place in range(len(trace))]


def _endings(
    trace: Sequence[TracedRequest],
    outcomes: Sequence[LLMResponse | GatewayError],
    ledger: Iterable[Call],
    load: float,
) -> list[Ending]:
    last = {call.request.request_id: call.ended for call in ledger}
    endings = []
    for place, (traced, outcome) in enumerate(zip(trace, outcomes, strict=True)):
        at = traced.at / load
        ended = last.get(f"r{place}") or at
        if isinstance(outcome, DeadlineExceededError):
            ended = at + outcome.deadline
        receipt = outcome.receipt if isinstance(outcome, LLMResponse) else None
        endings.append(
            Ending(
                at=at,
                ended=ended,
                model=traced.model_name,
                priority=traced.priority.name.lower(),
                outcome=outcome.kind if isinstance(outcome, GatewayError) else "ok",
                wait=0.0 if receipt is None else receipt.queue_wait,
                cost_usd=None if receipt is None else receipt.cost_usd,
            )
        )
    return endings
