"""The figures as tables: on the terminal, and as the page 00_docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.results import COMPARED, OWN_SHARE, TITLES, Plan, Results, spread, targets_of
from rich.console import Console
from rich.table import Table

COMMAND = ".venv/bin/python 02_src/tests/bench/run.py"
COLUMNS = ["", "CPU a request, µs", "requests/s", "p50, ms", "p99, ms", "peak memory, MiB"]
PACKAGES = ("langchain-core", "langchain-openai", "openai", "aiohttp", "pydantic", "genai-prices")
CPU_INFO = Path("/proc/cpuinfo")

Rows = list[list[str]]

HEAD = """# Benchmarks

What a request costs in the gateway, beside what it replaces, measured in one run on one machine against a local server
that answers at once. With a real provider, whose answer takes a second, all of these are small; they matter where one
process serves hundreds of agents.

This page is written by the command that measures:

```bash
make bench      # or: {command}
```

{date} · {machine} · Python {python} · {versions}
"""

METHOD = """## How it is measured

- Each measurement is a process of its own, so that memory and CPU belong to one subject; {rounds} rounds in which the
  subjects take turns; given are the median and, in brackets, the smallest and largest value.
- A run is {requests:,} requests after {warm_up} that are not counted. At concurrency n, n callers ask one request at a
  time; `abatch` and `batch` get lists of n, one after another, and each request of a list waits for the whole list.
- CPU is user and system time of the measuring process (`getrusage`), until all is written and closed. The server is
  another process, a bare asyncio protocol with one fixed answer.
- A request is a system message and a user message of 300 characters, built anew each time; the answer has 180.
- The gateway has everything on: queue, batches, journal, statistics, prices. No subject retries.
- The own share is `LLMGateway.request` at concurrency 64 over a client that does nothing, {own_requests:,} requests a
  run, building the `LLMRequest` included.
- Import: a fresh interpreter each time, the median of {imports}.
"""


def comparison(results: Results, concurrency: int) -> Rows:
    measured = [(each, results.compared.get((each, concurrency))) for each in COMPARED]
    return [
        [
            TITLES[subject],
            spread(figures, lambda each: each.cpu_us),
            spread(figures, lambda each: each.per_second),
            spread(figures, lambda each: each.p50_ms, 2),
            spread(figures, lambda each: each.p99_ms, 2),
            spread(figures, lambda each: each.peak_mib),
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
            f"{each.limit:,.2f} {each.unit}" if each.unit == "s" else f"{each.limit:,.0f} {each.unit}",
            f"{each.figure:,.3f} {each.unit}" if each.unit == "s" else f"{each.figure:,.0f} {each.unit}",
            "reached" if each.reached else "**missed**",
        ]
        for each in targets_of(results)
    ]


def tables(results: Results) -> list[tuple[str, list[str], Rows]]:
    """Every table: its title, its columns and its rows."""
    slow = next(iter(results.neighbours.values()))
    waits = ["", "median, s", "longest, s"]
    return [
        ("Targets", ["", "at most", "measured", ""], targets(results)),
        *[
            (f"Against a server that answers at once, concurrency {each}", COLUMNS, comparison(results, each))
            for each in results.concurrencies
        ],
        ("The gateway's own share", ["", "CPU a request, µs"], own_share(results)),
        (
            f"What {slow.callers - 1} callers wait beside one whose call takes {slow.slow_s:.0f} s",
            waits,
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
            requests=plan.requests,
            warm_up=plan.warm_up,
            own_requests=plan.own_requests,
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


def versions(litellm: Path | None) -> str:
    """Name the packages that matter and their versions."""
    found = [f"{name} {version(name)}" for name in ("llm-gateway", *PACKAGES)]
    if litellm is not None:
        ask = "from importlib.metadata import version; print(version('litellm'))"
        answer = subprocess.run([litellm, "-c", ask], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        found.append(f"litellm {answer.stdout.strip()}")
    return ", ".join(found)
