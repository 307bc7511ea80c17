"""What limits and order cost in CPU and memory: `python -m bench.cost_bench`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench import paper
from bench.cost_run import ARRIVE, WAITING, Flood, Order
from bench.environments import ROOT
from bench.limits_redis import GOAL, PROCESSES, SECONDS, Shared, measured
from bench.report import machine, versions
from bench.suite import output, say

REPORT = ROOT / "00_docs" / "benchmarks-cost.md"
ROUNDS = 5
REQUESTS, TICKETS = 20_000, 100_000
CPU_US, STALL_S = 60.0, 1.0  # what was promised
FLOODS = {"callers": f"from as many callers, {ARRIVE:,} in a turn of the loop", "batch": "as one `batch()`"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, for development; writes no report")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    given = parser.parse_args()
    part = 10 if given.quick else 1
    here = machine()
    say(f"On {here}")
    orders: list[Order] = []
    floods: dict[str, list[Flood]] = {}
    for turn in range(1, 1 + (1 if given.quick else ROUNDS)):
        orders.append(Order(**run("order", REQUESTS // part)))
        for kind in FLOODS:
            floods.setdefault(kind, []).append(Flood(**run(kind, TICKETS // part)))
        say(f"round {turn}: {orders[-1]}, {[each[-1] for each in floods.values()]}")
    shared = measured()
    shown = tables(orders, floods, shared)
    paper.show(shown)
    if not given.quick:
        page = paper.markdown(
            "Benchmarks: cost of limits and order",
            head=HEAD,
            machine=here,
            versions=versions(None),
            tables=shown,
            method=METHOD,
        )
        paper.write(given.report, page)


def run(what: str, count: int) -> dict[str, Any]:
    """Measure in a fresh interpreter."""
    found: dict[str, Any] = json.loads(output([sys.executable, "-m", "bench.cost_run", what, str(count)]))
    return found


def tables(orders: list[Order], floods: dict[str, list[Flood]], shared: Shared) -> list[paper.Table]:
    """Return the targets, the CPU of a request, the floods, and what processes share."""
    both = [each.queue_us + each.limits_us for each in orders]
    promises = [
        paper.Promise(name="CPU a request, limits and order", limit=CPU_US, figure=median(both), unit=" µs", digits=0),
        *[
            paper.Promise(
                name=f"Longest stall while {found[0].tickets:,} requests queue, {FLOODS[kind]}",
                limit=STALL_S,
                figure=median(each.stall_s for each in found),
                unit=" s",
            )
            for kind, found in floods.items()
        ],
        paper.Promise(
            name=f"Calls let in a second, {PROCESSES} processes on the limits of one Redis",
            limit=GOAL,
            figure=shared.reservations,
            digits=0,
            at_least=True,
        ),
    ]
    through = [
        ["shares, lent to each process", f"{shared.reservations:,.0f}", f"{shared.scripts:,.0f}"],
        ["a script for each call", f"{shared.bare:,.0f}", f"{shared.bare:,.0f}"],
    ]
    cpu = [
        ["the queue: in, chosen, out, trued up", paper.spread([each.queue_us for each in orders], 1)],
        ["limits: estimate, reserve, learn, settle", paper.spread([each.limits_us for each in orders], 1)],
        ["both", paper.spread(both, 1)],
    ]
    waits = [
        [
            FLOODS[kind],
            paper.spread([each.queued_s for each in found]),
            paper.spread([each.stall_s for each in found]),
            paper.spread([each.cancel_stall_s for each in found]),
            paper.spread([each.bytes_a_ticket for each in found], 0),
        ]
        for kind, found in floods.items()
    ]
    title = f"{floods['callers'][0].tickets:,} requests that wait"
    columns = ["", "until all wait, s", "longest stall, s", "at the shutdown, s", "memory a request, bytes"]
    return [
        paper.promised(promises),
        paper.Table(title="CPU a request", columns=["", "µs"], rows=cpu),
        paper.Table(title=title, columns=columns, rows=waits),
        paper.Table(
            title=f"{PROCESSES} processes on the limits of one Redis",
            columns=["through", "calls let in a second", "scripts a second"],
            rows=through,
        ),
    ]


HEAD = """
What it costs to keep limits and an order, without any provider, in one process; and what several get from one Redis.

This page is written by the command that measures:

```bash
make bench-cost
```
"""

METHOD = f"""
- Each measurement is a process of its own; {ROUNDS} rounds; given are the median and, in brackets, the smallest and the
  largest value; targets are judged by the median. CPU is user and system time (`getrusage`).
- The queue: {REQUESTS:,} requests of 64 agents and three classes, log-normal in size, go through a queue in which
  {WAITING:,} wait all the time. Limits: the same requests are estimated, reserved, and settled by their usage, with
  limits of requests, tokens, input and output tokens that never refuse.
- {TICKETS:,} requests to a gateway with limits whose 64 slots are taken by calls that never end: from as many tasks,
  each of which awaits its answer, or as one list. The longest stall is how long a task that wakes up every 2 ms was
  kept waiting; "at the shutdown" while a shutdown without patience gives every caller its error.
- Memory is what the process holds more, the callers' tasks included, the requests themselves not.
- The Redis and the {PROCESSES} processes run on this machine for {SECONDS:.0f} s; each call takes permits of requests
  and of tokens, both beyond reach. `make bench-redis` measures that alone.
"""


if __name__ == "__main__":
    main()
