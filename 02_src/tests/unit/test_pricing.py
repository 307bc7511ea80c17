"""What an answer costs: the configuration's price, the list's, or none."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    Tier,
    TieredPrices,
)

from llm_gateway.clients.base import Deployment
from llm_gateway.config import endpoint_of, load_config
from llm_gateway.models import TokenUsage
from llm_gateway.pricing import ListPrice, Rates, price_of

MILLION_EACH = TokenUsage(input_tokens=1_000_000, output_tokens=1_000_000)


def deployment(*, section: dict[str, str] | None = None, **settings: Any) -> Deployment:
    """Make the deployment that a configuration of one model describes; `section` is that of its provider."""
    settings = {"provider": "openai", "model": "gpt-4o-mini"} | settings
    providers = {} if section is None else {settings["provider"]: section}
    config = load_config({"providers": providers, "models": {"m": settings}})
    return Deployment(name="m", endpoint=endpoint_of(config, settings["provider"], {}), settings=config.model("m"))


def cost_of(sold: Deployment, usage: TokenUsage) -> float | None:
    return price_of(sold).cost(usage)


def test_a_listed_model_costs_what_the_list_says() -> None:
    assert cost_of(deployment(), MILLION_EACH) == pytest.approx(0.15 + 0.60)


def test_a_dated_model_id_has_the_price_of_its_model() -> None:
    dated = deployment(provider="anthropic", model="claude-haiku-4-5-20251001")
    assert cost_of(dated, MILLION_EACH) == pytest.approx(1.0 + 5.0)


def test_cached_tokens_are_part_of_the_input_and_pay_their_own_rate() -> None:
    usage = TokenUsage(input_tokens=1_000_000, cache_read_tokens=600_000, cache_write_tokens=100_000)
    haiku = deployment(provider="anthropic", model="claude-haiku-4-5")
    assert cost_of(haiku, usage) == pytest.approx(0.3 * 1.0 + 0.6 * 0.1 + 0.1 * 1.25)


def test_writing_to_a_cache_for_an_hour_pays_its_own_rate() -> None:
    usage = TokenUsage(input_tokens=1_000_000, cache_write_tokens=500_000, cache_write_1h_tokens=200_000)
    haiku = deployment(provider="anthropic", model="claude-haiku-4-5")
    assert cost_of(haiku, usage) == pytest.approx(0.5 * 1.0 + 0.3 * 1.25 + 0.2 * 2.0)
    mine = deployment(price={"input": 1, "output": 2, "cache_write": 4})
    assert cost_of(mine, usage) == pytest.approx(0.5 * 1 + 0.5 * 4)


@pytest.mark.parametrize("price", [{}, {"price": {"input": 1, "output": 2}}])
def test_what_no_float_holds_has_no_cost_and_raises_nothing(price: dict[str, Any]) -> None:
    for count in (10**400, 10**310, -(10**400)):
        absurd = TokenUsage.model_construct(
            input_tokens=count, output_tokens=count, cache_read_tokens=0, cache_write_tokens=0,
            cache_write_1h_tokens=0, reasoning_tokens=0,
        )  # fmt: skip
        assert cost_of(deployment(**price), absurd) is None


def test_what_no_float_holds_has_no_cost_where_the_list_itself_does_the_sum() -> None:
    price = listed(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), requests_kcount=Decimal(5)))
    absurd = TokenUsage.model_construct(
        input_tokens=10**400, output_tokens=0, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0,
        reasoning_tokens=0,
    )  # fmt: skip
    assert price.cost(absurd) is None


def test_cached_tokens_counted_apart_from_the_input_never_lower_the_cost() -> None:
    usage = TokenUsage(input_tokens=10, cache_read_tokens=1_000_000)
    assert cost_of(deployment(), usage) == pytest.approx(0.075)


@pytest.mark.parametrize("provider", ["ollama", "llamacpp"])
def test_a_local_model_has_no_price(provider: str) -> None:
    local = deployment(provider=provider, model="gpt-4o-mini")
    assert cost_of(local, MILLION_EACH) is None
    assert price_of(local).rates() is None


def test_a_local_model_has_the_price_that_the_configuration_gives_it() -> None:
    local = deployment(provider="ollama", model="llama3.2", price={"input": 0.1, "output": 0.2})
    assert cost_of(local, MILLION_EACH) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "gpt-99-imaginary"), ("nosuchprovider", "m"), ("openai", "tts-1")]
)
def test_an_unknown_price_is_none_and_not_nothing(provider: str, model: str) -> None:
    unknown = deployment(provider=provider, model=model)
    assert cost_of(unknown, MILLION_EACH) is None
    assert cost_of(unknown, TokenUsage()) is None
    assert price_of(unknown).rates() is None


def test_a_price_of_the_configuration_goes_before_the_list() -> None:
    mine = deployment(price={"input": 1, "output": 2, "cache_read": 0.25, "cache_write": 4})
    assert price_of(mine).rates() == Rates(1, 2, 0.25, 4, 4)
    usage = TokenUsage(
        input_tokens=3_000_000, output_tokens=1_000_000, cache_read_tokens=1_000_000, cache_write_tokens=1_000_000
    )
    assert cost_of(mine, usage) == pytest.approx(1 + 2 + 0.25 + 4)


def test_a_configured_price_without_cache_rates_takes_its_input_rate_for_them() -> None:
    assert price_of(deployment(price={"input": 3, "output": 5})).rates() == Rates(3, 5, 3, 3, 3)


def test_a_configured_price_of_nothing_is_nothing_and_not_unknown() -> None:
    assert cost_of(deployment(price={"input": 0, "output": 0}), MILLION_EACH) == 0.0


def test_a_proxy_in_front_of_a_provider_does_not_change_its_prices() -> None:
    behind = deployment(section={"base_url": "http://127.0.0.1:8000/v1"})
    assert cost_of(behind, MILLION_EACH) == pytest.approx(0.75)


def test_a_server_of_ones_own_gets_no_price_because_its_model_is_called_like_a_listed_one() -> None:
    server = deployment(provider="mine", section={"kind": "openai", "base_url": "http://127.0.0.1:8000/v1"})
    assert cost_of(server, MILLION_EACH) is None


@pytest.mark.parametrize("address", [{}, {"base_url": "https://api.openai.com/v1"}])
def test_a_second_account_at_the_providers_public_address_has_the_lists_prices(address: dict[str, str]) -> None:
    second = deployment(provider="second", section={"kind": "openai", **address})
    assert cost_of(second, MILLION_EACH) == pytest.approx(0.75)


def test_a_provider_of_langchain_has_the_lists_prices_under_its_own_name() -> None:
    groq = deployment(provider="groq", model="llama-3.1-8b-instant")
    assert price_of(groq).rates() == Rates(0.05, 0.08, 0.05, 0.05, 0.05)


def listed(prices: ModelPrice | list[ConditionalPrice], now: datetime | None = None) -> ListPrice:
    """Make the price of a model that the list has just like that."""
    info = ModelInfo(id="m", match=ClauseEquals("m"), prices=prices)
    return ListPrice(info, now=lambda: now or datetime(2026, 1, 1, tzinfo=UTC))


def test_a_long_prompt_pays_the_rate_of_its_tier_for_all_its_tokens() -> None:
    price = listed(
        ModelPrice(
            input_mtok=TieredPrices(Decimal(1), [Tier(200_000, Decimal(2)), Tier(500_000, Decimal(4))]),
            output_mtok=TieredPrices(Decimal(10), [Tier(200_000, Decimal(20))]),
        )
    )
    assert price.cost(TokenUsage(input_tokens=200_000, output_tokens=1000)) == pytest.approx(0.2 + 0.01)
    assert price.cost(TokenUsage(input_tokens=200_001, output_tokens=1000)) == pytest.approx(0.400002 + 0.02)
    assert price.cost(TokenUsage(input_tokens=1_000_000, output_tokens=1000)) == pytest.approx(4 + 0.02)
    assert price.rates() == Rates(1, 10, 1, 1, 1)


def test_a_price_that_changes_on_a_day_changes_on_that_day() -> None:
    prices = [
        ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(5), output_mtok=Decimal(10))),
        ConditionalPrice(
            constraint=StartDateConstraint(date(2026, 8, 21)),
            prices=ModelPrice(input_mtok=Decimal(4), output_mtok=Decimal(8)),
        ),
    ]
    assert listed(prices, datetime(2026, 8, 20, 23, tzinfo=UTC)).cost(MILLION_EACH) == pytest.approx(15)
    assert listed(prices, datetime(2026, 8, 21, 1, tzinfo=UTC)).cost(MILLION_EACH) == pytest.approx(12)


def test_a_price_with_a_fee_for_each_request_is_left_to_the_list_itself() -> None:
    price = listed(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), requests_kcount=Decimal(5)))
    assert price.cost(MILLION_EACH) == pytest.approx(2.005)


def test_reasoning_with_a_rate_of_its_own_is_left_to_the_list_itself() -> None:
    price = listed(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(8), output_reasoning_mtok=Decimal(3)))
    usage = TokenUsage(output_tokens=1_000_000, reasoning_tokens=500_000)
    assert price.cost(usage) == pytest.approx(4 + 1.5)


def test_importing_the_package_does_not_import_the_price_list() -> None:
    code = "import sys, llm_gateway.pricing; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
