"""Our arithmetic and genai-prices' agree on every model of its list."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, Provider
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gateway.models import TokenUsage
from llm_gateway.pricing import ListPrice

NOW = datetime(2026, 11, 5, 12, tzinfo=UTC)


def models(*providers: str) -> list[tuple[Provider, ModelInfo]]:
    return [(each, model) for each in get_snapshot().providers if each.id in providers for model in each.models]


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    """Draw usage as providers report it: cached tokens within the input, reasoning within the output."""
    total = draw(st.integers(0, 3_000_000))
    read = draw(st.integers(0, total))
    write = draw(st.integers(0, total - read))
    output = draw(st.integers(0, 200_000))
    return TokenUsage(
        input_tokens=total,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=draw(st.integers(0, write)),
        reasoning_tokens=draw(st.integers(0, output)),
    )


def by_list(provider: Provider, model: ModelInfo, usage: TokenUsage, now: datetime) -> float:
    asked = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    return float(model.calc_price(asked, provider, genai_request_timestamp=now).total_price)


def check(provider: Provider, model: ModelInfo, usage: TokenUsage, now: datetime) -> None:
    cost = ListPrice(model, now=lambda: now).cost(usage)
    price = model.get_prices(now)
    if price.input_mtok is None or price.output_mtok is None:
        assert cost is None  # sound, images, search units: not sold by the token, or not both ways
    else:
        assert cost == pytest.approx(by_list(provider, model, usage, now), rel=1e-12, abs=0)


@given(usage=usages())
@settings(max_examples=20, deadline=None)
def test_every_model_of_openai_and_anthropic_costs_what_the_list_computes(usage: TokenUsage) -> None:
    for provider, model in models("openai", "anthropic"):
        check(provider, model, usage, NOW)


@given(
    sold=st.sampled_from([(provider, model) for provider in get_snapshot().providers for model in provider.models]),
    usage=usages(),
    now=st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
@settings(max_examples=300, deadline=None)
def test_any_model_on_any_day_costs_what_the_list_computes(
    sold: tuple[Provider, ModelInfo], usage: TokenUsage, now: datetime
) -> None:
    check(*sold, usage, now)


@given(usage=usages(), more=st.integers(0, 10_000))
@settings(deadline=None)
def test_more_output_never_costs_less(usage: TokenUsage, more: int) -> None:
    longer = usage.model_copy(update={"output_tokens": usage.output_tokens + more})
    for _, model in models("anthropic"):
        price = ListPrice(model, now=lambda: NOW)
        before, after = price.cost(usage), price.cost(longer)
        assert before is not None
        assert after is not None
        assert after >= before
