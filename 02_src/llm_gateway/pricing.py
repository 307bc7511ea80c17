"""What an answer costs in US dollars, and at which rates.

Prices come from the configuration (`[models.x.price]`) or else from genai-prices, whose list is part of its package:
no network. An unknown price is None, never 0.

The list holds for a deployment whose provider section bears the name of its kind ("openai", "anthropic", "groq", …),
whatever its `base_url`: a proxy in front of a provider does not change the provider. A section with a name of its own
is another company, or nobody's; it has the list's prices only where its `base_url` is the provider's public address.
So a local server gets no price from OpenAI because its model happens to be called like one of theirs.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llm_gateway.clock import utc_now
from llm_gateway.config import Endpoint, ModelSettings, PriceSettings
from llm_gateway.models import TokenUsage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

MILLION = 1_000_000
LOCAL_KINDS = frozenset({"ollama", "llamacpp"})  # nobody sells these


class Rates(NamedTuple):
    """US dollars for a million tokens. `input` is for those that were neither read from a cache nor written to one."""

    input: float
    output: float
    cache_read: float
    cache_write: float
    cache_write_1h: float  # for an hour, instead of the usual five minutes

    def cost(self, usage: TokenUsage) -> float:
        """US dollars for `usage`. Cached tokens are part of the input tokens and pay their own rate instead."""
        read, write = usage.cache_read_tokens, usage.cache_write_tokens
        # A server that counts its cached tokens apart, against the convention, must not earn the caller money.
        plain = max(0, usage.input_tokens - read - write)
        hour = min(usage.cache_write_1h_tokens, write)
        return (
            plain * self.input
            + read * self.cache_read
            + (write - hour) * self.cache_write
            + hour * self.cache_write_1h
            + usage.output_tokens * self.output
        ) / MILLION


class Priced(Protocol):
    """What a price belongs to: a model at an endpoint, as `clients.base.Deployment` is."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it runs."""

    @property
    def settings(self) -> ModelSettings:
        """What it is, and perhaps its price."""


class Price(Protocol):
    """The price of one deployment."""

    def cost(self, usage: TokenUsage, /) -> float | None:
        """US dollars for `usage`; None if the price is unknown. Never raises."""

    def rates(self) -> Rates | None:
        """Return today's rates, of the shortest prompts where they depend on length; None if they are unknown."""


class FixedPrice:
    """A price that the configuration states."""

    def __init__(self, settings: PriceSettings) -> None:
        read, write = settings.cache_read, settings.cache_write
        self._rates = Rates(
            input=settings.input,
            output=settings.output,
            cache_read=settings.input if read is None else read,
            cache_write=settings.input if write is None else write,
            cache_write_1h=settings.input if write is None else write,
        )

    def cost(self, usage: TokenUsage, /) -> float | None:
        """US dollars for `usage`; None where no float holds them."""
        return finite(self._rates.cost, usage)

    def rates(self) -> Rates:
        """Return the configured rates."""
        return self._rates


def finite(cost: Callable[[TokenUsage], float], usage: TokenUsage) -> float | None:
    """Return what `usage` costs; None where the sum is no finite number: nobody used that much."""
    try:
        dollars = cost(usage)
    except ArithmeticError:  # also those of Decimal, in which genai-prices computes
        return None
    return dollars if math.isfinite(dollars) else None


class UnknownPrice:
    """No price is known: of a local model, of a model newer than the list."""

    def cost(self, _usage: TokenUsage, /) -> None:
        """Return None."""

    def rates(self) -> None:
        """Return None."""


class ListPrice:
    """A price that genai-prices knows; it may depend on the date, the hour and the length of the prompt."""

    def __init__(self, model: ModelInfo, *, now: Callable[[], datetime] = utc_now) -> None:
        self._model = model
        self._now = now
        self._cards: dict[int, Card | None] = {}

    def cost(self, usage: TokenUsage, /) -> float | None:
        """US dollars for `usage` at this moment; None where no float holds them."""
        card = self._card()
        return None if card is None else finite(card.cost, usage)

    def rates(self) -> Rates | None:
        """Return the rates of this moment, of the shortest prompts."""
        card = self._card()
        return None if card is None else card.bands[0]

    def _card(self) -> Card | None:
        price = self._model.get_prices(self._now())
        key = id(price)  # the model owns its few prices and keeps them alive
        if key not in self._cards:
            self._cards[key] = read_card(price)
        return self._cards[key]


