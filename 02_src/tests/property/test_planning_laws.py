"""Laws of a plan: what holds for every input; and its times beside those of the gateway in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gateway.config import GatewayConfig, load_config
from llm_gateway.jobs.rows import asked_row
from llm_gateway.models import LLMMessage, LLMRequest, RequestPriority
from llm_gateway.planning import Census, Plan, Span, estimate
from llm_gateway.planning.answers import Answer, Stratum, stratum_of
from llm_gateway.planning.census import shares
from llm_gateway.simulation import Latency, LogNormal, SimulationResult, TracedRequest, simulate
from llm_gateway.simulation.trace import prompt_of
from llm_gateway.tokens import estimate_input

PRICE = {"input": 1.0, "output": 4.0}
MODELS = ("gpt-4o-mini", "claude-haiku")


def config_of(limits: Mapping[str, Any] | None = None, slots: int = 64) -> GatewayConfig:
    section = {"price": PRICE, "limits": limits, "max_concurrency": slots}
    return load_config({"models": dict.fromkeys(MODELS, section)})


def request_of(number: int, prompt: list[LLMMessage], max_tokens: int | None, model: str = MODELS[0]) -> LLMRequest:
    return LLMRequest(
        model=model,
        messages=prompt,
        max_tokens=max_tokens,
        request_id=f"r{number}",
        priority=RequestPriority.LOW,
    )


rows = st.lists(
    st.tuples(st.sampled_from(MODELS), st.integers(1, 60), st.none() | st.integers(1, 5000)), min_size=1, max_size=25
)
answers = st.lists(st.builds(Answer, st.floats(0.25, 4.0), st.floats(0.0, 5000.0), st.floats(0.001, 100.0)), max_size=6)


@settings(max_examples=12)
@given(rows, answers, st.floats(0.0, 1.0))
def test_a_plan_adds_up_and_its_ranges_are_in_order(
    asked: list[tuple[str, int, int | None]], known: list[Answer], budget: float
) -> None:
    census = Census(config_of({"rpm": 100, "tpm": 10_000}))
    seen = set()
    for number, (model, words, limit) in enumerate(asked, 1):
        request = request_of(number, [LLMMessage(role="user", content="word " * words)], limit, model)
        census.add(request, asked_row(number, request, form="gateway"))
        seen.add((model, words, limit))
    census.close()
    for answer in known:
        census.learned.add(Stratum(MODELS[0], 0), answer)
    plan = estimate(census, budget=budget)
    assert plan.adds_up
    assert plan.to_ask == len(asked)
    assert plan.repeated == len(asked) - len(seen) == sum(each.repeated for each in plan.models)
    spans: list[Span | None] = [plan.second_machine]
    for each in plan.models:
        spans += [each.input_tokens, each.output_tokens, each.cost_usd]
    for lane in plan.lanes:
        spans += [lane.cost_usd, lane.seconds]
    assert all(0 <= each.p5 <= each.p50 <= each.p95 for each in spans if each is not None)
    standard, batch = plan.lane("standard"), plan.lane("batch")
    assert batch.cost_usd == pytest.approx([each / 2 for each in standard.cost_usd or ()])
    assert standard.seconds is not None
    assert plan.second_machine is not None
    assert standard.seconds.p50 / 2 - 1e-9 <= plan.second_machine.p50 <= standard.seconds.p50 + 1e-9
    assert plan.reach is not None
    assert 0 <= plan.reach[1] <= plan.reach[0] <= plan.to_ask
    assert sum(each.binds for each in plan.limits) <= 1 + 1e-9


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(0, 600))
def test_a_sample_is_divided_without_remainder(counts: list[int], size: int) -> None:
    of = {Stratum("m", place): count for place, count in enumerate(counts)}
    parts = shares(of, size)
    assert sum(parts.values()) == min(size, sum(counts))
    assert all(0 <= parts[each] <= of[each] for each in of)
    assert size < len(of) or all(parts.values())


LATENCY = Latency(first_token=LogNormal(0.5, 2.0), speed=100.0)


def plan_and_truth(
    limits: Mapping[str, Any], *, slots: int, seed: int, max_tokens: int = 400
) -> tuple[Plan, SimulationResult]:
    """Plan 300 rows from the answers of 30 of them, and let the gateway ask them of a provider with these limits."""
    rng = Random(seed)
    config = config_of(limits, slots)
    census = Census(config)
    trace = []
    for number in range(1, 301):
        size, output = rng.randrange(100, 900), min(max_tokens, LogNormal(120.0, 500.0).tokens(rng))
        seconds = LATENCY.draw(output, rng)
        request = request_of(number, prompt_of(size), max_tokens)
        census.add(request, asked_row(number, request, form="gateway"))
        trace.append(
            TracedRequest(
                at=0.0,
                model=MODELS[0],
                priority=RequestPriority.LOW,
                input_tokens=size,
                output_tokens=output,
                latency=seconds,
                max_tokens=max_tokens,
            )
        )
        if number % 10 == 0:
            stratum = stratum_of(MODELS[0], estimate_input(request))
            census.learned.add(stratum, Answer(size / estimate_input(request), float(output), seconds))
    census.close()
    return estimate(census, basis="sample"), simulate(trace, config, limits=dict(limits), seed=seed)


@pytest.mark.parametrize(
    ("limits", "slots", "key"),
    [
        ({"rpm": 120}, 64, "rpm"),
        ({"otpm": 10_000, "rpm": 10_000, "charge": "actual"}, 64, "otpm"),
        ({"rpm": 100_000}, 8, "concurrency"),
    ],
    ids=["rpm", "otpm", "slots"],
)
def test_the_real_time_and_cost_lie_in_the_range_that_was_planned(limits: dict[str, Any], slots: int, key: str) -> None:
    plan, truth = plan_and_truth(limits, slots=slots, seed=7)
    standard = plan.lane("standard")
    assert standard.seconds is not None
    assert standard.cost_usd is not None
    assert truth.cost_usd is not None
    assert plan.binding is not None
    assert plan.binding.key == key
    assert standard.seconds.p5 * 0.97 <= truth.duration <= standard.seconds.p95 * 1.03
    assert standard.cost_usd.p5 * 0.99 <= truth.cost_usd <= standard.cost_usd.p95 * 1.01
