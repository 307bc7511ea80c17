"""From a census to a plan: cost and time by the bootstrap, the limit that binds, and what else could be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median

from llm_gateway.clients.base import Deployment
from llm_gateway.planning.answers import ENOUGH, Bootstrap, Level, Stratum
from llm_gateway.planning.capacity import Constraint, Told, Work, constraints
from llm_gateway.planning.census import Census, Kind, Sums
from llm_gateway.planning.plan import Basis, LanePlan, LimitPlan, ModelPlan, Plan, SampleFigures, Span
from llm_gateway.planning.rehearsal import rehearsed
from llm_gateway.price_lanes import BATCH_SECONDS, LANES, PRICE_SHARES, PriceLane, offered

DRAWS = 400  # replicates of the bootstrap
NOTICED = 1.1  # times the longest answer, below which no limit is felt

Pool = Stratum | str


@dataclass(slots=True)
class Draw:
    """What one replicate comes to."""

    works: dict[str, Work] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)  # by model, standard lane
    repeated: float = 0.0  # cost of the rows that ask what an earlier one asks


def estimate(
    census: Census,
    *,
    told: Told | None = None,
    basis: Basis = "prior",
    sample: SampleFigures | None = None,
    budget: float | None = None,
    spent: float = 0.0,
    notes: Sequence[str] = (),
    row_cpu: float | None = None,
) -> Plan:
    """Return the plan for what is to be asked. The same census and seed give the same plan.

    It may run an event loop of its own, so call it outside of one, in a coroutine by `asyncio.to_thread`.

    `told` are limits that answers told, `budget` US dollars for the whole job, of which `spent` are gone. `row_cpu` is
    what a row costs of one core of this machine, in seconds, if that was measured.
    """
    rows = _rows_by_model(census.kinds)
    draws = _draws(census)
    deployments = {model: census.deployments[model] for model in rows}
    limits: Sequence[Constraint] = constraints(
        census.config, deployments, told or {}, urgent=census.urgent, row_cpu=row_cpu
    )
    priced = all(census.prices[model].rates() is not None for model in rows)
    limits = _rehearsed(census, limits, draws, told or {})
    figures, binding, seconds = _times(limits, draws)
    to_ask = sum(rows.values())
    cost = span([sum(each.costs.values()) for each in draws]) if priced else None
    return Plan(
        rows=census.rows,
        malformed=census.malformed,
        ended=census.ended,
        cached=census.cached,
        cached_repeats=census.cached_repeats,
        to_ask=to_ask,
        repeated=sum(each.rows for each in census.repeated.values()),
        repeated_usd=median(each.repeated for each in draws) if priced else None,
        basis=basis if census.learned.count else "prior",
        answers=census.learned.count,
        sample=sample,
        models=[_model(census, model, number, draws) for model, number in rows.items()],
        lanes=[_lane(lane, deployments, draws, rows, seconds, priced=priced) for lane in LANES],
        limits=figures,
        binding=binding,
        second_machine=span([_longest(limits, each, machines=2) for each in draws]) if to_ask else None,
        shared=census.config.limits.redis_url is not None,
        budget_usd=budget,
        reach=None if budget is None or cost is None else _reach(max(0.0, budget - spent), cost, to_ask),
        notes=[*notes, *_notes(census, rows, limits, budget)],
    )


def span(values: Sequence[float]) -> Span:
    """Return the quantiles of some draws, each one of them."""
    found = sorted(values)

    def at(share: float) -> float:
        return found[min(len(found) - 1, int(share * len(found)))]

    return Span(at(0.05), at(0.5), at(0.95))


# --- draws --------------------------------------------------------------------------------------------------------


def _rows_by_model(kinds: Mapping[Kind, Sums]) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for kind, sums in kinds.items():
        rows[kind.stratum.model] += sums.rows
    return {model: number for model, number in sorted(rows.items()) if number}


def _draws(census: Census) -> list[Draw]:
    """Draw what each pool comes to, and add it up over all rows, again and again."""
    rng = Random(census.seed)  # noqa: S311 - a plan's chance is no secret
    pools: dict[Stratum, Pool] = {}
    sources: dict[Pool, Bootstrap] = {}
    rows: Counter[Pool] = Counter()
    for kind, sums in sorted(census.kinds.items(), key=lambda each: str(each[0])):
        pool, found = census.learned.pool(kind.stratum)
        pools[kind.stratum] = pool
        if pool not in sources:
            sources[pool] = Bootstrap(found)
        rows[pool] += sums.rows
    draws = []
    for _ in range(DRAWS):
        levels = {pool: source.draw(max(1, rows[pool]), rng) for pool, source in sources.items()}
        replicate = Draw()
        for kind, sums in census.kinds.items():
            if sums.rows:
                repeated = census.repeated.get(kind, Sums())
                _add(replicate, kind, sums, repeated, levels[pools[kind.stratum]])
        draws.append(replicate)
    return draws


def _add(replicate: Draw, kind: Kind, sums: Sums, repeated: Sums, level: Level) -> None:
    """Add the rows of one kind to a replicate, at the level drawn for them."""
    model = kind.stratum.model
    longest = sums.limit / sums.rows if kind.limit is not None else level.output
    output = min(level.output, longest)
    # An answer that is cut short takes less time, as far as its length took it.
    seconds = level.seconds if level.output <= longest else level.seconds * max(0.2, longest / level.output)
    work = replicate.works.setdefault(model, Work())
    work.calls += sums.rows
    work.input += sums.input * level.ratio
    work.output += sums.rows * output
    work.asked_output += sums.limit if kind.limit is not None else sums.rows * output
    work.admitted += sums.admitted_input * level.ratio + sums.admitted_limit
    if kind.limit is None:
        work.admitted += sums.rows * output
    work.seconds += sums.rows * seconds
    work.last = max(work.last, min(level.last, seconds * level.last / level.seconds) if level.seconds else level.last)
    cost = sums.input_usd * level.ratio + sums.output_rate * output
    replicate.costs[model] = replicate.costs.get(model, 0.0) + cost
    replicate.repeated += repeated.input_usd * level.ratio + repeated.output_rate * output


# --- parts of the plan ----------------------------------------------------------------------------------------------


def _model(census: Census, model: str, rows: int, draws: Sequence[Draw]) -> ModelPlan:
    first = census.deployments[model][0]
    known = census.prices[model].rates() is not None
    return ModelPlan(
        model=model,
        deployment=first.label,
        rows=rows,
        repeated=sum(sums.rows for kind, sums in census.repeated.items() if kind.stratum.model == model),
        input_tokens=span([each.works[model].input for each in draws]),
        output_tokens=span([each.works[model].output for each in draws]),
        cost_usd=span([each.costs[model] for each in draws]) if known else None,
        answers=census.learned.of_model(model),
        lanes=_lanes_of(census.deployments[model]),
    )


def _lanes_of(deployments: Sequence[Deployment]) -> tuple[PriceLane, ...]:
    """Return the lanes that every deployment of a model has."""
    found = [offered(each.endpoint.kind, each.settings.model) for each in deployments]
    return tuple(lane for lane in LANES if all(lane in each for each in found))


def _lane(
    lane: PriceLane,
    deployments: Mapping[str, list[Deployment]],
    draws: Sequence[Draw],
    rows: Mapping[str, int],
    seconds: Span,
    *,
    priced: bool,
) -> LanePlan:
    has = {model for model, mine in deployments.items() if lane in _lanes_of(mine)}
    share = PRICE_SHARES[lane]
    costs = [sum(cost * (share if model in has else 1.0) for model, cost in each.costs.items()) for each in draws]
    note = None
    if has and lane == "flex":
        note = "no shorter than standard; nobody promises how much longer"
    elif has and lane == "batch":
        note = f"within {BATCH_SECONDS / 3600:.0f} h of a batch's beginning, or its rest expires"
    return LanePlan(
        lane=lane,
        rows=sum(number for model, number in rows.items() if model in has),
        missing=[model for model in rows if model not in has],
        cost_usd=span(costs) if priced else None,
        seconds=seconds if lane == "standard" else None,
        note=note,
    )


def _longest(limits: Sequence[Constraint], replicate: Draw, machines: int = 1) -> float:
    return max((each.seconds(replicate.works, machines) for each in limits), default=0.0)


def _rehearsed(census: Census, limits: Sequence[Constraint], draws: Sequence[Draw], told: Told) -> Sequence[Constraint]:
    """Slow the limit that binds down by what a simulation says of it, if it is one of tokens."""
    binding = _times(limits, draws)[1]
    if binding is None:
        return limits
    place = [(each.owner, each.key) for each in limits].index((binding.owner, binding.key))
    slower = rehearsed(census, limits[place], limits, told)
    return [*limits[:place], slower, *limits[place + 1 :]]


def _times(limits: Sequence[Constraint], draws: Sequence[Draw]) -> tuple[list[LimitPlan], LimitPlan | None, Span]:
    """Return how long each limit takes, the one that binds most often, and how long all takes together."""
    first: Counter[int] = Counter()
    each_takes: list[list[float]] = [[] for _ in limits]
    longest = []
    for replicate in draws:
        took = [each.seconds(replicate.works) for each in limits]
        idle = max((work.last for work in replicate.works.values()), default=0.0)
        for place, seconds in enumerate(took):
            each_takes[place].append(seconds)
        longest.append(max(took, default=0.0))
        if took and longest[-1] > idle * NOTICED:
            first[took.index(longest[-1])] += 1
    figures = [
        LimitPlan(
            owner=limit.owner,
            key=limit.key,
            limit=limit.limit,
            source=limit.source,
            seconds=median(each_takes[place]),
            binds=first[place] / len(draws),
        )
        for place, limit in enumerate(limits)
    ]
    figures.sort(key=lambda each: (-each.binds, -each.seconds))
    binding = figures[0] if figures and figures[0].binds > 0 else None
    return figures, binding, span(longest)


def _reach(left: float, cost: Span, rows: int) -> tuple[int, int]:
    """Return how many rows a sum pays for, if they cost alike all along the input: at P50, and at P95."""

    def rows_for(amount: float) -> int:
        return rows if amount <= left else int(rows * left / amount)

    return rows_for(cost.p50), rows_for(cost.p95)


def _notes(census: Census, rows: Mapping[str, int], limits: Sequence[Constraint], budget: float | None) -> list[str]:
    """Return what a reader must know to judge the figures."""
    notes = []
    unpriced = [model for model in rows if census.prices[model].rates() is None]
    if unpriced:
        notes.append(f"The price of {_named(unpriced)} is unknown; set price in the section of the model.")
    guessed = [model for model in rows if not census.learned.of_model(model)]
    if guessed:
        notes.append(
            f"No answer of {_named(guessed)} is known: lengths and speeds are a guess, cut at max_tokens. "
            "--sample 30 measures them."
        )
    rough = [model for model in rows if 0 < census.learned.of_model(model) < ENOUGH]
    if rough:
        notes.append(f"Fewer than {ENOUGH} answers of {_named(rough)} are known: the range is rough.")
    unknown = sorted({model for each in limits if each.key == "learning" for model in each.parts})
    if unknown:
        notes.append(
            f"The limits of {_named(unknown)} are unknown: the time counts slots and a slow beginning alone. Set "
            "limits in the section of the model; a sample's answers may tell them too."
        )
    notes += [
        f"About {each.used:.0%} of {each.key} of {each.owner} can be used, as a simulation of some rows says: calls "
        "are large beside what it lets through at once."
        for each in limits
        if each.used < 1.0
    ]
    free = census.cached + census.cached_repeats
    if free and any("batch" in _lanes_of(census.deployments[model]) for model in rows):
        notes.append(
            f"A job does not look into the cache in the lane batch: {free:,} rows more are asked and paid there."
        )
    if budget is not None and census.without_limit:
        notes.append(
            f"{census.without_limit:,} rows have no max_tokens, and `run --budget` refuses such rows; set it on them "
            "or for the model."
        )
    return notes


def _named(models: Sequence[str]) -> str:
    return ", ".join(f"'{each}'" for each in models)
