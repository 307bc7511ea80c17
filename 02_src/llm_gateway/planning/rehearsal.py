"""How much of a limit on tokens can really be used: some rows of the plan through the gateway, in virtual time.

Where calls are large beside what a limit lets through at once, permits that were reserved and not used come back to a
full bucket, and are lost. How much that is depends on the sizes, and the gateway itself says it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from llm_gateway.config import GatewayConfig, LimitSettings
from llm_gateway.models import RequestPriority
from llm_gateway.planning.answers import Answer
from llm_gateway.planning.capacity import PERIODS, TOLD, Constraint, Told, Work
from llm_gateway.planning.census import Census, Kind, shares
from llm_gateway.simulation import RandomWork, TracedRequest, simulate

FEW, MANY = 80, 240  # rows; from one to the other it runs at its usual pace
REHEARSED = {"tpm", "itpm", "otpm"}
LEAST, MOST = 1.03, 10.0  # times slower than arithmetic says; less is not told, more is not believed


def rehearsed(census: Census, binding: Constraint, limits: Sequence[Constraint], told: Told) -> Constraint:
    """Return the limit that binds, slowed down by what a simulation says; as it is where nothing is to be learned.

    Runs an event loop of its own, so call it outside of one. The same census gives the same.
    """
    rows = sum(sums.rows for sums in census.kinds.values())
    if binding.key not in REHEARSED or rows <= FEW:
        return binding
    config = _with_told(census.config, told)
    many = _trace(census, min(MANY, rows))
    few = Random(census.seed).sample(many, FEW)  # noqa: S311 - a plan's chance is no secret
    took = simulate(many, config, seed=census.seed).duration - simulate(few, config, seed=census.seed).duration
    expected = _arithmetic(many, limits) - _arithmetic(few, limits)
    slower = took / expected if expected > 0 else 1.0
    if slower < LEAST:
        return binding
    slower = min(slower, MOST)
    return replace(binding, per_second=binding.per_second / slower, used=1.0 / slower)


def _with_told(config: GatewayConfig, told: Told) -> GatewayConfig:
    """Return a configuration with the limits that answers told, where nobody configured any."""
    models = dict(config.models)
    for name, settings in config.models.items():
        heard = told.get(f"{settings.provider}/{settings.model}", {})
        if heard and settings.limits is None:
            limits: dict[str, Any] = {key: int(heard[TOLD[key]]) for key in PERIODS if heard.get(TOLD[key], 0) >= 1}
            models[name] = settings.model_copy(update={"limits": LimitSettings(**limits)})
    return config.model_copy(update={"models": models})


def _trace(census: Census, size: int) -> list[TracedRequest]:
    """Return requests as those of the input, in proportion to its kinds."""
    rng, work = Random(census.seed), RandomWork()  # noqa: S311
    counts: dict[Kind, int] = {kind: sums.rows for kind, sums in census.kinds.items() if sums.rows}
    trace = []
    for kind, part in shares(counts, size).items():
        sums = census.kinds[kind]
        pool = census.learned.pool(kind.stratum)[1]
        longest = round(sums.limit / sums.rows) if kind.limit is not None else None
        for _ in range(part):
            drawn = work.draw(rng)
            answer = rng.choice(pool) if pool else Answer(1.0, drawn.output_tokens, drawn.seconds)
            output = round(answer.output) if longest is None else min(round(answer.output), longest)
            trace.append(
                TracedRequest(
                    at=0.0,
                    model=kind.stratum.model,
                    priority=RequestPriority.LOW,
                    input_tokens=round(answer.ratio * sums.input / sums.rows),
                    output_tokens=output,
                    max_tokens=longest,
                    latency=answer.seconds,
                )
            )
    rng.shuffle(trace)
    return trace


def _arithmetic(trace: Sequence[TracedRequest], limits: Sequence[Constraint]) -> float:
    """Return how long a trace takes by arithmetic alone."""
    works: dict[str, Work] = {}
    for each in trace:
        work = works.setdefault(each.model_name, Work())
        size, output = each.input_tokens or 0, each.output_tokens or 0
        work.calls += 1
        work.input += size
        work.output += output
        work.asked_output += each.max_tokens or output
        work.admitted += max(size, each.max_tokens) if each.max_tokens else size + output
        work.seconds += each.latency or 0.0
    return max(each.seconds(works) for each in limits)