class Card:
    """One price of genai-prices, reduced to one multiplication a rate.

    Asking genai-prices itself costs 100 µs an answer, two thirds of all that the gateway may take. `starts` are prompt
    lengths; `bands[n]` holds for prompts longer than n of them, for all their tokens. `original` stands in where a
    price has parts that this form cannot express.
    """

    def __init__(self, starts: tuple[int, ...], bands: tuple[Rates, ...], original: ModelPrice | None) -> None:
        self.starts = starts
        self.bands = bands
        self.original = original

    def cost(self, usage: TokenUsage) -> float:
        """US dollars for `usage`."""
        if self.original is not None:
            return cost_by_list(self.original, usage)
        length = max(usage.input_tokens, usage.cache_read_tokens + usage.cache_write_tokens)
        return self.bands[bisect_left(self.starts, length)].cost(usage)


def price_of(deployment: Priced) -> Price:
    """Look up the price of a deployment; do it once, where its client is made.

    The very first lookup in the list imports genai-prices, some 0.3 s.
    """
    if deployment.settings.price is not None:
        return FixedPrice(deployment.settings.price)
    model = _find(deployment.endpoint, deployment.settings.model)
    if model is not None and deployment.settings.embedding:
        return _price_of_texts(model)
    return UnknownPrice() if model is None else ListPrice(model)


def _price_of_texts(model: ModelInfo) -> Price:
    """Return the price of a model that the list has rates of input alone for."""
    rate = model.get_prices(utc_now()).input_mtok
    try:
        return FixedPrice(PriceSettings(input=float(rate), output=0.0))  # type: ignore[arg-type]  # see below
    except TypeError:  # none at all, or one by the length of the prompt
        return ListPrice(model)


def _find(endpoint: Endpoint, model_id: str) -> ModelInfo | None:
    """Find a model in the list, if the list holds for this endpoint."""
    if endpoint.kind in LOCAL_KINDS:
        return None
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    try:
        provider = snapshot.find_provider(None, endpoint.kind, None)
        if endpoint.name != endpoint.kind and not re.match(provider.api_pattern, endpoint.base_url or ""):
            return None
        return snapshot.find_provider_model(model_id, provider, None, None)[1]
    except LookupError:
        return None


def read_card(price: ModelPrice) -> Card | None:
    """Reduce a price of genai-prices; None if it has no rate for a prompt's or an answer's tokens.

    The reduction proves itself: where it and genai-prices disagree on a sample of each band, the original is kept.
    """
    from genai_prices.types import TieredPrices

    if price.input_mtok is None or price.output_mtok is None:
        return None
    parts = [price.input_mtok, price.output_mtok]
    # What has no rate of its own is input like any other.
    parts += [price.input_mtok if part is None else part for part in (price.cache_read_mtok, price.cache_write_mtok)]
    parts.append(parts[-1] if price.cache_write_1h_mtok is None else price.cache_write_1h_mtok)
    tiered = [part for part in parts if isinstance(part, TieredPrices)]
    starts = tuple(sorted({tier.start for part in tiered for tier in part.tiers}))

    def rate(part: object, length: int) -> float:
        if not isinstance(part, TieredPrices):
            return float(part)  # type: ignore[arg-type]  # a Decimal; the library's types do not say so here
        reached = [tier.price for tier in part.tiers if length > tier.start]
        return float(reached[-1] if reached else part.base)

    lengths = [0, *(start + 1 for start in starts)]
    bands = tuple(Rates(*(rate(part, length) for part in parts)) for length in lengths)
    card = Card(starts, bands, None)
    samples = [_sample(length) for length in lengths]
    agreed = all(math.isclose(card.cost(each), cost_by_list(price, each), rel_tol=1e-12) for each in samples)
    return card if agreed else Card(starts, bands, price)


def _sample(length: int) -> TokenUsage:
    """Make a usage in which every kind of token counts, and of which no two kinds count alike."""
    return TokenUsage(
        input_tokens=length + 1009,
        output_tokens=211,
        cache_read_tokens=307,
        cache_write_tokens=401,
        cache_write_1h_tokens=103,
        reasoning_tokens=97,
    )


def cost_by_list(price: ModelPrice, usage: TokenUsage) -> float:
    """Let genai-prices itself do the sum, in US dollars. Takes 100 µs."""
    from genai_prices.types import Usage

    read, write = usage.cache_read_tokens, usage.cache_write_tokens
    counted = Usage(
        # genai-prices refuses details that exceed their whole.
        input_tokens=max(usage.input_tokens, read + write),
        output_tokens=max(usage.output_tokens, usage.reasoning_tokens),
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=min(usage.cache_write_1h_tokens, write),
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    return float(price.calc_price(counted)["total_price"])
