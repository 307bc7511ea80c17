"""How near to a limit each subject comes, and what is refused on the way: `python -m bench.limits_bench`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean

from bench import paper
from bench.environments import ROOT
from bench.paced_subjects import LITELLM_RETRIES, SHARE, SMALL_BUCKET, TITLES, Told
from bench.paced_suite import Outcome, limited_server, run
from bench.report import machine, versions
from bench.suite import litellm_python, say
from bench.workload import FASTEST_S, MEAN_TOKENS, SLOWEST_S, SPREAD, endless, least_seconds

REPORT = ROOT / "00_docs" / "benchmarks-limits.md"
CALLERS = 64
RPM, TPM, BURST_S = 6000.0, 1_500_000.0, 1.0
LEARNING_S = 60.0
KNOWN, UNKNOWN, REFUSED = 1.03, 1.10, 0.003  # what was promised


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One limit of the server, and what the subjects are told of it."""

    title: str
    rpm: float | None = None
    tpm: float | None = None
    told: bool = True
    learning: float = 0.0  # seconds of the gateway, before what counts
    subjects: tuple[str, ...] = ("gateway", "langchain_limiter", "litellm_router", "plain_retries")

    def least(self, requests: int, *, learned: bool) -> float:
        """Return the seconds that the limit and the last answer take at the least."""
        work = list(islice(endless(agents=CALLERS), requests))
        last = mean(each.answer_s for each in work)
        # After learning the bucket is empty, and one request of each other caller is still ahead.
        burst, ahead = (0.0, CALLERS - 1) if learned else (BURST_S, 0)
        if self.rpm:
            return last + least_seconds([1.0] * (requests + ahead), per_minute=self.rpm, burst_seconds=burst)
        return last + least_seconds([each.tokens for each in work], per_minute=self.tpm or 0.0, burst_seconds=burst)


SCENARIOS = (
    Scenario(title="A known limit of 6,000 requests a minute", rpm=RPM),
    Scenario(title="A known limit of 1,500,000 tokens a minute", tpm=TPM),
    Scenario(
        title="A limit of 6,000 requests a minute that nobody was told",
        rpm=RPM,
        told=False,
        learning=LEARNING_S,
        subjects=("gateway", "litellm_router", "plain_retries"),
    ),
)
Results = dict[tuple[Scenario, str], list[Outcome]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 requests each, for development; writes no report")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without-litellm", action="store_true", help="leave LiteLLM out; needs no network then")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    given = parser.parse_args()
    requests = 400 if given.quick else 2000
    litellm = None if given.without_litellm else litellm_python()
    here = machine()
    say(f"On {here}")
    results: Results = {}
    for _ in range(given.rounds):
        measure(results, requests, litellm)
    shown = tables(results, requests)
    paper.show(shown)
    if not given.quick:
        page = paper.markdown(
            "Benchmarks: limits",
            head=HEAD,
            machine=here,
            versions=versions(litellm),
            tables=shown,
            method=METHOD.format(requests=requests, rounds=given.rounds),
        )
        paper.write(given.report, page)


def measure(results: Results, requests: int, litellm: Path | None) -> None:
    """Run every subject once in every scenario, taking turns."""
    for scenario in SCENARIOS:
        for subject in scenario.subjects:
            if subject == "litellm_router" and litellm is None:
                continue
            python = litellm if subject == "litellm_router" and litellm else Path(sys.executable)
            seconds = scenario.learning if subject == "gateway" else 0.0
            with limited_server(rpm=scenario.rpm, tpm=scenario.tpm) as address:
                told = Told(
                    url=f"{address}/v1",
                    rpm=scenario.rpm if scenario.told else None,
                    tpm=scenario.tpm if scenario.told else None,
                    mean_tokens=2 * MEAN_TOKENS,
                    callers=CALLERS,
                    retries=2 if scenario.told else LITELLM_RETRIES,
                )
                outcome = run(python, subject, told, address, requests=requests, seconds=seconds)
            results.setdefault((scenario, subject), []).append(outcome)
            say(f"{scenario.title}: {subject}: {outcome.took:.1f} s, {outcome.refused} of {outcome.calls} refused")


def ratio(scenario: Scenario, subject: str, outcome: Outcome, requests: int) -> float:
    """Return the time taken as a multiple of the least."""
    learned = bool(scenario.learning) and subject == "gateway"
    return outcome.took / scenario.least(requests, learned=learned)


