"""What a run of the benchmarks measures, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from bench.measure import Figures, Neighbours
from bench.scene import LONG, LONG_TEXT, Scene

TITLES = {
    "ainvoke": "`ainvoke` of LangChain's class, as it comes",
    "ainvoke_aiohttp": "`ChatOpenAI.ainvoke` over aiohttp",
    "abatch": "`abatch` of LangChain's class, as it comes",
    "raw_aiohttp": "raw aiohttp: a POST and JSON",
    "gateway_request": "`LLMGateway.request`, everything on",
    "gateway_request_sdk": 'the same with `transport = "sdk"`',
    "gateway_request_frozen": "the same with `freeze = true`",
    "gateway_batch": "`LLMGateway.batch`, everything on",
    "litellm_router": "LiteLLM `Router.acompletion`",
    "tensorzero": "TensorZero, embedded",
    "any_llm": "any-llm `acompletion`",
    "astream": "`ChatOpenAI.astream`, as it comes",
    "raw_stream": "raw aiohttp: lines and JSON",
    "gateway_stream": "`LLMGateway.stream`, everything on",
    "gateway_stream_sdk": 'the same with `transport = "sdk"`',
    "litellm_stream": "LiteLLM `Router.acompletion`, streamed",
    "tensorzero_stream": "TensorZero, embedded, streamed",
    "nothing_with_journal": "`LLMGateway.request`, everything on",
    "nothing_frozen": "the same with `freeze = true`",
    "nothing_on_uvloop": "the same with `freeze = true`, on uvloop",
    "nothing_without_journal": "`LLMGateway.request`, journal off",
    "bare_runnable": "of that, `Runnable.abatch` in lists of 32",
}
OURS = ("gateway_request", "gateway_request_sdk", "gateway_batch")
BARE = ("ainvoke", "raw_aiohttp")
PEERS = ("litellm_router", "tensorzero")
NEIGHBOURS = ("gateway_request", "abatch")

ALONE = Scene(concurrency=1)
CROWD = Scene()
CLAUDE = Scene(api="anthropic")
LONG_CROWD = Scene(long=True)
FLIGHT = Scene(concurrency=512, latency_ms=500)
STREAM_ALONE = Scene(concurrency=1, latency_ms=50)
STREAM_CROWD = Scene(latency_ms=500)
UVLOOP_CROWD = Scene(loop="uvloop")
UVLOOP_FLIGHT = Scene(concurrency=512, latency_ms=500, loop="uvloop")
UVLOOP_STREAM = Scene(concurrency=1, latency_ms=50, loop="uvloop")

OWN_SHARE = {
    "nothing_with_journal": ("nothing_with_journal", CROWD),
    "nothing_frozen": ("nothing_frozen", CROWD),
    "nothing_on_uvloop": ("nothing_frozen", UVLOOP_CROWD),
    "nothing_without_journal": ("nothing_without_journal", CROWD),
    "bare_runnable": ("bare_runnable", Scene(concurrency=32)),
}

Cells = tuple[tuple[Scene, tuple[str, ...]], ...]
COMPARED: Cells = (
    (ALONE, (*BARE, *OURS[:2], *PEERS)),
    (
        CROWD,
        (
            *("ainvoke", "ainvoke_aiohttp", "abatch", "raw_aiohttp", *OURS),
            *("gateway_request_frozen", *PEERS, "any_llm"),
        ),
    ),
    (CLAUDE, (*BARE, *OURS[:2], "litellm_router")),
    (LONG_CROWD, (*BARE, *OURS[:2], "gateway_request_frozen", *PEERS)),
    (FLIGHT, (*BARE, *OURS[:2], "gateway_request_frozen", *PEERS)),
    (UVLOOP_CROWD, (*BARE, "gateway_request", "gateway_request_frozen", "tensorzero")),
    (UVLOOP_FLIGHT, ("raw_aiohttp", "gateway_request", "gateway_request_frozen", "tensorzero")),
)
STREAMED: Cells = (
    (STREAM_ALONE, ("astream", "raw_stream", "gateway_stream", "gateway_stream_sdk", "tensorzero_stream")),
    (UVLOOP_STREAM, ("raw_stream", "gateway_stream", "tensorzero_stream")),
    (STREAM_CROWD, ("astream", "raw_stream", "gateway_stream", "litellm_stream", "tensorzero_stream")),
)
EVERY_SUBJECT = (*BARE, "abatch", *OURS, "gateway_request_frozen", *PEERS, "any_llm")
FULL: Cells = tuple(
    (
        Scene(concurrency=concurrency, latency_ms=latency_ms, long=long, api=api),
        # Beside TensorZero, OpenAI alone is measured.
        tuple(each for each in EVERY_SUBJECT if api == "openai" or each != "tensorzero"),
    )
    for api in ("openai", "anthropic")
    for latency_ms in (0, 500)
    for concurrency in (1, 64, 512)
    for long in (False, True)
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured. Durations in seconds."""

    rounds: int = 3
    compared: Cells = COMPARED
    streamed: Cells = STREAMED
    warm_up: float = 0.3
    seconds: float = 1.2
    waves: float = 5.0  # of a server that takes its time, where those are longer than `seconds`
    imports: int = 7
    callers: int = 32
    slow: float = 10.0

    def spans(self, scene: Scene) -> tuple[float, float]:
        """Return how long a scene warms up, and how long it is measured."""
        latency = scene.latency_ms / 1e3
        return max(self.warm_up, latency), max(self.seconds, self.waves * latency)


@dataclass(kw_only=True)
class Results:
    """Every figure of every round, in the order measured."""

    compared: dict[tuple[str, Scene], list[Figures]] = field(default_factory=dict)
    own_share: dict[str, list[Figures]] = field(default_factory=dict)
    imports_s: list[float] = field(default_factory=list)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)

    def middle(self, subject: str, scene: Scene, of: Callable[[Figures], float]) -> float | None:
        """Return the median of the rounds, None for what was not measured."""
        figures = self.compared.get((subject, scene))
        return median(of(each) for each in figures) if figures else None


def spread(figures: list[Figures], of: Callable[[Figures], float], digits: int = 0) -> str:
    """Write the median of some rounds, and their smallest and largest value."""
    values = [of(each) for each in figures]
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def title_of(scene: Scene) -> str:
    """Say what a scene is, in words."""
    api = "OpenAI" if scene.api == "openai" else "Anthropic"
    talk = f", {LONG} messages of {LONG_TEXT} characters" if scene.long else ""
    speed = f"a server that takes {scene.latency_ms} ms" if scene.latency_ms else "a server that answers at once"
    loop = ", on uvloop" if scene.loop == "uvloop" else ""
    return f"{api}{talk}, {speed}, concurrency {scene.concurrency}{loop}"
