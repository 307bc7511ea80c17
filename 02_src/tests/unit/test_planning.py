"""The arithmetic of a plan, on cases that can be worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llm_gateway.cli.rows import Malformed, RowReader, stored
from llm_gateway.cli.settings import Loaded
from llm_gateway.config import load_config
from llm_gateway.limits.learning import CAUTIOUS
from llm_gateway.planning import Census, Plan, Span, estimate, machine
from llm_gateway.planning.answers import Answer, Stratum, stratum_of
from llm_gateway.planning.capacity import DOUBLING, ROW_CPU
from llm_gateway.planning.census import Past, shares
from llm_gateway.planning.estimate import span
from llm_gateway.planning.machine import row_cpu

PROMPT = "a"
PRICE = {"input": 1.0, "output": 2.0}


def config_of(provider: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    section = {"provider": "own", "model": "m", "price": PRICE, "max_concurrency": 1000, **model}
    own = {"kind": "anthropic", "base_url": "http://127.0.0.1:9", **(provider or {})}
    return {"providers": {"own": own}, "models": {"m": section}}


def census_of(
    rows: list[dict[str, Any]], config: dict[str, Any], *, past: dict[int, Past] | None = None, sample: int = 0
) -> Census:
    loaded = load_config({**config, "logs": {"dir": False}})
    reader = RowReader(Loaded(config=loaded, file=None, only_model="m"))
    census = Census(loaded, sample=sample)
    for number, row in enumerate(rows, 1):
        found = reader.read(number, json.dumps(row).encode())
        assert found is not None
        new = stored(found)
        if isinstance(found, Malformed) or not census.is_new_id(new):
            census.refuse()
        else:
            census.add(found.request, new, (past or {}).get(number))
    census.close()
    return census


def plan_of(count: int, config: dict[str, Any], *, answer: Answer | None = None, **row: Any) -> Plan:
    census = census_of([{"prompt": PROMPT, **row}] * count, config)
    for _ in range(10 if answer else 0):
        assert answer is not None
        census.learned.add(Stratum("m", 0), answer)
    return estimate(census, basis="sample")


def limit(plan: Plan, key: str) -> float:
    return next(each.seconds for each in plan.limits if each.key == key)


def exactly(value: float) -> Any:
    return pytest.approx((value, value, value))


STEADY = Answer(1.0, 100.0, 2.0)


def test_answers_of_one_length_cost_what_they_cost() -> None:
    plan = plan_of(100, config_of(), answer=STEADY)
    (model,) = plan.models
    each = model.input_tokens.p50 / 100
    assert model.output_tokens == exactly(10_000)
    assert plan.lane("standard").cost_usd == exactly(100 * (each * 1.0 + 100 * 2.0) / 1e6)
    assert plan.lane("batch").cost_usd == exactly(100 * (each * 1.0 + 100 * 2.0) / 2e6)
    assert (plan.basis, plan.answers, model.answers) == ("sample", 10, 10)


def test_an_answer_is_no_longer_than_it_may_be() -> None:
    plan = plan_of(10, config_of(), answer=STEADY, max_tokens=40)
    assert plan.models[0].output_tokens == exactly(400)


def test_without_an_answer_the_longest_ones_are_reckoned_with() -> None:
    plan = plan_of(10, config_of(), max_tokens=5)
    assert plan.basis == "prior"
    assert plan.models[0].output_tokens.p95 == 50
    assert any("No answer of 'm' is known" in note for note in plan.notes)


def test_prompts_are_corrected_by_what_was_counted() -> None:
    true = plan_of(10, config_of(), answer=STEADY).models[0].input_tokens
    twice = plan_of(10, config_of(), answer=STEADY._replace(ratio=2.0)).models[0].input_tokens
    assert twice == pytest.approx([2 * each for each in true])


@pytest.mark.parametrize(
    ("limits", "key", "seconds"),
    [
        ({"rpm": 60}, "rpm", (80 - 0.99 * 0.75) / 0.99 + 2),
        ({"otpm": 600}, "otpm", (8000 - 9.7 * 0.75) / 9.7 + 2),
        ({"rpm": 60, "safety": 0.5, "burst_seconds": 10}, "rpm", (80 - 5) / 0.5 + 2),
        ({"rpd": 100}, "rpd", (80 - 0.6 * 0.99 * 100) / (0.99 * 100 / 86_400) + 2),
    ],
    ids=["rpm", "otpm", "safety", "rpd"],
)
def test_a_limit_takes_as_long_as_its_rate_says(limits: dict[str, Any], key: str, seconds: float) -> None:
    plan = plan_of(80, config_of(limits=limits), answer=STEADY)
    assert limit(plan, key) == pytest.approx(seconds)
    assert plan.binding is not None
    assert (plan.binding.owner, plan.binding.key, plan.binding.source) == ("model 'm'", key, "configured")
    assert plan.lane("standard").seconds == exactly(seconds)
    assert plan.second_machine == plan.lane("standard").seconds


def test_where_the_longest_answer_is_charged_it_counts_and_not_the_answer() -> None:
    limits = {"tpm": 60_000, "otpm": 600_000, "charge": "admission_max", "safety": 1}
    plan = plan_of(80, config_of(limits=limits), answer=STEADY, max_tokens=500)
    assert limit(plan, "tpm") == pytest.approx((40_000 - 750) / 1000 + 2)
    assert limit(plan, "otpm") == pytest.approx((40_000 - 7500) / 10_000 + 2)


def test_where_nobody_limits_an_answer_its_own_length_is_charged() -> None:
    config = config_of(limits={"tpm": 600, "charge": "admission_max", "safety": 1})
    config["providers"]["own"]["kind"] = "openai"
    plan = plan_of(80, config, answer=STEADY)
    each = plan.models[0].input_tokens.p50 / 80
    assert limit(plan, "tpm") == pytest.approx((80 * (each + 100) - 7.5) / 10 + 2)


def test_slots_begin_at_once_and_then_one_by_one() -> None:
    plan = plan_of(100, config_of(max_concurrency=9), answer=STEADY)
    assert plan.lane("standard").seconds == exactly((100 - 9) * 2 / 9 + 2)
    assert plan.second_machine == exactly((100 - 18) * 2 / 18 + 2)
    kept = plan_of(100, config_of(max_concurrency=20), answer=STEADY)  # two stay free for HIGH
    assert kept.lane("standard").seconds == exactly((100 - 18) * 2 / 18 + 2)
    high = plan_of(100, config_of(max_concurrency=20), answer=STEADY, priority="high")
    assert high.lane("standard").seconds == exactly((100 - 20) * 2 / 20 + 2)


def test_shared_slots_bind_two_machines_like_one() -> None:
    config = config_of(max_concurrency=9) | {"limits": {"redis_url": "redis://127.0.0.1:9"}}
    plan = plan_of(100, config, answer=STEADY)
    assert plan.shared
    assert plan.second_machine == plan.lane("standard").seconds


def test_what_fits_at_once_takes_as_long_as_its_longest_answer() -> None:
    plan = plan_of(5, config_of(), answer=STEADY._replace(seconds=3.0))
    assert plan.binding is None
    assert plan.lane("standard").seconds == pytest.approx((3.0,) * 3, rel=0.01)


def test_the_machine_binds_where_nothing_else_does_and_a_second_one_halves_it() -> None:
    plan = plan_of(500, config_of(max_concurrency=100_000), answer=STEADY)
    assert plan.binding is not None
    assert plan.binding.key == "cpu"
    assert plan.lane("standard").seconds == exactly(500 * ROW_CPU + 2)
    assert plan.second_machine == exactly(500 * ROW_CPU / 2 + 2)


def test_what_was_measured_of_this_machine_stands_in_the_place_of_what_is_assumed() -> None:
    census = census_of([{"prompt": PROMPT}] * 500, config_of(max_concurrency=100_000))
    census.learned.add(Stratum("m", 0), STEADY)
    cpu = next(each for each in estimate(census).limits if each.key == "cpu")
    slower = next(each for each in estimate(census, row_cpu=10 * ROW_CPU).limits if each.key == "cpu")
    assert (cpu.source, slower.source) == ("assumed", "measured")
    assert slower.seconds - cpu.seconds == pytest.approx(500 * 9 * ROW_CPU, rel=0.1)


def test_the_cpu_of_a_row_is_measured_where_there_are_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    census = census_of([{"prompt": PROMPT}] * 20, config_of())
    assert row_cpu(census) is None
    for name, value in {"WORTH_IT": 20, "FIRST": 2, "TIMED": 5}.items():
        monkeypatch.setattr(machine, name, value)
    measured = row_cpu(census)
    assert measured is not None
    assert 0.0 < measured < math.inf

    def full(**_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine, "TemporaryDirectory", full)
    assert row_cpu(census) is None


def test_what_a_limit_loses_to_large_calls_is_found_out_in_virtual_time() -> None:
    config = config_of(limits={"otpm": 6000}, max_concurrency=64)
    plan = plan_of(120, config, answer=STEADY)
    assert plan.binding is not None
    assert plan.binding.seconds > 1.2 * (12_000 - 97 * 0.75) / 97
    assert any("of otpm of model 'm' can be used" in note for note in plan.notes)


def test_a_limit_of_the_account_holds_for_all_its_models() -> None:
    config = config_of(provider={"limits": {"rpm": 60, "safety": 1}})
    config["models"]["n"] = {**config["models"]["m"], "model": "n"}
    census = census_of([{"prompt": PROMPT, "model": name} for name in "mn" * 100], config)
    for name in "mn":
        census.learned.add(Stratum(name, 0), STEADY)
        census.learned.add(Stratum(name, 0), STEADY)
    plan = estimate(census)
    assert limit(plan, "rpm") == pytest.approx(200 - 0.75 + 2)
    assert plan.binding is not None
    assert plan.binding.owner == "provider 'own'"


def test_deployments_share_the_rows_by_their_weights() -> None:
    more = [{"model": "m2", "weight": 3, "limits": {"rpm": 60, "safety": 1}}]
    plan = plan_of(400, config_of(deployments=more), answer=STEADY)
    assert limit(plan, "rpm") == pytest.approx(300 - 0.75 + 2)
    assert "own/m2" in next(each.owner for each in plan.limits if each.key == "rpm")


def test_a_told_limit_holds_where_it_is_the_lower_one() -> None:
    census = census_of([{"prompt": PROMPT}] * 100, config_of(limits={"rpm": 600}))
    plan = estimate(census, told={"own/m": {"requests": 60.0, "tokens": 1e9}})
    sources = {each.key: (each.limit, each.source) for each in plan.limits}
    assert sources["rpm"] == (60.0, "told")
    assert sources["tpm"] == (1e9, "told")


def test_unknown_limits_of_a_public_provider_are_found_out_slowly() -> None:
    census = census_of([{"prompt": PROMPT, "model": "gpt-4o-mini"}] * 100, {})
    plan = estimate(census)
    last = min(each.seconds for each in plan.limits if each.key == "cpu")
    assert limit(plan, "learning") == pytest.approx(
        DOUBLING * math.log2(1 + 100 * math.log(2) / (CAUTIOUS * DOUBLING)) + last - 100 * ROW_CPU, rel=0.2
    )
    assert any("The limits of 'gpt-4o-mini' are unknown" in note for note in plan.notes)


def test_an_unknown_price_is_unknown_and_never_nothing() -> None:
    config = config_of()
    del config["models"]["m"]["price"]
    census = census_of([{"prompt": PROMPT}] * 3, config)
    plan = estimate(census, budget=1.0)
    assert plan.models[0].cost_usd is None
    assert all(each.cost_usd is None for each in plan.lanes)
    assert (plan.reach, plan.repeated_usd) == (None, None)
    assert any("price of 'm' is unknown" in note for note in plan.notes)


def test_a_lane_that_a_model_has_not_is_told() -> None:
    rows = [{"prompt": PROMPT, "model": name} for name in ("gpt-4o-mini", "local-llama")]
    plan = estimate(census_of(rows, {"models": {"local-llama": {"price": PRICE}}}))
    assert plan.lane("flex").rows == 0
    assert plan.lane("batch").missing == ["local-llama"]
    assert plan.lane("batch").rows == 1
    standard, batch = plan.lane("standard").cost_usd, plan.lane("batch").cost_usd
    assert standard is not None
    assert batch is not None
    assert standard.p50 / 2 < batch.p50 < standard.p50


def test_the_flex_lane_costs_half_and_promises_no_time() -> None:
    config = {"models": {"gpt-4o-mini": {"model": "gpt-5-mini", "price": PRICE}}}
    plan = estimate(census_of([{"prompt": PROMPT, "model": "gpt-4o-mini"}] * 5, config))
    flex, standard = plan.lane("flex"), plan.lane("standard")
    assert flex.cost_usd is not None
    assert standard.cost_usd is not None
    assert flex.cost_usd == pytest.approx([each / 2 for each in standard.cost_usd])
    assert flex.seconds is None
    assert flex.note is not None


def test_a_budget_reaches_its_share_of_the_rows() -> None:
    census = census_of([{"prompt": PROMPT, "max_tokens": 9}] * 100, config_of())
    for _ in range(9):
        census.learned.add(Stratum("m", 0), Answer(1.0, 5.0, 1.0))
    cost = estimate(census).lane("standard").cost_usd
    assert cost is not None
    assert estimate(census, budget=cost.p50 / 2).reach == (50, 50)
    assert estimate(census, budget=cost.p50).reach == (100, 100)
    assert estimate(census, budget=1.0, spent=1.0).reach == (0, 0)


def test_a_budget_warns_of_rows_that_it_would_refuse() -> None:
    plan = estimate(census_of([{"prompt": PROMPT}] * 3, config_of()), budget=1.0)
    assert any("3 rows have no max_tokens" in note for note in plan.notes)


def test_a_row_that_asks_what_an_earlier_one_asks_is_told_and_paid() -> None:
    rows = [{"prompt": PROMPT, "request_id": "a"}, {"prompt": "b"}, {"prompt": PROMPT, "request_id": "c"}]
    plan = estimate(census_of(rows, config_of()))
    assert (plan.to_ask, plan.repeated, plan.models[0].repeated) == (3, 1, 1)
    assert plan.repeated_usd is not None
    assert plan.repeated_usd > 0


def test_an_id_that_stands_twice_is_malformed_as_in_a_run() -> None:
    plan = estimate(census_of([{"prompt": "a", "request_id": "x"}, {"prompt": "b", "request_id": "x"}], config_of()))
    assert (plan.rows, plan.to_ask, plan.malformed) == (2, 1, 1)
    assert plan.adds_up


def test_what_has_ended_teaches_and_is_not_planned_again() -> None:
    past = {1: Past((10, 100, 2.0)), 2: Past(None)}
    census = census_of([{"prompt": f"p{number}"} for number in range(5)], config_of(), past=past)
    plan = estimate(census, basis="job")
    assert (plan.ended, plan.to_ask, plan.answers, plan.basis) == (2, 3, 1, "job")
    assert any("Fewer than 5 answers" in note for note in plan.notes)


def test_an_empty_input_has_an_empty_plan() -> None:
    plan = estimate(census_of([], config_of()))
    assert (plan.rows, plan.binding, plan.second_machine) == (0, None, None)
    assert plan.lane("standard").seconds == Span(0, 0, 0)


def test_a_stratum_is_a_model_and_a_length() -> None:
    assert [stratum_of("m", tokens).size for tokens in (0, 255, 256, 1023, 1024, 70_000)] == [0, 0, 1, 1, 2, 5]


def test_strata_get_their_share_and_at_least_one() -> None:
    counts = {Stratum("m", 0): 90, Stratum("m", 1): 9, Stratum("m", 2): 1}
    assert list(shares(counts, 30).values()) == [27, 2, 1]
    assert sum(shares(counts, 2).values()) == 2
    assert shares(counts, 1000) == counts


def test_a_span_holds_nine_draws_of_ten() -> None:
    assert span([float(each) for each in range(100)]) == Span(5.0, 50.0, 95.0)


def test_figures_for_programs_are_plain() -> None:
    told = plan_of(3, config_of(limits={"rpm": 1}), answer=STEADY).as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["adds_up"] is True
    assert set(told["lanes"][0]["cost_usd"]) == {"p5", "p50", "p95"}