def tables(results: Results, requests: int) -> list[paper.Table]:
    """Return the targets and a table for each scenario."""
    columns = ["", "time ÷ least", "429s", "429s, % of calls", "requests failed"]
    found = [paper.promised(promises(results, requests))]
    for scenario in SCENARIOS:
        rows = [
            [
                TITLES[subject]
                + (", after a minute of learning" if scenario.learning and subject == "gateway" else ""),
                paper.spread([ratio(scenario, subject, each, requests) for each in outcomes], 3),
                paper.spread([each.refused for each in outcomes], 0),
                paper.spread([100 * each.refused_share for each in outcomes]),
                paper.spread([sum(each.failed.values()) for each in outcomes], 0),
            ]
            for (of, subject), outcomes in results.items()
            if of is scenario
        ]
        found.append(paper.Table(title=scenario.title, columns=columns, rows=rows))
    return [*found, first_minute(results)]


def first_minute(results: Results) -> paper.Table:
    """Return what the gateway did while it learned."""
    outcomes = [each for (scenario, subject), found in results.items() if scenario.learning for each in found
                if subject == "gateway"]  # fmt: skip
    row = [
        TITLES["gateway"],
        paper.spread([100 * (each.calls_before - each.refused_before) / (RPM * LEARNING_S / 60) for each in outcomes]),
        paper.spread([each.refused_before for each in outcomes], 0),
    ]
    columns = ["", "of the limit used, %", "429s"]
    return paper.Table(title="The minute in which the gateway learned that limit", columns=columns, rows=[row])


def promises(results: Results, requests: int) -> list[paper.Promise]:
    """Compare the gateway's worst round with what was promised."""
    found: list[paper.Promise] = []
    for scenario in SCENARIOS:
        outcomes = results[scenario, "gateway"]
        slowest = max(ratio(scenario, "gateway", each, requests) for each in outcomes)
        refused = 100 * max(each.refused_share for each in outcomes)
        failed = max(sum(each.failed.values()) for each in outcomes)
        limit, share = (KNOWN, 0.0) if scenario.told else (UNKNOWN, 100 * REFUSED)
        found += [
            paper.Promise(name=f"{scenario.title}: time ÷ least", limit=limit, figure=slowest, digits=3),
            paper.Promise(name=f"{scenario.title}: 429s", limit=share, figure=refused, unit=" %"),
            paper.Promise(name=f"{scenario.title}: requests failed", limit=0, figure=failed, digits=0),
        ]
    return found


HEAD = """
How near to a provider's limit each way of asking comes, and how much is refused on the way. The provider is a local
server with true limits; the least is the time that these limits take if nothing is lost.

This page is written by the command that measures:

```bash
make bench-limits
```
"""

METHOD = f"""
- The server is a process of its own: continuous buckets that hold {BURST_S:.0f} s of the limit, full at the start;
  answers take {FASTEST_S * 1e3:.0f} to {SLOWEST_S * 1e3:.0f} ms, seeded, the same for every subject. A request is
  charged when it arrives, its answer's tokens when it ends. A 429 says when the call would have passed, and is not
  charged. It counts the 429s itself, so that also those of hidden retries are seen. No header tells a limit.
- {{requests:,}} requests of {CALLERS} agents, each of which asks again when it has its answer. Inputs and outputs are
  log-normal, {MEAN_TOKENS:.0f} tokens each in the mean, spread {SPREAD}. One call before loads the libraries.
- The least: what all requests are charged, less the full bucket, at the limit's rate, and the mean time of an answer.
- Each run is a process of its own; the subjects take turns; rounds: {{rounds}}. With more than one, figures are medians
  with the smallest and the largest in brackets, and targets are judged by the worst round.
- `InMemoryRateLimiter` is set by hand to {SHARE:.0%} of the limit, a bucket of {SMALL_BUCKET}, and a look every 10 ms.
  It counts requests alone: the limit of tokens is told to it as requests of the mean size.
- LiteLLM: `routing_strategy="usage-based-routing-v2"`, `rpm` and `tpm` of the deployment, {LITELLM_RETRIES} retries.
- The SDK's retries are 2, its default, and {LITELLM_RETRIES} where nobody was told the limit.
- Where the limit is not told, the gateway has `limits = {{{{}}}}`. It was asked without end for a minute before; then,
  without a pause, the requests are counted, and the least supposes that the server's bucket is empty. A gateway that
  had not reached the limit left some in it, and can be below 1. The others learn nothing, so they begin at once.
"""


if __name__ == "__main__":
    main()
