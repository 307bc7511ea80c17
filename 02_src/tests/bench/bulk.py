"""What a durable job costs, how near to a limit it comes, and whether memory stays flat: `make bench-bulk`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench import paper
from bench.bulk_run import CALLS, CHUNK, MODEL, Took
from bench.environments import HOME, HOME_OF, ROOT, peers_found
from bench.paced_suite import limited_server, refused_at
from bench.plot import memory_plot
from bench.report import machine, versions
from bench.suite import output, say
from bench.workload import FILLER

REPORT = ROOT / "00_docs" / "benchmarks-bulk.md"
PICTURE = ROOT / "00_docs" / "pictures" / "bulk.svg"
ROWS, PAIR_ROWS, PEER_ROWS, MOST_ROWS = 100_000, 10_000, 3_000, 1_000_000
ROUNDS = 4  # even, so that each subject comes first as often as second
RPM = 36_000  # below what this asks on a slow machine, so that it binds
ANSWER_S, ANSWER_TOKENS = 0.02, 20
OVERHEAD, SHARE, GROWTH_MIB = 1.15, 0.95, 16.0  # what was promised
SIDE_BY_SIDE = ("durable", "plain", "abatch", "curator")
TITLES = {
    "durable": "`llm-gateway run`: a job that survives `kill -9`",
    "plain": "`LLMGateway.request` and a plain file",
    "alone": "`llm-gateway run` over a client in its own process",
    "abatch": f"`ChatOpenAI.abatch` in chunks of {CHUNK:,}",
    "curator": "bespokelabs-curator",
}


@dataclass(kw_only=True)
class Results:
    """What was measured, in rounds."""

    rows: int  # of the limited run
    pair_rows: int
    peer_rows: int
    pairs: list[tuple[Took, Took]] = field(default_factory=list)  # durable and plain, one after the other
    peers: dict[str, Took] = field(default_factory=dict)
    limited: Took | None = None
    refused: int = 0  # with 429, in that run
    longest: Took | None = None  # the run that shows memory, over a client in its own process


def main() -> int:
    """Measure, print, write the page; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the limited run (default: %(default)s)")
    parser.add_argument("--pair-rows", type=int, default=PAIR_ROWS, help="with and without durability (%(default)s)")
    parser.add_argument("--peer-rows", type=int, default=PEER_ROWS, help="side by side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(default: %(default)s)")
    parser.add_argument("--rpm", type=int, default=RPM, help="of the limited run (default: %(default)s)")
    parser.add_argument("--most-rows", type=int, default=MOST_ROWS, help="for memory; 0: leave out (%(default)s)")
    parser.add_argument("--without-peers", action="store_true", help="leave others out; needs no network then")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the plot to write (default: %(default)s)")
    given = parser.parse_args()
    peers = {} if given.without_peers else peers_found(say, ("curator",))
    here = machine()
    say(f"On {here}")
    results = Results(rows=given.rows, pair_rows=given.pair_rows, peer_rows=given.peer_rows)
    began = time.monotonic()
    measure(results, peers, rounds=given.rounds, rpm=given.rpm, most_rows=given.most_rows)
    promises = promises_of(results, given.rpm)
    shown = [paper.promised(promises), *tables(results, given.rpm)]
    paper.show(shown)
    say(f"Took {(time.monotonic() - began) / 60:.1f} minutes")
    method = METHOD.format(rounds=given.rounds, rows=given.rows, pair_rows=given.pair_rows, rpm=given.rpm)
    method += "" if "curator" in peers or given.without_peers else ABSENT
    page = paper.markdown(
        "Benchmarks: bulk jobs", head=HEAD, machine=here, versions=versions(peers), tables=shown, method=method
    )
    given.picture.write_text(memory_plot(lines_of(results), "rows"), encoding="utf-8")
    paper.write(given.report, page)
    return 0 if all(each.kept for each in promises) else 1


def measure(results: Results, peers: Mapping[str, Path], *, rounds: int, rpm: int, most_rows: int) -> None:
    """Take every measurement, subjects taking turns."""
    # On the checkout's disk: where /tmp is memory, a flush would cost nothing.
    HOME.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=HOME) as folder:
        home = Path(folder)
        for turn in range(1, rounds + 1):
            # The order changes, so that what slows the machine down by and by slows both.
            order = ("durable", "plain") if turn % 2 else ("plain", "durable")
            both = {subject: run(home, subject, results.pair_rows)[0] for subject in order}
            results.pairs.append((both["durable"], both["plain"]))
        results.limited, results.refused = run(home, "durable", results.rows, rpm=rpm)
        for subject in SIDE_BY_SIDE:
            python = peers.get(HOME_OF[subject]) if subject in HOME_OF else Path(sys.executable)
            if python is not None:
                try:
                    took, _ = run(home, subject, results.peer_rows, python=python)
                except subprocess.CalledProcessError as error:
                    say(f"{subject} failed and is left out: {error}")
                else:
                    results.peers[subject] = took
        if most_rows:
            results.longest, _ = run(home, "alone", most_rows)


