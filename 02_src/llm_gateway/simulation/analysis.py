"""From the endings of requests and the provider's ledger to figures. Pure arithmetic, after the simulation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llm_gateway.models import RequestPriority
from llm_gateway.simulation.enforcement import PERIODS, LimitKey
from llm_gateway.simulation.provider import Call, SimulatedProvider
from llm_gateway.simulation.result import (
    SLOTS,
    ClassFigures,
    Ending,
    LimitUse,
    SimulationResult,
    Timeline,
)
from llm_gateway.simulation.slices import Slices, united
from llm_gateway.stats import Durations

MOST_SLICES = 120  # of a plot
WIDTHS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)  # seconds; longer ones double
FINE = 30  # parts of such a slice: those in which nobody waited say nothing of what was waited for
WINDOW = 4 * FINE  # parts that are looked at together, so that one large request is not a limit of its own
FULL = 0.5  # of a limit in use while requests wait, below which it is not what they wait for
USED_SLOTS = 0.9  # of max_concurrency: a tenth stays free for HIGH

Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """One limit of one model or account, and what tells its use."""

    owner: str
    key: str
    limit: float
    rate: float  # permits that it allows a second
    usable: float  # the share of it that the gateway lets itself use
    models: frozenset[str]  # whose requests wait for it
    uses: Sequence[tuple[float, float]]  # (instant, permits)
    spans: Sequence[Span]  # of calls, for slots alone

    def over(self, slices: Slices) -> list[float]:
        """Return the share of it that was in use in each slice."""
        for at, amount in self.uses:
            slices.add(at, amount)
        for start, end in self.spans:
            slices.add_span(start, end)
        return [amount / (self.rate * slices.width) for amount in slices.sums()]

    def total(self) -> float:
        """Return the permits used."""
        return sum(amount for _, amount in self.uses) + sum(end - start for start, end in self.spans)


def analyse(
    endings: Sequence[Ending],
    ledger: Sequence[Call],
    waits: Mapping[str, Sequence[Span]],
    capacities: Sequence[Capacity],
) -> SimulationResult:
    """Return the figures; `waits` are the spans in which requests waited, by "model/priority"."""
    duration = max((each.ended for each in endings), default=0.0)
    width = slice_width(duration)
    count = int(duration / width) + 1
    waited = _waited_for(waits, capacities, width, count)
    limits = [
        _use(capacity, Slices(width, count), duration, waited.get((capacity.owner, capacity.key), 0.0))
        for capacity in capacities
    ]
    usages = [call.usage for call in ledger if call.usage is not None]
    costs = [each.cost_usd for each in endings if each.cost_usd is not None]
    answered = sum(each.outcome == "ok" for each in endings)
    return SimulationResult(
        requests=len(endings),
        answered=answered,
        failures=Counter(each.outcome for each in endings if each.outcome != "ok"),
        duration=duration,
        trace_duration=max((each.at for each in endings), default=0.0),
        classes=_classes(endings),
        calls=len(ledger),
        errors=Counter(call.error for call in ledger if call.error is not None),
        input_tokens=sum(usage.input_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        cost_usd=sum(costs) if costs or not answered else None,
        unpriced=answered - len(costs),
        limits=sorted(limits, key=lambda each: (-each.waited, -each.share)),
        paused=waited.get(None, 0.0),
        timeline=_timeline(endings, ledger, waits, width, count),
        endings=endings,
        ledger=ledger,
    )


def slice_width(duration: float) -> float:
    """Return how long a slice of a plot lasts, in seconds."""
    width = next((width for width in WIDTHS if duration < width * MOST_SLICES), WIDTHS[-1])
    while duration >= width * MOST_SLICES:
        width *= 2
    return width


def wait_spans(endings: Sequence[Ending], ledger: Iterable[Call], ids: Sequence[str]) -> dict[str, list[Span]]:
    """Return the spans in which requests waited, by "model/priority"; `ids` are those of the endings' requests."""
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in ledger:
        calls[call.request.request_id].append(call)
    waits: dict[str, list[Span]] = defaultdict(list)
    for request_id, ending in zip(ids, endings, strict=True):
        since = ending.at
        for call in calls.get(request_id, ()):
            waits[f"{ending.model}/{ending.priority}"].append((since, call.began))
            since = ending.ended if call.ended is None else call.ended
        waits[f"{ending.model}/{ending.priority}"].append((since, max(since, ending.ended)))
    return {name: [span for span in spans if span[1] > span[0]] for name, spans in waits.items()}


