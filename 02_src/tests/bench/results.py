"""What a run of the benchmarks found, and what it was meant to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from bench.measure import Figures, Neighbours

TITLES = {
    "ainvoke": "`ChatOpenAI.ainvoke`, as it comes",
    "ainvoke_aiohttp": "`ChatOpenAI.ainvoke` over aiohttp",
    "abatch": "`ChatOpenAI.abatch`, as it comes",
    "gateway_request": "`LLMGateway.request`, everything on",
    "gateway_batch": "`LLMGateway.batch`, everything on",
    "litellm_router": "LiteLLM `Router.acompletion`",
    "nothing_with_journal": "`LLMGateway.request`, everything on",
    "nothing_without_journal": "`LLMGateway.request`, journal off",
    "bare_runnable": "of that, `Runnable.abatch` in lists of 32",
}
COMPARED = ("ainvoke", "ainvoke_aiohttp", "abatch", "gateway_request", "gateway_batch", "litellm_router")
OWN_SHARE = ("nothing_with_journal", "nothing_without_journal", "bare_runnable")
NEIGHBOURS = ("gateway_request", "abatch")

OWN_SHARE_US = 150.0
IMPORT_S = 0.3
NEIGHBOUR_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int = 3
    requests: int = 1500  # a run of the comparison
    own_requests: int = 20_000  # a run of the gateway's own share
    warm_up: int = 256
    concurrencies: tuple[int, ...] = (1, 64)
    imports: int = 7
    callers: int = 32
    slow_s: float = 10.0


@dataclass(kw_only=True)
class Results:
    """Every figure of every round, in the order measured."""

    compared: dict[tuple[str, int], list[Figures]] = field(default_factory=dict)  # by subject and concurrency
    own_share: dict[str, list[Figures]] = field(default_factory=dict)
    imports_s: list[float] = field(default_factory=list)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)

    @property
    def concurrencies(self) -> list[int]:
        return sorted({concurrency for _, concurrency in self.compared})


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise: the figure must not exceed the limit."""

    name: str
    limit: float
    figure: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.figure <= self.limit


def spread(figures: list[Figures], of: Callable[[Figures], float], digits: int = 0) -> str:
    """Write the median of some rounds, and their smallest and largest value."""
    values = [of(each) for each in figures]
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def middle_cpu(figures: list[Figures]) -> float:
    return median(each.cpu_us for each in figures)


def targets_of(results: Results) -> list[Target]:
    """Compare the figures with what was promised."""
    targets = [
        Target(
            name=f"CPU a request of `LLMGateway.request` at concurrency {concurrency}, everything on; "
            "the limit is that of `ChatOpenAI.ainvoke` as it comes",
            limit=middle_cpu(results.compared["ainvoke", concurrency]),
            figure=middle_cpu(results.compared["gateway_request", concurrency]),
            unit="µs",
        )
        for concurrency in results.concurrencies
    ]
    own = middle_cpu(results.own_share["nothing_with_journal"])
    neighbours = results.neighbours["gateway_request"]
    return [
        *targets,
        Target(name="The gateway's own share of that, everything on", limit=OWN_SHARE_US, figure=own, unit="µs"),
        Target(name="`import llm_gateway`", limit=IMPORT_S, figure=median(results.imports_s), unit="s"),
        Target(
            name=f"Longest wait of the {neighbours.callers - 1} neighbours of a call of {neighbours.slow_s:.1f} s",
            limit=NEIGHBOUR_S,
            figure=neighbours.longest_s,
            unit="s",
        ),
    ]
