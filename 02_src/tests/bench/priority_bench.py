"""What HIGH waits beside a flood of LOW, and how agents share: `python -m bench.priority_bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from bench import paper
from bench.environments import ROOT
from bench.measure import quantile
from bench.paced_run import AGENTS, PATIENCE_S, UNEVEN_S
from bench.paced_subjects import LITELLM_RETRIES, TITLES, Told
from bench.paced_suite import Outcome, jain, limited_server, run
from bench.report import machine, versions
from bench.stolen import Stolen
from bench.suite import litellm_python, say
from bench.workload import HIGH_EVERY_S, MEAN_TOKENS

REPORT = ROOT / "00_docs" / "benchmarks-priority.md"
RPM = 12_000.0
PERMITS = 3  # that HIGH may wait for
HIGH_MS = PERMITS * 60_000 / RPM
ROUNDS = 3
EVERY_ROUND = frozenset({"gateway", "paced_aiohttp"})  # the others wait so long that one is enough
TPM = 1_200_000.0  # of the agents
AGENTS_S = 20.0
FAIR = 0.98
SHARING = ("gateway", "langchain_limiter")


@dataclass(kw_only=True)
class Results:
    """Every run, by how LOW was offered and by subject."""

    high: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    agents: dict[str, list[Outcome]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 LOW each, for development; writes no report")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="of the gateway and of the pacer (default: %(default)s)"
    )
    parser.add_argument("--without-litellm", action="store_true", help="leave LiteLLM out; needs no network then")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    given = parser.parse_args()
    low = 1000 if given.quick else 5000
    litellm = None if given.without_litellm else litellm_python()
    here = machine()
    say(f"On {here}")
    results, stolen = Results(), Stolen()
    for number in range(given.rounds):
        measure(results, low, litellm, only=EVERY_ROUND if number else frozenset(TITLES))
    shown = tables(results, low)
    paper.show(shown)
    if not given.quick:
        page = paper.markdown(
            "Benchmarks: priority",
            head=HEAD.format(low=low),
            machine=here,
            versions=versions(litellm),
            tables=shown,
            method=METHOD.format(rounds=given.rounds, stolen=stolen.told()),
        )
        paper.write(given.report, page)


def offers(low: int) -> dict[str, int]:
    """Return the ways in which LOW is offered, and how many callers that takes."""
    return {"all at once": low, "through 64 agents": 64}


def measure(results: Results, low: int, litellm: Path | None, *, only: Collection[str]) -> None:
    """Run subjects once each way, taking turns."""
    for offered, callers in offers(low).items():
        for subject in TITLES:
            if subject not in only or (subject == "litellm_router" and litellm is None):
                continue
            python = litellm if subject == "litellm_router" and litellm else Path(sys.executable)
            with limited_server(rpm=RPM) as address:
                told = Told(url=f"{address}/v1", rpm=RPM, callers=callers, priorities=True)
                outcome = run(python, subject, told, address, requests=low, mode="high")
            results.high.setdefault((offered, subject), []).append(outcome)
            say(f"{offered}: {subject}: HIGH waits {outcome.high_ms(0.5):.0f} ms, p99 {outcome.high_ms(0.99):.0f} ms")
    for subject in SHARING:
        if subject not in only:
            continue
        with limited_server(tpm=TPM) as address:
            callers = sum(open_at_a_time for open_at_a_time, _ in AGENTS.values())
            told = Told(url=f"{address}/v1", tpm=TPM, mean_tokens=2 * MEAN_TOKENS, callers=callers)
            outcome = run(Path(sys.executable), subject, told, address, mode="agents", seconds=AGENTS_S)
        results.agents.setdefault(subject, []).append(outcome)
        say(f"agents: {subject}: Jain's index {jain(served(outcome)):.3f}")


def served(outcome: Outcome) -> list[int]:
    return [outcome.served.get(name, 0) for name in AGENTS]


def failures(outcome: Outcome) -> int:
    return sum(outcome.failed.values())


def tables(results: Results, low: int) -> list[paper.Table]:
    """Return the targets, a table for each way of offering, and the shares of the agents."""
    columns = ["", "p50, ms", "p99, ms", "in its own queue, p99, ms", "429s", "failed", "no answer in time"]
    found = [paper.promised(promises(results))]
    for offered in offers(low):
        rows = [
            [
                TITLES[subject],
                paper.spread([each.high_ms(0.5) for each in outcomes], 1),
                paper.spread([each.high_ms(0.99) for each in outcomes], 1),
                paper.spread([queued_ms(each) for each in outcomes], 1) if outcomes[0].high_queued else "",
                paper.spread([each.refused for each in outcomes], 0),
                paper.spread([failures(each) for each in outcomes], 0),
                paper.spread([each.offered - each.answered - failures(each) for each in outcomes], 0),
            ]
            for (of, subject), outcomes in results.high.items()
            if of == offered
        ]
        found.append(
            paper.Table(title=f"What HIGH waits beside {low:,} LOW offered {offered}", columns=columns, rows=rows)
        )
    rows = [
        [
            TITLES[subject],
            *(
                paper.spread([100 * each.served.get(name, 0) / sum(served(each)) for each in outcomes])
                for name in AGENTS
            ),
            paper.spread([jain(served(each)) for each in outcomes], 4),
        ]
        for subject, outcomes in results.agents.items()
    ]
    greed = [f"{open_at_a_time} open, %" for open_at_a_time, _ in AGENTS.values()]
    return [*found, paper.Table(title="Tokens served to four agents", columns=["", *greed, "Jain's index"], rows=rows)]


def queued_ms(outcome: Outcome) -> float:
    return quantile(outcome.high_queued, 0.99) * 1e3


def promises(results: Results) -> list[paper.Promise]:
    """Compare the gateway's worst round with what was promised."""
    found: list[paper.Promise] = []
    for (offered, subject), outcomes in results.high.items():
        if subject == "gateway":
            worst = max(each.high_ms(0.99) for each in outcomes)
            failed = max(each.offered - each.answered for each in outcomes)
            name = f"LOW {offered}"
            found += [
                paper.Promise(name=f"{name}: wait of HIGH, p99", limit=HIGH_MS, figure=worst, unit=" ms", digits=1),
                paper.Promise(name=f"{name}: requests failed", limit=0, figure=failed, digits=0),
            ]
    index = min(jain(served(each)) for each in results.agents["gateway"])
    return [
        *found,
        paper.Promise(name="Jain's index of served tokens", limit=FAIR, figure=index, digits=4, at_least=True),
    ]


