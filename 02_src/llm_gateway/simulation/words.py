"""A result's figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from llm_gateway.report.words import NOTHING, duration, short, shown
from llm_gateway.sentences import dollars
from llm_gateway.simulation.result import SLOTS, LimitUse, SimulationResult

PER = {"rpd": "a day", SLOTS: "at once"}


def traffic(result: SimulationResult) -> str:
    """Write how many requests came, and for how long."""
    return f"{_count(result.requests, 'request')} in {duration(result.trace_duration)}"


def finished(result: SimulationResult) -> str:
    """Write when the last request had ended."""
    behind = duration(result.duration - result.trace_duration)
    return f"after {duration(result.duration)}, {behind} after the last request came"


def calls(result: SimulationResult) -> str:
    """Write how many calls were made, and how many of them failed."""
    others = result.errors.total() - result.refused
    return f"{result.calls:,} ({result.refused:,} met a 429, {others:,} failed otherwise)"


def cost(result: SimulationResult) -> str:
    """Write what is known of the cost."""
    if not result.answered:
        return NOTHING
    known = dollars(result.cost_usd)
    return f"≥ {known}" if result.unpriced and result.cost_usd is not None else known


def binds(result: SimulationResult) -> str:
    """Write which limit most of the waiting was for."""
    binding = result.binding
    if binding is not None:
        return f"{named(binding)}: {percent(binding.waited / result.waited)} of the waiting was for it"
    if result.waited:
        return "no limit: requests waited after errors, or for a rate that was being learned"
    return "nothing: no request waited"


def named(use: LimitUse) -> str:
    """Write which limit it is: "rpm of model 'x'"."""
    return f"{use.key} of {shown(use.owner)}"


def allowed(use: LimitUse) -> str:
    """Write what a limit allows: "60 a minute"."""
    return f"{short(use.limit)} {PER.get(use.key, 'a minute')}"


def waiting(use: LimitUse, result: SimulationResult) -> str:
    """Write which part of the waiting was for a limit."""
    return percent(use.waited / result.waited) if use.waited else NOTHING


def remarks(result: SimulationResult) -> list[str]:
    """Return what a reader must know about what is missing from the figures."""
    if not result.unpriced:
        return []
    return [f"The price of {_count(result.unpriced, 'answer')} is not known; set [models.NAME] price."]


def rows_of_limits(result: SimulationResult) -> Sequence[tuple[str, ...]]:
    """Return (limit, what it allows, share used, highest share, part of the waiting) of each limit."""
    return [
        (named(use), allowed(use), percent(use.share), percent(use.peak), waiting(use, result)) for use in result.limits
    ]


def percent(share: float) -> str:
    """Write a share: "97%", "<1%", "0%"."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"  # noqa: PLR2004 - would read "0%"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
