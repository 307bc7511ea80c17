"""What the figures of one run were to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from bench.measure import Figures
from bench.results import (
    ALONE,
    CLAUDE,
    CROWD,
    FLIGHT,
    LONG_CROWD,
    STREAM_ALONE,
    UVLOOP_CROWD,
    UVLOOP_FLIGHT,
    UVLOOP_STREAM,
    Results,
)
from bench.scene import Scene

OWN_SHARE_US, FIRST_OWN_SHARE_US = 60.0, 150.0
# % of what `ainvoke` costs: promised beside these microseconds, of another machine
OWN_PART, FROZEN_OWN_PART, LONG_PART = 100 * 150 / 2300, 100 * 60 / 2300, 100 * 800 / 5000
IMPORT_S = 0.3
NEIGHBOUR_S = 0.5
TIMES_LITELLM, TIMES_LANGCHAIN = 7.0, 4.0
TIMES_TENSORZERO_CPU = 1.2
LONG_US = 800.0
P99_TO_P50 = 2.0
FIRST_MS = 1.0
FROZEN = "gateway_request_frozen"  # who measures against the fastest turns that option on


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise: the figure must not exceed the limit, or, with `at_least`, not stay below it."""

    name: str
    limit: float
    figure: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def targets_of(results: Results) -> list[Target]:
    """Compare the figures with what was promised; what was not measured is not judged."""
    return [*_speed(results), *_cpu(results), *_tail(results), *_apart(results)]


def _cpu_us(figures: Figures) -> float:
    return figures.cpu_us


def _per_second(figures: Figures) -> float:
    return figures.per_second


def _beside(
    results: Results, scene: Scene, peer: str, of: Callable[[Figures], float], subject: str = "gateway_request"
) -> tuple[float, float] | None:
    """Return our figure and a peer's, None where one of them is missing."""
    ours, theirs = results.middle(subject, scene, of), results.middle(peer, scene, of)
    return None if ours is None or theirs is None else (ours, theirs)


def _speed(results: Results) -> Iterator[Target]:
    for api, scene in (("OpenAI", CROWD), ("Anthropic", CLAUDE)):
        for peer, name, times in (
            ("litellm_router", "LiteLLM's Router", TIMES_LITELLM),
            ("ainvoke", "`ainvoke` of LangChain's class", TIMES_LANGCHAIN),
        ):
            if found := _beside(results, scene, peer, _per_second):
                words = f"{api}: requests/s at concurrency 64, as a multiple of {name}"
                yield Target(name=words, limit=times, figure=found[0] / found[1], unit=" times", at_least=True)
    for scene, on in ((FLIGHT, ""), (UVLOOP_FLIGHT, ", both on uvloop")):
        if not (found := _beside(results, scene, "tensorzero", _per_second, FROZEN)):
            continue
        words = f"512 calls in flight of 500 ms on one core, `freeze = true`: requests/s; the limit is TensorZero's{on}"
        yield Target(name=words, limit=found[1], figure=found[0], unit="/s", at_least=True)


def _cpu(results: Results) -> Iterator[Target]:
    for scene in (ALONE, CROWD):
        if found := _beside(results, scene, "ainvoke", _cpu_us):
            words = f"CPU a request at concurrency {scene.concurrency}; the limit is that of `ChatOpenAI.ainvoke`"
            yield Target(name=words, limit=found[1], figure=found[0], unit="µs")
    for scene, on in ((CROWD, ""), (UVLOOP_CROWD, ", both on uvloop")):
        if found := _beside(results, scene, "tensorzero", _cpu_us, FROZEN):
            words = f"CPU a request at concurrency 64, as a multiple of TensorZero's, with `freeze = true`{on}"
            yield Target(name=words, limit=TIMES_TENSORZERO_CPU, figure=found[0] / found[1], unit=" times")
    yield from _own_share(results)
    long = results.middle(FROZEN, LONG_CROWD, _cpu_us)
    if long is not None:
        words = "CPU a request with a conversation of 21 messages of 400 characters, concurrency 64, `freeze = true`"
        yield Target(name=words, limit=LONG_US, figure=long, unit="µs")
        if bare := results.middle("ainvoke", LONG_CROWD, _cpu_us):
            words = "The same as a part of what `ChatOpenAI.ainvoke` costs with it"
            yield Target(name=words, limit=LONG_PART, figure=100 * long / bare, unit=" %")


def _own_share(results: Results) -> Iterator[Target]:
    own = results.own_share.get("nothing_with_journal")
    if not own:
        return
    middle = median(each.cpu_us for each in own)
    bare = results.middle("ainvoke", CROWD, _cpu_us)
    if bare is not None:
        words = "The gateway's own share, everything on, as a part of what `ChatOpenAI.ainvoke` costs"
        yield Target(name=words, limit=OWN_PART, figure=100 * middle / bare, unit=" %")
    yield Target(name="The gateway's own share, everything on", limit=FIRST_OWN_SHARE_US, figure=middle, unit="µs")
    if frozen := results.own_share.get("nothing_frozen"):
        words = "The gateway's own share, everything on, with `freeze = true`"
        figure = median(each.cpu_us for each in frozen)
        if bare is not None:
            part = f"{words}, as a part of what `ChatOpenAI.ainvoke` costs"
            yield Target(name=part, limit=FROZEN_OWN_PART, figure=100 * figure / bare, unit=" %")
        yield Target(name=words, limit=OWN_SHARE_US, figure=figure, unit="µs")


def _tail(results: Results) -> Iterator[Target]:
    for scene, on in ((CROWD, ""), (UVLOOP_CROWD, ", on uvloop")):
        ratio = results.middle(FROZEN, scene, lambda each: each.p99_ms / each.p50_ms)
        if ratio is not None:
            words = f"p99 as a multiple of p50 at concurrency 64, with `freeze = true`{on}"
            yield Target(name=words, limit=P99_TO_P50, figure=ratio, unit=" times")
    for scene, on in ((STREAM_ALONE, ""), (UVLOOP_STREAM, ", both on uvloop")):
        found = _beside(results, scene, "raw_stream", lambda each: each.first_ms, "gateway_stream")
        if found:
            words = f"First piece of a stream, later than with raw aiohttp{on}"
            yield Target(name=words, limit=FIRST_MS, figure=found[0] - found[1], unit="ms")


def _apart(results: Results) -> Iterator[Target]:
    if results.imports_s:
        yield Target(name="`import llm_gateway`", limit=IMPORT_S, figure=median(results.imports_s), unit="s")
    if neighbours := results.neighbours.get("gateway_request"):
        words = f"Longest wait of the {neighbours.callers - 1} neighbours of a call of {neighbours.slow_s:.1f} s"
        yield Target(name=words, limit=NEIGHBOUR_S, figure=neighbours.longest_s, unit="s")