def run(
    home: Path, subject: str, rows: int, *, python: Path = Path(sys.executable), rpm: int | None = None
) -> tuple[Took, int]:
    """Run one subject in a process of its own, against a server of its own; return also how many calls it refused."""
    source = home / f"{rows}.jsonl"
    if not source.exists():
        write_rows(source, rows)
    with limited_server(rpm=rpm) as address, TemporaryDirectory(dir=home) as folder:
        place = Path(folder) / "answers.jsonl"
        told = [f"--rpm={rpm}"] if rpm else []
        options = [f"--url={address}/v1", f"--source={source}", f"--output={place}", *told]
        found = json.loads(output([str(python), "-m", "bench.bulk_run", subject, *options]).splitlines()[-1])
        refused = refused_at(address)
    took = Took(**found | {"samples": [(done, mib) for done, mib in found["samples"]]})
    say(f"{subject}, {rows:,} rows: {took.per_second:,.0f} rows/s, {took.cpu_us:,.0f} µs CPU a row, {refused} 429s")
    return took, refused


def write_rows(path: Path, rows: int) -> None:
    """Write the input: every row another question."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"[[answer {ANSWER_S} {ANSWER_TOKENS}]] Sort review {number}: {FILLER * 3}"
            row = {"request_id": f"row-{number}", "model": MODEL, "messages": [{"role": "user", "content": text}]}
            file.write(json.dumps(row) + "\n")


# --- what it came to ----------------------------------------------------------------------------------------------


def growth(took: Took) -> float:
    """Return by how many MiB the last tenth of the rows is above the second."""
    second = [mib for done, mib in took.samples if 0.1 * took.rows <= done < 0.2 * took.rows]
    last = [mib for done, mib in took.samples if done >= 0.9 * took.rows]
    return median(last) - median(second) if second and last else 0.0


def share_of(took: Took, rpm: int) -> float:
    """Return the part of a limit that a run used; its bucket, full at the start, holds a second's worth more."""
    return took.rows / (rpm / 60 * (took.seconds + 1.0))


def shown_run(results: Results) -> Took:
    """Return the run whose memory is shown: the one with the most rows."""
    assert results.limited is not None
    return results.longest or results.limited


def lines_of(results: Results) -> dict[str, list[tuple[int, float]]]:
    """Return the lines of the plot; a run that was over before its output grew is a point."""
    took = shown_run(results)
    seen = [each for each in took.samples if each[0]]
    return {f"job of {took.rows:,} rows": seen or [(took.rows, took.peak_mib)]}


def memory_by_rows(took: Took) -> list[list[str]]:
    """Return what the process held as each tenth of the rows was done, and since the beginning at most."""
    found = []
    for tenth in range(1, 11):
        samples = [mib for done, mib in took.samples if (tenth - 1) * took.rows < 10 * done <= tenth * took.rows]
        so_far = [mib for done, mib in took.samples if 10 * done <= tenth * took.rows]
        cells = [f"{median(samples):,.1f}" if samples else "", f"{max(so_far):,.1f}" if so_far else ""]
        found.append([f"{took.rows * tenth // 10:,}", *cells])
    return found


def promises_of(results: Results, rpm: int) -> list[paper.Promise]:
    """Compare with what was promised."""
    cpu = median(durable.cpu_us / plain.cpu_us for durable, plain in results.pairs)
    wall = median(durable.seconds / plain.seconds for durable, plain in results.pairs)
    limited, memory = results.limited, shown_run(results)
    assert limited is not None
    rows = f"{memory.rows:,} rows"
    unanswered = sum(results.pair_rows - durable.rows for durable, _ in results.pairs) + results.rows - limited.rows
    return [
        paper.Promise(name="A durable job's CPU ÷ that without durability", limit=OVERHEAD, figure=cpu),
        paper.Promise(name="A durable job's time ÷ that without durability", limit=OVERHEAD, figure=wall),
        paper.Promise(name="Rows without a line in the output", limit=0, figure=unanswered, digits=0),
        paper.Promise(name=f"Share of a limit of {rpm:,} a minute", limit=SHARE, figure=share_of(limited, rpm),
                      at_least=True),
        paper.Promise(name="429s on the way", limit=0, figure=results.refused, digits=0),
        paper.Promise(name=f"Growth of memory over {rows}", limit=GROWTH_MIB, figure=growth(memory), unit=" MiB",
                      digits=1),
    ]  # fmt: skip


