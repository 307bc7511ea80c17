"""What a simulation found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_gateway.simulation.provider import Call
from llm_gateway.stats import Durations

SLOTS = "max_concurrency"
"""What binds where all calls that a model may have at once are under way."""
NOTHING_FULL = "pauses"
"""What binds where no limit is used up: pauses after errors and 429s, a rate that is still learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one request of the trace ended. Instants in seconds from the beginning."""

    at: float
    ended: float
    model: str
    priority: str  # "high", "normal" or "low"
    outcome: str  # "ok", or the error's kind
    wait: float  # in the queue and between attempts; of an answered one
    cost_usd: float | None  # None: it failed, or its price is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """The requests of one priority."""

    requests: int
    answered: int
    wait: Durations  # of those answered


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """One limit: how much of it was used, and how much waiting it caused."""

    owner: str  # "model 'x'" or "provider 'y'"
    key: str  # as in the configuration: "rpm", "tpm", …, or "max_concurrency"
    limit: float  # a minute or a day; calls at the same time
    used: float  # permits in all; seconds of calls for "max_concurrency"
    share: float  # of what the limit allows while requests came or were under way
    peak: float  # the same in the slice of time with the highest
    waited: float  # seconds that requests waited for it, all together
    over_time: Sequence[float]  # the share in each slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What happened in each slice of time, each list as long as there are slices."""

    width: float  # seconds of a slice
    came: Sequence[float]
    ended: Mapping[str, Sequence[float]]  # requests by "answered" and "failed"
    waiting: Mapping[str, Sequence[float]]  # how many waited, in the mean, by priority
    errors: Mapping[str, Sequence[float]]  # failed calls by kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What a simulation found out. Durations in seconds, cost in US dollars."""

    requests: int
    answered: int
    failures: Counter[str]  # requests that failed, by the error's kind
    duration: float  # from the beginning of the trace until the last request had ended
    trace_duration: float  # until the last request came
    classes: Mapping[str, ClassFigures]  # by "high", "normal" and "low"; those that came
    calls: int  # of the provider, those refused included
    errors: Counter[str]  # calls that failed, by the error's kind; "rate_limit" are the 429s
    input_tokens: int
    output_tokens: int
    cost_usd: float | None  # None: no price is known
    unpriced: int  # answers whose price is not known
    limits: Sequence[LimitUse]  # those waited for longest first
    paused: float  # seconds that requests waited while no limit was used up, all together
    timeline: Timeline
    endings: Sequence[Ending]  # of each request, in the order of the trace
    ledger: Sequence[Call]  # of the provider

    @property
    def refused(self) -> int:
        """Calls that met a 429."""
        return self.errors["rate_limit"]

    @property
    def waited(self) -> float:
        """Seconds that all requests waited, together."""
        return self.paused + sum(each.waited for each in self.limits)

    @property
    def binding(self) -> LimitUse | None:
        """The limit that most of the waiting was for; None where nothing waited, or mostly for no limit."""
        first = self.limits[0] if self.limits else None
        return first if first is not None and first.waited > self.paused else None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, without the single requests and calls."""
        binding = self.binding
        return {
            "requests": self.requests,
            "answered": self.answered,
            "failures": dict(self.failures),
            "duration": self.duration,
            "trace_duration": self.trace_duration,
            "wait": {
                name: {"requests": each.requests, "answered": each.answered, **each.wait.summary()}
                for name, each in self.classes.items()
            },
            "calls": self.calls,
            "refused": self.refused,
            "errors": dict(self.errors),
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
            "cost_usd": self.cost_usd,
            "unpriced": self.unpriced,
            "binding": None if binding is None else {"owner": binding.owner, "key": binding.key},
            "waited": self.waited,
            "paused": self.paused,
            "limits": [
                {
                    "owner": each.owner,
                    "key": each.key,
                    "limit": each.limit,
                    "used": each.used,
                    "share": each.share,
                    "peak": each.peak,
                    "waited": each.waited,
                }
                for each in self.limits
            ],
        }
