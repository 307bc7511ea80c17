"""Token estimates: near the true count, cheap, and corrected by what models really use."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.models import LLMMessage, LLMRequest, LLMTool, LLMToolCall, TokenUsage
from llm_gateway.tokens import (
    FILE_TOKENS,
    IMAGE_TOKENS,
    PRIOR_OUTPUT,
    Cost,
    Estimator,
    RunningQuantile,
    estimate_input,
    estimate_text,
    estimate_tool,
)

COUNTED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "token_counts.json").read_text(encoding="utf-8")
)["texts"]
Role = Literal["system", "user", "assistant", "tool"]
ENGLISH = str(COUNTED["english"]["text"])


def say(role: Role, content: str | list[dict[str, Any]], **fields: Any) -> LLMMessage:
    return LLMMessage(role=role, content=content, **fields)


def request(*messages: LLMMessage, model: str = "m", **fields: Any) -> LLMRequest:
    return LLMRequest(model=model, messages=list(messages) or [say("user", ENGLISH)], **fields)


def used(tokens_in: int = 100, tokens_out: int = 50, cached: int = 0) -> TokenUsage:
    return TokenUsage(input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=cached)


# --- estimates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTED)
def test_an_estimate_is_within_a_quarter_of_the_tokenizers_count(name: str) -> None:
    assert estimate_text(COUNTED[name]["text"]) == pytest.approx(COUNTED[name]["tokens"], rel=0.25)


@pytest.mark.parametrize("name", ["english", "python", "json", "chinese", "base64", "log"])
def test_a_long_text_is_estimated_from_samples_as_well(name: str) -> None:
    text = "\n".join([COUNTED[name]["text"]] * 60)
    assert estimate_text(text) == pytest.approx(60 * COUNTED[name]["tokens"], rel=0.25)


def test_a_long_text_of_two_parts_is_sampled_in_both() -> None:
    halves = [COUNTED[name]["text"] * (20_000 // len(COUNTED[name]["text"])) for name in ("english", "chinese")]
    apart = sum(estimate_text(half) for half in halves)
    assert estimate_text("".join(halves)) == pytest.approx(apart, rel=0.25)


@given(text=st.text())
def test_any_text_has_an_estimate(text: str) -> None:
    assert 0 <= estimate_text(text) <= 4 * len(text)


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert estimate_text("\ud83d lone") > 0


def test_an_empty_prompt_has_its_delimiters() -> None:
    assert estimate_input(request(say("user", ""))) == 7


def test_every_message_adds_its_delimiters() -> None:
    one = estimate_input(request(say("user", ENGLISH)))
    two = estimate_input(request(say("system", ENGLISH), say("user", ENGLISH)))
    assert two == pytest.approx(2 * one, abs=4)


def test_tools_tool_calls_and_response_formats_count() -> None:
    plain = estimate_input(request())
    tool = LLMTool(
        name="search",
        description="Search the archive.",
        input_schema={"type": "object", "properties": {"query": {"type": "string"}}},
    )
    call = LLMToolCall(id="1", name="search", arguments={"query": "a rather long question " * 10})
    assert estimate_input(request(tools=[tool])) == round(plain + estimate_tool(tool))
    assert estimate_input(request(response_format=tool.input_schema)) > plain
    asked = say("assistant", "", tool_calls=[call])
    assert estimate_input(request(say("user", ENGLISH), asked)) > plain + 40


def test_pictures_and_files_have_a_fixed_count_whatever_their_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    paper = {"type": "file", "file": {"file_data": "A" * 100_000}}
    result = {"type": "tool_result", "content": [{"type": "text", "text": ENGLISH}, {"type": "image"}, "odd"]}
    alone = estimate_input(request(say("user", "")))
    assert estimate_input(request(say("user", [picture]))) == alone + IMAGE_TOKENS
    assert estimate_input(request(say("user", [paper]))) == alone + FILE_TOKENS
    text = [{"type": "text", "text": ENGLISH}]
    with_result = estimate_input(request(say("user", [result])))
    assert with_result == estimate_input(request(say("user", text))) + IMAGE_TOKENS


def test_a_block_of_an_unknown_kind_counts_by_its_json() -> None:
    block = {"type": "citation", "quote": ENGLISH}
    assert estimate_input(request(say("user", [block]))) >= estimate_input(request()) - 4


# --- what is charged ------------------------------------------------------------------------------------------------


def test_admission_is_charged_the_larger_of_input_and_max_tokens() -> None:
    estimator = Estimator()
    asked = request(max_tokens=5000)
    cost = estimator.expected(asked, "admission_max").cost
    assert (cost.requests, cost.output_tokens, cost.tokens) == (1.0, 5000.0, 5000.0)
    assert cost.input_tokens >= len(ENGLISH) / 4
    long = estimator.expected(request(max_tokens=5), "admission_max").cost
    assert long.tokens == long.input_tokens
    by_model = estimator.expected(request(), "admission_max", max_tokens=900).cost
    assert by_model.tokens == 900.0
    assert estimator.charged(asked, used(80, 20), "admission_max") == Cost(1.0, 80.0, 5000.0, 5000.0)


def test_without_max_tokens_admission_is_charged_input_and_a_guess() -> None:
    cost = Estimator().expected(request(), "admission_max").cost
    assert cost.tokens == cost.input_tokens + PRIOR_OUTPUT
    assert Estimator().charged(request(), used(80, 20), "admission_max") == Cost(1.0, 80.0, 20.0, 100.0)


def test_use_is_charged_input_and_the_expected_output() -> None:
    estimator = Estimator()
    cost = estimator.expected(request(), "actual").cost
    assert cost == Cost(1.0, estimate_input(request()), PRIOR_OUTPUT, estimate_input(request()) + PRIOR_OUTPUT)
    assert estimator.expected(request(max_tokens=10), "actual").cost.output_tokens == 10.0
    assert estimator.expected(request(), "actual", max_tokens=20).cost.output_tokens == 20.0


def test_input_read_from_a_cache_is_not_charged_where_use_is() -> None:
    assert Estimator().charged(request(), used(100, 50, cached=90), "actual") == Cost(1.0, 10.0, 50.0, 60.0)


# --- learning -------------------------------------------------------------------------------------------------------


def test_the_input_of_a_model_that_counts_otherwise_is_corrected() -> None:
    estimator = Estimator()
    rng = Random(1)
    raw = estimate_input(request())
    for _ in range(200):
        estimate = estimator.expected(request(), "actual")
        estimator.learn(request(), estimate, used(round(raw * 1.5 * rng.uniform(0.9, 1.1)), 50))
    corrected = estimator.expected(request(), "actual").cost.input_tokens
    assert 1.45 * raw < corrected < 1.7 * raw
    assert estimator.expected(request(model="other"), "actual").cost.input_tokens == raw


def test_few_calls_use_more_than_was_expected() -> None:
    estimator = Estimator()
    rng = Random(2)
    under, total_reserved, total_used = 0, 0.0, 0.0
    for number in range(2000):
        size = round(rng.lognormvariate(5.0, 0.8)) + 1
        estimate = estimator.expected(request(agent="a"), "actual")
        estimator.learn(request(agent="a"), estimate, used(100, size))
        if number >= 200:
            under += size > estimate.cost.output_tokens
            total_reserved += estimate.cost.output_tokens
            total_used += size
    assert under / 1800 == pytest.approx(0.3, abs=0.05)
    assert 0.95 < total_reserved / total_used < 1.35


def test_each_agent_has_its_own_size_of_answers_and_new_ones_their_models() -> None:
    estimator = Estimator()
    for _ in range(100):
        for agent, size in (("short", 20), ("long", 2000)):
            asked = request(agent=agent)
            estimator.learn(asked, estimator.expected(asked, "actual"), used(100, size))
    assert estimator.expected(request(agent="short"), "actual").cost.output_tokens == pytest.approx(20, rel=0.1)
    assert estimator.expected(request(agent="long"), "actual").cost.output_tokens == pytest.approx(2000, rel=0.1)
    assert 20 < estimator.expected(request(agent="new"), "actual").cost.output_tokens <= 2200


def test_usage_that_makes_no_sense_teaches_little() -> None:
    estimator = Estimator()
    estimate = estimator.expected(request(), "actual")
    estimator.learn(request(), estimate, used(0, 0))
    assert estimator.expected(request(), "actual") == estimate
    estimator.learn(request(), estimate, used(10**9, 1))
    assert estimator.expected(request(), "actual").cost.input_tokens <= 4 * estimate.raw_input


def test_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator, "REMEMBERED", 10)
    estimator = Estimator()
    for number in range(50):
        tool = LLMTool(name="t", description="d", input_schema={"type": "object", "properties": {}})
        asked = request(agent=f"agent {number}", tools=[tool])
        estimator.learn(asked, estimator.expected(asked, "actual"), used())
    assert len(estimator._outputs) == len(estimator._tools) == 10


def test_a_tool_is_counted_once() -> None:
    estimator = Estimator()
    tool = LLMTool(name="t", description="d" * 50, input_schema={"type": "object", "properties": {}})
    first = estimator.expected(request(tools=[tool]), "actual")
    assert estimator.expected(request(tools=[tool]), "actual") == first
    assert first.raw_input == estimate_input(request(tools=[tool]))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_a_running_quantile_follows_what_it_sees(share: float) -> None:
    quantile = RunningQuantile(share)
    rng = Random(3)
    for scale in (1.0, 30.0):
        below = 0
        for number in range(4000):
            value = scale * rng.lognormvariate(0.0, 0.5)
            below += number >= 1000 and value < quantile.value
            quantile.add(value)
        assert below / 3000 == pytest.approx(share, abs=0.03)