def tables(results: Results, rpm: int) -> list[paper.Table]:
    """Return the figures of all runs."""
    ours = {"durable": [each for each, _ in results.pairs], "plain": [each for _, each in results.pairs]}
    assert results.limited is not None
    memory = shown_run(results)
    alone = [row_of(TITLES["alone"], [results.longest])] if results.longest is not None else []
    return [
        paper.Table(title=f"{results.pair_rows:,} rows, no limit that binds", columns=COLUMNS,
                    rows=[row_of(TITLES[name], found) for name, found in ours.items()]),
        paper.Table(title=f"{results.rows:,} rows, a limit of {rpm:,} a minute", columns=COLUMNS,
                    rows=[row_of(TITLES["durable"], [results.limited])]),
        *([paper.Table(title=f"{memory.rows:,} rows", columns=COLUMNS, rows=alone)] if alone else []),
        paper.Table(title=f"Memory over {memory.rows:,} rows", columns=MEMORY, rows=memory_by_rows(memory)),
        paper.Table(title=f"{results.peer_rows:,} rows, beside others", columns=COLUMNS,
                    rows=[row_of(TITLES[name], [found]) for name, found in results.peers.items()]),
    ]  # fmt: skip


MEMORY = ["rows written, up to", "median, MiB", "so far at most, MiB"]
COLUMNS = ["", "rows/s", "CPU a row, µs", "time, s", "peak memory, MiB", "rows answered"]


def row_of(title: str, found: list[Took]) -> list[str]:
    """Return the row of one subject, all its rounds."""
    return [
        title,
        paper.spread([each.per_second for each in found], 0),
        paper.spread([each.cpu_us for each in found], 0),
        paper.spread([each.seconds for each in found], 1),
        paper.spread([each.peak_mib for each in found], 0),
        paper.spread([each.rows for each in found], 0),
    ]


HEAD = """
What it costs that a job survives `kill -9`, how near to a limit it comes, and what memory it takes, against a local
server, beside the same requests without durability and beside others.

This page is written by the command that measures, in some ten to fifteen minutes:

```bash
make bench-bulk                     # or, less of it: make bench-bulk BULK="--rows 10000 --most-rows 100000"
```

![Memory over rows](pictures/bulk.svg)
"""

METHOD = f"""
- Each run is a process of its own, and so is the server: it answers after {ANSWER_S * 1e3:.0f} ms with
  {ANSWER_TOKENS} tokens, enforces the limit in a continuous bucket and counts its 429s itself. No core is reserved:
  a job's state is written by a second thread.
- Rows are JSON lines, {CALLS} calls at once for every subject. The gateway has everything on in both ways: limits
  (beyond reach), journal, receipts. Without durability as many rows wait for the gateway as in a job, and each answer
  is written to a file when it comes. {{pair_rows:,}} rows each way in {{rounds}} rounds, in changing order; ratios are
  of runs side by side, their median counts; tables give medians, with the smallest and largest value in brackets.
- The run of the most rows is the same command over a client in its own process, which answers at once: over a socket a
  million rows would take a quarter of an hour, and what a job keeps does not depend on where its answers come from.
- CPU is user and system time of the process (`getrusage`) from the first row to the end, imports of the libraries that
  the subject loads first excluded. A job flushes every transaction to the disk.
- The share is what was answered, in a run of {{rows:,}} rows against a limit of {{rpm:,}} requests a minute and a
  bucket that holds a second of it.
- Memory grows by what the median of the last tenth of the rows is above that of the second tenth; flat is at most
  {GROWTH_MIB:g} MiB. Rows are known from the size of the output.
- `abatch` waits for the slowest call of each chunk. bespokelabs-curator, where it is shown, takes a list of all rows,
  and writes them to a folder of its own. Neither was told a limit that binds.
"""

ABSENT = "- bespokelabs-curator could not be installed where this was measured, and is left out.\n"


if __name__ == "__main__":
    sys.exit(main())
