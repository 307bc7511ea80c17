"""A plan as tables for a terminal of 80 columns, or for a pipe; everything it says is in words and figures."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_gateway.planning.plan import LanePlan, LimitPlan, Plan, Span
from llm_gateway.report.terminal import number_columns, summary_of, table_of
from llm_gateway.report.words import NOTHING, UNKNOWN, duration, short, shown
from llm_gateway.sentences import dollars

NAME_WIDTH = 34
MOST_LIMITS = 8
LITTLE = 0.02  # of the time, below which a second machine changes nothing


def render_plan(plan: Plan) -> RenderableType:
    """Return what `console.print` shows: a summary, then tables. Names stand as they are, without markup."""
    standard = plan.lane("standard")
    facts = [
        ("Rows", _rows(plan)),
        ("Repeated", _repeated(plan)),
        *((("Cache", _cached(plan)),) if plan.cached or plan.cached_repeats else ()),
        ("Answers", _basis(plan)),
        ("Cost", _range(standard.cost_usd, dollars)),
        ("Time", _range(standard.seconds, duration)),
        ("Binds", _binds(plan)),
        ("Machines", _machines(plan)),
    ]
    if plan.budget_usd is not None:
        facts.append(("Budget", _reach(plan, plan.budget_usd)))
    parts: list[RenderableType] = [summary_of(tuple(facts))]
    if plan.to_ask:
        parts += [_models(plan), _lanes(plan), _limits(plan)]
    return Group(*parts, *(Text(f"Note: {each}") for each in plan.notes))


def _range(span: Span | None, word: Callable[[float], str]) -> str:
    if span is None:
        return UNKNOWN
    return f"{word(span.p50)} (P50) to {word(span.p95)} (P95)"


def _rows(plan: Plan) -> str:
    parts = [f"{plan.to_ask:,} to ask"]
    if plan.ended:
        parts.append(f"{plan.ended:,} of the job have a result already")
    if free := plan.cached + plan.cached_repeats:
        parts.append(f"{free:,} answered by the cache")
    if plan.malformed:
        parts.append(f"{plan.malformed:,} malformed")
    return f"{plan.rows:,}: {', '.join(parts)}"


def _repeated(plan: Plan) -> str:
    if not plan.repeated:
        return "none asks what an earlier row asks"
    return f"{plan.repeated:,} ask what an earlier row asks, for {dollars(plan.repeated_usd)} of the cost"


def _cached(plan: Plan) -> str:
    parts = [f"{plan.cached:,} are there"] if plan.cached else []
    if plan.cached_repeats:
        parts.append(f"{plan.cached_repeats:,} will be, once an earlier row is answered")
    return f"{', '.join(parts)}; none is paid"


def _basis(plan: Plan) -> str:
    if not plan.answers:
        return "none known: lengths from max_tokens and a prior"
    source = "of a sample" if plan.basis == "sample" else "that the job has"
    told = f"lengths from {plan.answers:,} answers {source}"
    if plan.sample is not None:
        kept = ", kept for the run" if plan.sample.kept else ""
        told += f" ({plan.sample.answered:,} of {plan.sample.asked:,} now, {dollars(plan.sample.cost_usd)}{kept})"
    return told


def _binds(plan: Plan) -> str:
    binding = plan.binding
    if binding is None:
        return "nothing: all calls fit at once" if plan.to_ask else "nothing: there is nothing to ask"
    return f"{_name(binding)} in {binding.binds:.0%} of the draws"


def _name(limit: LimitPlan) -> str:
    names = {"concurrency": "slots", "cpu": "CPU", "learning": "slow start"}
    return f"{names.get(limit.key, limit.key)} of {shown(limit.owner, NAME_WIDTH)}"


def _machines(plan: Plan) -> str:
    seconds, second = plan.lane("standard").seconds, plan.second_machine
    if second is None or seconds is None:
        return NOTHING
    if second.p50 > seconds.p50 * (1.0 - LITTLE):
        return "a second one changes nothing"
    saved = 1.0 - second.p50 / seconds.p50
    return f"a second one saves {saved:.0%}: {_range(second, duration)}"


def _reach(plan: Plan, budget: float) -> str:
    if plan.reach is None:
        return f"{dollars(budget)}: how far it reaches is unknown, as the price is"
    likely, surely = plan.reach
    if surely >= plan.to_ask:
        return f"{dollars(budget)} is enough for all rows"
    return f"{dollars(budget)} reaches {likely:,} (P50) to {surely:,} (P95) of {plan.to_ask:,} rows"


def _models(plan: Plan) -> Table:
    table = table_of("Models: rows to ask, and tokens at P50 and P95")
    table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=NAME_WIDTH)
    number_columns(table, ("rows", "input", "output P50", "P95", "cost P50", "P95"))
    for each in plan.models:
        cost = (
            ["unknown", "unknown"]
            if each.cost_usd is None
            else [dollars(each.cost_usd.p50), dollars(each.cost_usd.p95)]
        )
        output = each.output_tokens
        cells = [f"{each.rows:,}", short(each.input_tokens.p50), short(output.p50), short(output.p95), *cost]
        table.add_row(Text(shown(each.model, NAME_WIDTH)), *map(Text, cells))
    return table


def _lanes(plan: Plan) -> Table:
    table = table_of("Price lanes, all rows")
    table.add_column("lane", no_wrap=True)
    number_columns(table, ("cost P50", "P95"))
    table.add_column("time")
    for each in plan.lanes:
        table.add_row(each.lane, *map(Text, (*_lane_cost(each), _lane_time(each))))
    return table


def _lane_cost(lane: LanePlan) -> tuple[str, str]:
    if not lane.rows:
        return NOTHING, NOTHING
    if lane.cost_usd is None:
        return UNKNOWN, UNKNOWN
    return dollars(lane.cost_usd.p50), dollars(lane.cost_usd.p95)


def _lane_time(lane: LanePlan) -> str:
    missing = ", ".join(shown(each) for each in lane.missing)
    if not lane.rows:
        return f"not there for {missing}"
    told = _range(lane.seconds, duration) if lane.seconds is not None else lane.note or UNKNOWN
    return f"{told}; not there for {missing}, whose rows stay in standard" if missing else told


def _limits(plan: Plan) -> Table:
    table = table_of("Limits: how long the rows would take if there were no other")
    table.add_column("limit", overflow="ellipsis", no_wrap=True, max_width=NAME_WIDTH)
    number_columns(table, ("allows", "takes", "binds"))
    table.add_column("known", no_wrap=True)
    for each in plan.limits[:MOST_LIMITS]:
        allows = NOTHING if each.limit is None else f"{each.limit:,.0f}"
        binds = f"{each.binds:.0%}" if each.binds else NOTHING
        table.add_row(*map(Text, (_name(each), allows, duration(each.seconds), binds, each.source)))
    return table
