"""What a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llm_gateway.price_lanes import PriceLane

Basis = Literal["sample", "job", "prior"]
"""What the lengths of answers are taken from: a sample that this plan paid for, the answers that the job has, or
nothing that is known of this input."""


class Span(NamedTuple):
    """What a figure comes to: five times in a hundred less than `p5`, or more than `p95`."""

    p5: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The rows of one model that are to be asked."""

    model: str
    deployment: str  # "provider/model id" of its first deployment
    rows: int
    repeated: int  # of those: they ask what an earlier row asks
    input_tokens: Span
    output_tokens: Span  # in all
    cost_usd: Span | None  # in the standard lane; None: the price is unknown
    answers: int  # that its lengths are taken from; 0: nobody knows any
    lanes: tuple[PriceLane, ...]  # that its provider has for it


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """The same rows in one price lane. Models that have no such lane stay in the standard one."""

    lane: PriceLane
    rows: int  # of models that have it; 0: no model has
    missing: Sequence[str]  # models that have not
    cost_usd: Span | None  # of all rows; None: a price is unknown
    seconds: Span | None  # None: the provider promises no speed
    note: str | None  # what is known of the time instead


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPlan:
    """One limit, and how long the rows would take if there were no other."""

    owner: str  # "model 'x'", "provider 'y'", "this machine"
    key: str  # rpm, tpm, itpm, otpm, rpd, concurrency, learning, cpu
    limit: float | None
    source: str  # "configured", "told" by the provider, "measured" on this machine, "assumed"
    seconds: float  # in the median
    binds: float  # share of the draws in which it took longest


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFigures:
    """What the sample came to."""

    asked: int
    answered: int
    cost_usd: float | None  # None: a price is unknown
    kept: bool  # in the job's state: a run to the same output does not ask these rows again


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole plan. Times in seconds, money in US dollars."""

    rows: int
    malformed: int  # cannot be asked
    ended: int  # have a result in the job's state already
    cached: int  # have their answer in the cache; they cost nothing
    cached_repeats: int  # will have it there once an earlier row that asks the same is answered
    to_ask: int
    repeated: int  # of those
    repeated_usd: float | None  # what they cost, in the median
    basis: Basis
    answers: int
    sample: SampleFigures | None
    models: Sequence[ModelPlan]
    lanes: Sequence[LanePlan]
    limits: Sequence[LimitPlan]
    binding: LimitPlan | None  # None: all calls fit at once; it takes as long as one answer
    second_machine: Span | None  # seconds with two machines; None: nothing to ask
    shared: bool  # limits and slots are counted for all machines together
    budget_usd: float | None
    reach: tuple[int, int] | None  # rows that the budget reaches: at the cost of P50, and of P95
    notes: Sequence[str]

    def lane(self, name: PriceLane) -> LanePlan:
        """Return one lane."""
        return next(each for each in self.lanes if each.lane == name)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as dicts, lists, numbers and strings."""
        told: dict[str, Any] = _plain(self)
        told["adds_up"] = self.adds_up
        return told

    @property
    def adds_up(self) -> bool:
        """Whether each row is counted once."""
        free = self.malformed + self.ended + self.cached + self.cached_repeats
        return self.rows == free + self.to_ask == free + sum(each.rows for each in self.models)


def _plain(value: Any) -> Any:
    if isinstance(value, Span):
        return value._asdict()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
