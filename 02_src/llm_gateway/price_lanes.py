"""Price lanes: which ones there are, which provider has which for what model, and what they cost.

The standard lane answers at once at the full price. The flex lane answers a little later, each request by itself, at
half the price. The batch lane answers many requests together, within a day, at half the price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

PriceLane = Literal["standard", "flex", "batch"]
"""The lane that a call was made in."""

LaneChoice = Literal["auto", "standard", "flex", "batch"]
"""The lane that is asked for. "auto" is for LOW alone: the cheapest one that is there and early enough."""

LANES: tuple[PriceLane, ...] = get_args(PriceLane)
LANE_CHOICES: tuple[LaneChoice, ...] = get_args(LaneChoice)

PRICE_SHARES: Mapping[PriceLane, float] = {"standard": 1.0, "flex": 0.5, "batch": 0.5}
"""What part of the standard price each lane costs, input, output and cached tokens alike."""

UNSERVED = "unserved"  # the kind of a retry after a batch that ended without an answer

FLEX_SECONDS = 600.0  # what an answer of the flex lane may take; nearer to its deadline nobody asks for one
BATCH_SECONDS = 24 * 3600.0  # within which a provider answers a batch, or lets what is left expire

# As in OpenAI's price list of October 2026; a test compares it with that of genai-prices.
FLEX_MODEL = re.compile(
    r"(o3|o4-mini|gpt-5(\.[12])?|gpt-5-(mini|nano)|gpt-5\.4(-mini|-nano|-pro)?|gpt-5\.5(-pro)?"
    r"|gpt-5\.6-(luna|sol|terra)|gpt-6-(astra|luna|sol)|gpt-6\.1-(sol|terra))(-\d{4}-\d{2}-\d{2})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What one provider's batch may hold."""

    requests: int
    size: int  # bytes
    one_model: bool  # whether all its requests must ask the same model
    tokens_queued: bool  # whether the provider limits the input tokens of all batches that are under way


BATCH_LIMITS: Mapping[str, BatchLimits] = {
    "openai": BatchLimits(requests=50_000, size=200_000_000, one_model=True, tokens_queued=True),
    "anthropic": BatchLimits(requests=100_000, size=256_000_000, one_model=False, tokens_queued=False),
}
"""By the kind of a provider; others have no batches."""


def offered(kind: str, model: str) -> tuple[PriceLane, ...]:
    """Return the lanes that a provider of this kind has for its model of this name, the standard one first."""
    lanes: list[PriceLane] = ["standard"]
    if kind == "openai" and FLEX_MODEL.fullmatch(model):
        lanes.append("flex")
    if kind in BATCH_LIMITS:
        lanes.append("batch")
    return tuple(lanes)


def chosen(choice: LaneChoice, *, kind: str, model: str, is_low: bool, patience: float | None) -> PriceLane:
    """Return the lane for a request of a model at a provider of this kind.

    `patience` is the seconds that the answer may take; None: as long as it likes. What is there beats what was asked
    for: a lane that the provider does not have is the standard one, and `refusal` says so. So is one that may be late.
    """
    lanes = offered(kind, model)
    in_time = patience is None or patience >= FLEX_SECONDS
    if choice != "auto":
        return choice if choice in lanes and (in_time or choice != "flex") else "standard"
    if not (is_low and in_time):
        return "standard"
    if "flex" in lanes:  # as cheap as a batch, and sooner
        return "flex"
    return "batch" if "batch" in lanes and (patience is None or patience >= BATCH_SECONDS) else "standard"


def refusal(choice: LaneChoice, *, kind: str, model: str) -> str | None:
    """Return why `choice` cannot be had, as a sentence; None if it can."""
    if choice == "auto" or choice in offered(kind, model):
        return None
    if choice == "flex":
        who = "OpenAI's reasoning models alone (o3, o4-mini, gpt-5 and later)"
    else:
        who = "OpenAI and Anthropic alone"
    others = ", ".join(f"'{each}'" for each in ("auto", *offered(kind, model)))
    return f"'{choice}' is a lane of {who}, and this is model '{model}' of kind '{kind}'; use one of {others}."
