"""The figures as tables: on the terminal, and as the page 00_docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.environments import peer_version
from bench.measure import STREAMS
from bench.results import OWN_SHARE, TITLES, Plan, Results, spread, title_of
from bench.scene import Scene
from bench.targets import targets_of
from rich.console import Console
from rich.table import Table

COMMAND = ".venv/bin/python 02_src/tests/bench/run.py"
COLUMNS = ["", "CPU a request, µs", "requests/s", "p50, ms", "p99, ms", "peak memory, MiB"]
FIRST = "first piece, ms after the server's"
PACKAGES = (
    "langchain-core",
    "langchain-openai",
    "langchain-anthropic",
    "openai",
    "anthropic",
    "aiohttp",
    "pydantic",
    "uvloop",
)
CPU_INFO = Path("/proc/cpuinfo")

Rows = list[list[str]]

HEAD = """# Benchmarks

What a request costs in the gateway, beside what it replaces and what others offer, measured in one run on one machine
against a local server. With a real provider, whose answer takes a second, all of these are small; they matter where one
process serves hundreds of agents.

This page is written by the command that measures:

```bash
make bench      # or: {command}
```

{date} · {machine} · Python {python} · {versions}

![Requests a second](pictures/speed.svg)
"""

METHOD = """## How it is measured

- Each measurement is a process of its own, kept to one core where the system allows that, so that memory and CPU
  belong to one subject; the server has another core. {rounds} rounds in which they take turns; given are the median
  and, in brackets, the smallest and largest value. The ratios among the targets are of these medians.
- At concurrency n, n callers ask one request at a time, each again as soon as it has its answer. Counted is what
  ends within {seconds:g} s, or within {waves:g} answers' time of a slow server, once every caller has had an answer.
  `abatch` and `batch` get lists of n, one after another, and each request of a list waits for the whole list.
- CPU is user and system time of the measuring process (`getrusage`). The server is another process, a bare asyncio
  protocol with one fixed answer.
- A request is a system message and a user message of 300 characters, built anew each time; the answer has 180. A long
  conversation has 21 messages of 400 characters.
- A stream has 40 pieces; its first one tells how long the server took for it, and the others come 2 ms later.
- The gateway has everything on: limits that never bind, queue, batches, journal, statistics, prices. TensorZero keeps
  no records here, and LiteLLM and any-llm keep no journal. No subject retries.
- Where a table says so, all of its subjects run on uvloop, which `llm-gateway` takes for its commands where it is
  installed.
- The own share is `LLMGateway.request` at concurrency 64 over a client that does nothing, building the `LLMRequest`
  included.
- Import: a fresh interpreter each time, the median of {imports}.
- Memory over many requests, and what is left after a shutdown: `make bench-memory`.
"""


def comparison(results: Results, scene: Scene, subjects: Sequence[str]) -> Rows:
    """Return the rows of one scene; those of streams have one column more."""
    measured = [(each, results.compared.get((each, scene))) for each in subjects]
    return [
        [
            TITLES[subject],
            spread(figures, lambda each: each.cpu_us),
            spread(figures, lambda each: each.per_second),
            spread(figures, lambda each: each.p50_ms, 2),
            spread(figures, lambda each: each.p99_ms, 2),
            spread(figures, lambda each: each.peak_mib),
            *([spread(figures, lambda each: each.first_ms, 2)] if subject in STREAMS else []),
        ]
        for subject, figures in measured
        if figures
    ]


def own_share(results: Results) -> Rows:
    return [[TITLES[each], spread(results.own_share[each], lambda figures: figures.cpu_us)] for each in OWN_SHARE]


def neighbours(results: Results) -> Rows:
    return [
        [TITLES[subject], f"{found.median_s:.3f}", f"{found.longest_s:.3f}"]
        for subject, found in results.neighbours.items()
    ]


def targets(results: Results) -> Rows:
    return [
        [
            each.name,
            f"{'at least' if each.at_least else 'at most'} {quantity(each.limit, each.unit)}",
            quantity(each.figure, each.unit),
            "reached" if each.reached else "**missed**",
        ]
        for each in targets_of(results)
    ]


def quantity(value: float, unit: str) -> str:
    """Write a value with as many digits as its unit deserves."""
    digits = {"µs": 0, "/s": 0}.get(unit, 2)
    return f"{value:,.{digits}f}{'' if unit[0] in '/ ' else ' '}{unit}"


def tables(results: Results) -> list[tuple[str, list[str], Rows]]:
    """Every table: its title, its columns and its rows."""
    slow = next(iter(results.neighbours.values()))
    by_scene: dict[tuple[Scene, bool], list[str]] = {}
    for subject, scene in results.compared:
        by_scene.setdefault((scene, subject in STREAMS), []).append(subject)
    return [
        ("Targets", ["", "target", "measured", ""], targets(results)),
        *[
            (
                f"{'Streams: ' if streamed else ''}{title_of(scene)}",
                [*COLUMNS, FIRST] if streamed else COLUMNS,
                comparison(results, scene, subjects),
            )
            for (scene, streamed), subjects in by_scene.items()
        ],
        ("The gateway's own share", ["", "CPU a request, µs"], own_share(results)),
        (
            f"What {slow.callers - 1} callers wait beside one whose call takes {slow.slow_s:.0f} s",
            ["", "median, s", "longest, s"],
            neighbours(results),
        ),
    ]


def show(results: Results) -> None:
    """Print the tables."""
    console = Console(width=max(Console().width, 120))  # the tables need it; a narrow terminal folds its lines
    for title, columns, rows in tables(results):
        table = Table(title=title, title_justify="left")
        table.add_column(columns[0], min_width=36)
        for name in columns[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*(cell.replace("`", "").replace("**", "") for cell in row))
        console.print(table)
    console.print(f"import llm_gateway: {median(results.imports_s):.3f} s")


def markdown(results: Results, plan: Plan, machine: str, versions: str) -> str:
    """Write the page."""
    head = HEAD.format(
        command=COMMAND,
        date=datetime.now(UTC).date(),
        machine=machine,
        python=platform.python_version(),
        versions=versions,
    )
    parts = [head]
    for title, columns, rows in tables(results):
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {title}\n\n{body}\n")
    parts.append(
        METHOD.format(
            rounds=plan.rounds,
            seconds=plan.seconds,
            waves=plan.waves,
            imports=plan.imports,
        )
    )
    return "\n".join(parts)


def machine() -> str:
    """Name the processor and the system, and how busy they are; ask before the run."""
    model = platform.processor() or platform.machine()
    if CPU_INFO.exists():
        named = [line for line in CPU_INFO.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    return (
        f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.machine()}, "
        f"load average before the run {os.getloadavg()[0]:.2f}"
    )


def versions(peers: Path | Mapping[str, Path] | None) -> str:
    """Name the packages that matter and their versions; `peers` are the interpreters of others, one is LiteLLM's."""
    by_name = {"litellm": peers} if isinstance(peers, Path) else dict(peers or {})
    ours = [f"{name} {version(name)}" for name in ("llm-gateway", *PACKAGES)]
    return ", ".join([*ours, *(peer_version(name, python) for name, python in by_name.items())])