def capacities_of(provider: SimulatedProvider) -> list[Capacity]:
    """Return every limit that was in force: of models, of accounts, and of calls at the same time."""
    found: list[Capacity] = []
    for name, meter in provider.meters.items():
        shared = name in provider.accounts
        calls = [call for call in provider.ledger if (call.account if shared else call.deployment) == name]
        models = frozenset(call.model for call in calls)
        found += [
            Capacity(
                owner=f"provider '{name}'" if shared else _named(models),
                key=quota.key,
                limit=quota.limit,
                rate=quota.limit / PERIODS[quota.key],
                usable=meter.limits.share(tokens=quota.key.endswith("tpm")),
                models=models,
                uses=list(_uses(calls, quota.key)),
                spans=(),
            )
            for quota in meter.quotas
        ]
    for deployment in provider.deployments:
        mine = (deployment.name, deployment.label)
        spans = [
            (call.began, call.ended)
            for call in provider.ledger
            if (call.model, call.deployment) == mine and call.ended is not None
        ]
        slots = deployment.settings.max_concurrency
        models = frozenset({deployment.name})
        found.append(
            Capacity(
                owner=_named(models),
                key=SLOTS,
                limit=slots,
                rate=slots,
                usable=USED_SLOTS,
                models=models,
                uses=(),
                spans=spans,
            )
        )
    return found


def _named(models: Iterable[str]) -> str:
    return " and ".join(f"model '{each}'" for each in sorted(models))


def _uses(calls: Iterable[Call], key: LimitKey) -> Iterator[tuple[float, float]]:
    for call in calls:
        if key in call.charged:
            yield call.began, call.charged[key]
        if key in call.produced and call.ended is not None:
            yield call.ended, call.produced[key]


def _waited_for(
    waits: Mapping[str, Sequence[Span]], capacities: Sequence[Capacity], width: float, count: int
) -> dict[tuple[str, str] | None, float]:
    """Return for how long requests waited for each limit, all together; None stands for no limit.

    Whoever waits in a window of time waits for what was used most of all that they need, in those parts of the window
    in which somebody waited.
    """
    fine = width / FINE, count * FINE
    shares = [each.over(Slices(*fine)) for each in capacities]
    waited: dict[tuple[str, str] | None, float] = defaultdict(float)
    for model in {name.rpartition("/")[0] for name in waits}:
        spans = [span for name, each in waits.items() if name.rpartition("/")[0] == model for span in each]
        area, busy = _sums(spans, *fine), _sums(united(spans), *fine)
        needed = [(each, share) for each, share in zip(capacities, shares, strict=True) if model in each.models]
        for start in range(0, len(area), WINDOW):
            places = [place for place in range(start, min(start + WINDOW, len(area))) if busy[place] > 0]
            if places:
                seconds = sum(busy[place] for place in places)
                name = _fullest(needed, places, seconds / fine[0])
                waited[name] += sum(area[place] for place in places)
    return waited


def _fullest(
    needed: Sequence[tuple[Capacity, Sequence[float]]], places: Sequence[int], slices: float
) -> tuple[str, str] | None:
    """Return which limit was used most in the slices at `places`, which were `slices` long; None if none was full."""
    used = [(sum(share[place] for place in places) / each.usable, each) for each, share in needed]
    share, fullest = max(used, key=lambda each: each[0], default=(0.0, None))
    return None if fullest is None or share < FULL * slices else (fullest.owner, fullest.key)


def _sums(spans: Iterable[Span], width: float, count: int) -> list[float]:
    slices = Slices(width, count)
    for start, end in spans:
        slices.add_span(start, end)
    return slices.sums()


def _use(capacity: Capacity, slices: Slices, duration: float, waited: float) -> LimitUse:
    over_time = capacity.over(slices)
    whole = capacity.rate * duration
    used = capacity.total()
    return LimitUse(
        owner=capacity.owner,
        key=capacity.key,
        limit=capacity.limit,
        used=used,
        share=used / whole if whole else 0.0,
        peak=max(over_time),
        waited=waited,
        over_time=over_time,
    )


def _classes(endings: Sequence[Ending]) -> dict[str, ClassFigures]:
    figures: dict[str, ClassFigures] = {}
    for priority in RequestPriority:
        name = priority.name.lower()
        mine = [each for each in endings if each.priority == name]
        answered = [each for each in mine if each.outcome == "ok"]
        wait = Durations()
        for each in answered:
            wait.add(each.wait)
        if mine:
            figures[name] = ClassFigures(requests=len(mine), answered=len(answered), wait=wait)
    return figures


def _timeline(
    endings: Sequence[Ending],
    ledger: Sequence[Call],
    waits: Mapping[str, Sequence[Span]],
    width: float,
    count: int,
) -> Timeline:
    came = Slices(width, count)
    ended = {name: Slices(width, count) for name in ("answered", "failed")}
    waiting: dict[str, Slices] = {}
    errors: dict[str, Slices] = {}
    for ending in endings:
        came.add(ending.at)
        ended["answered" if ending.outcome == "ok" else "failed"].add(ending.ended)
    for name, spans in waits.items():
        slices = waiting.setdefault(name.rpartition("/")[2], Slices(width, count))
        for start, end in spans:
            slices.add_span(start, end)
    for call in ledger:
        if call.error is not None:
            errors.setdefault(call.error, Slices(width, count)).add(call.ended or call.began)
    return Timeline(
        width=width,
        came=came.sums(),
        ended={name: slices.sums() for name, slices in ended.items()},
        waiting={name: [each / width for each in slices.sums()] for name, slices in waiting.items()},
        errors={name: slices.sums() for name, slices in errors.items()},
    )
