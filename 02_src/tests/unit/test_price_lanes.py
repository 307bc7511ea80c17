"""Which lanes there are for whom."""

from __future__ import annotations

import pytest

from llm_gateway import price_lanes
from llm_gateway.price_lanes import LaneChoice, PriceLane


@pytest.mark.parametrize(
    ("kind", "model", "lanes"),
    [
        ("openai", "gpt-5-mini", ("standard", "flex", "batch")),
        ("openai", "o4-mini-2025-04-16", ("standard", "flex", "batch")),
        ("openai", "gpt-4o-mini", ("standard", "batch")),
        ("openai", "gpt-5-pro", ("standard", "batch")),
        ("anthropic", "claude-haiku-5-5", ("standard", "batch")),
        ("ollama", "llama3.2", ("standard",)),
        ("groq", "gpt-5-mini", ("standard",)),
    ],
)
def test_a_lane_belongs_to_a_kind_of_provider_and_to_models(
    kind: str, model: str, lanes: tuple[PriceLane, ...]
) -> None:
    assert price_lanes.offered(kind, model) == lanes


@pytest.mark.parametrize(
    ("choice", "model", "is_low", "patience", "lane"),
    [
        ("standard", "gpt-5-mini", True, None, "standard"),
        ("flex", "gpt-5-mini", False, None, "flex"),  # who asks for it by name has it, whatever the class
        ("flex", "gpt-4o-mini", True, None, "standard"),
        ("batch", "gpt-4o-mini", True, None, "batch"),
        ("auto", "gpt-5-mini", True, None, "flex"),
        ("auto", "gpt-5-mini", False, None, "standard"),
        ("auto", "gpt-4o-mini", True, None, "batch"),  # nobody said that it may not take a day
        ("auto", "gpt-4o-mini", True, 86_399.0, "standard"),
        ("auto", "gpt-4o-mini", True, 86_400.0, "batch"),
    ],
)
def test_auto_takes_the_cheapest_lane_that_is_early_enough(
    choice: LaneChoice, model: str, *, is_low: bool, patience: float | None, lane: PriceLane
) -> None:
    assert price_lanes.chosen(choice, kind="openai", model=model, is_low=is_low, patience=patience) == lane


def test_a_lane_that_is_not_there_is_refused_in_one_sentence() -> None:
    assert price_lanes.refusal("auto", kind="ollama", model="llama3.2") is None
    assert price_lanes.refusal("batch", kind="anthropic", model="claude-haiku-5-5") is None
    assert price_lanes.refusal("flex", kind="anthropic", model="claude-haiku-5-5") == (
        "'flex' is a lane of OpenAI's reasoning models alone (o3, o4-mini, gpt-5 and later), and this is model "
        "'claude-haiku-5-5' of kind 'anthropic'; use one of 'auto', 'standard', 'batch'."
    )
    assert "OpenAI and Anthropic alone" in str(price_lanes.refusal("batch", kind="ollama", model="llama3.2"))


def test_every_discounted_lane_is_half_price() -> None:
    assert price_lanes.PRICE_SHARES == {"standard": 1.0, "flex": 0.5, "batch": 0.5}
    assert set(price_lanes.PRICE_SHARES) == set(price_lanes.LANES) < set(price_lanes.LANE_CHOICES)


def test_the_flex_models_are_those_of_the_price_list() -> None:
    from genai_prices.data_snapshot import get_snapshot

    listed = get_snapshot().find_provider(None, "openai", None).models
    flexible = {
        each.id
        for each in listed
        if any(variant.when == {"service_tier": "flex"} for variant in each.price_variants or ())
    }
    assert {each.id for each in listed if price_lanes.FLEX_MODEL.fullmatch(each.id)} == flexible