HEAD = """
What a user waits whose request comes while {low:,} requests of no hurry are waiting, and how agents of very different
greed share one limit. The provider is a local server with true limits.

This page is written by the command that measures:

```bash
make bench-priority
```
"""

METHOD = f"""
- The server is that of the benchmarks of limits: a process of its own, a full bucket of 1 s, answers of 50 to 200 ms,
  its own count of 429s. The limit is {RPM:,.0f} requests a minute, told to every subject: a permit every
  {60_000 / RPM:.0f} ms.
- A HIGH request comes every {HIGH_EVERY_S * 1e3:.0f} ms until all LOW are answered, {PATIENCE_S:.0f} s at the most. Its
  wait is the time from when it was due to its answer, less the time that the server took for that: its own queue, the
  permits, and all the work of the client in between. Where it failed or had no answer by the end, its wait is
  infinite.
- "In its own queue" is what the receipt says of it, where there is one.
- LiteLLM gets `priority=1` and `priority=3` (it takes 0 for none), `rpm` of the deployment and {LITELLM_RETRIES}
  retries. The other peers know no priorities.
- The pacer is what a program writes for itself that knows its one limit and its one process: LOW goes out at even
  intervals that leave room for HIGH, HIGH goes at once; no queue, batches, fairness, retries, receipts or journal. Over
  raw aiohttp it shows what this machine lets any client in Python reach;
  {{stolen}}
- The agents' limit is {TPM:,.0f} tokens a minute. They have {", ".join(str(each) for each, _ in AGENTS.values())}
  requests open at a time, of {", ".join(f"{2 * mean:.0f}" for _, mean in AGENTS.values())} tokens in the mean; what is
  answered between {UNEVEN_S:.0f} s and {AGENTS_S:.0f} s counts.
- Each run is a process of its own; the subjects take turns; rounds of the gateway and of raw aiohttp: {{rounds}}, of
  the others: one. Targets are judged by the worst one: {HIGH_MS:.0f} ms are {PERMITS} permits.
"""


if __name__ == "__main__":
    main()
