"""Run the benchmarks: every measurement in a process of its own, subjects taking turns."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.cores import cores
from bench.environments import HOME_OF, ROOT, peer_python, peers_found
from bench.measure import Figures, Neighbours
from bench.plot import speed_plot
from bench.report import machine, markdown, show, versions
from bench.results import FULL, NEIGHBOURS, OWN_SHARE, Plan, Results, title_of
from bench.scene import Scene

TESTS = Path(__file__).resolve().parents[1]
REPORT = ROOT / "00_docs" / "benchmarks.md"
PICTURE = ROOT / "00_docs" / "pictures" / "speed.svg"
IMPORT = (
    "import time; began = time.perf_counter(); import llm_gateway; "
    "llm_gateway.LLMGateway; print(time.perf_counter() - began)"
)

QUICK = Plan(rounds=1, seconds=0.4, warm_up=0.1, waves=2.0, imports=3, slow=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the gateway beside what it replaces and what others offer.")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="a few minutes' worth, for development; no report")
    how_much.add_argument("--full", action="store_true", help="every subject in every scene: an hour and a half")
    parser.add_argument("--rounds", type=int, help="how often the subjects take turns (default: 3)")
    parser.add_argument("--without-peers", action="store_true", help="leave others out; needs no network then")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the plot to write (default: %(default)s)")
    given = parser.parse_args()
    plan = QUICK if given.quick else Plan(compared=FULL) if given.full else Plan()
    plan = replace(plan, rounds=given.rounds or plan.rounds)
    peers = {} if given.without_peers else peers_found(say)
    here = machine()
    say(f"On {here}")
    began = time.monotonic()
    with server() as url:
        results = collect(plan, url, peers)
    show(results)
    say(f"Took {(time.monotonic() - began) / 60:.1f} minutes")
    if not given.quick:
        given.report.write_text(markdown(results, plan, here, versions(peers)), encoding="utf-8")
        given.picture.write_text(speed_plot(results), encoding="utf-8")
        say(f"Written to {given.report} and {given.picture}")


def collect(plan: Plan, url: str, peers: Mapping[str, Path]) -> Results:
    """Take every measurement, in rounds, so that whatever slows the machine for a while slows all subjects."""
    results = Results()
    for turn in range(1, plan.rounds + 1):
        for scene, subjects in (*plan.compared, *plan.streamed):
            say(f"round {turn}: {title_of(scene)}")
            for subject in subjects:
                home = HOME_OF.get(subject)
                if home is None or home in peers:
                    python = peers[home] if home else Path(sys.executable)
                    found = figures_of(python, subject, url, scene, plan)
                    results.compared.setdefault((subject, scene), []).append(found)
        for name, (subject, scene) in OWN_SHARE.items():
            found = figures_of(Path(sys.executable), subject, url, scene, plan)
            results.own_share.setdefault(name, []).append(found)
    for subject in NEIGHBOURS:
        slow = {"slow": plan.slow}
        seen = run(Path(sys.executable), subject, server=url, concurrency=plan.callers, **slow)
        results.neighbours[subject] = Neighbours(**seen)
        say(f"neighbours of a slow call in {subject}: {seen['longest_s']:.2f} s")
    imports = [float(output([sys.executable, "-c", IMPORT])) for _ in range(plan.imports + 1)]
    results.imports_s = imports[1:]  # the first reads the files from the disk
    return results


def figures_of(python: Path, subject: str, url: str, scene: Scene, plan: Plan) -> Figures:
    """Measure one subject in one scene."""
    warm_up, seconds = plan.spans(scene)
    found = Figures(
        **run(
            python,
            subject,
            *(["--long"] if scene.long else []),
            server=url,
            concurrency=scene.concurrency,
            api=scene.api,
            latency_ms=scene.latency_ms,
            loop=scene.loop,
            warm_up=warm_up,
            seconds=seconds,
        )
    )
    say(f"  {subject}: {found.cpu_us:,.0f} µs CPU a request, {found.per_second:,.0f}/s")
    return found


@contextmanager
def server() -> Iterator[str]:
    """Run the server in a process of its own, on the last core; yields its address."""
    core = [f"--core={cores()[-1]}"] if cores() else []
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "bench.server", *core], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def run(python: Path, subject: str, *flags: str, **options: float | str) -> dict[str, Any]:
    """Measure one subject in a fresh interpreter, on the first core."""
    if cores():
        options["core"] = cores()[0]
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [str(python), "-m", "bench.measure", subject, *flags, *more]
    found: dict[str, Any] = json.loads(output(command).splitlines()[-1])
    return found


def output(command: list[str]) -> str:
    return subprocess.run(  # noqa: S603 - our own commands
        command, env=environment(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def environment() -> dict[str, str]:
    """Give the children this folder's modules, and nothing that would turn on tracing or another address."""
    foreign = ("LANGSMITH", "LANGCHAIN", "OPENAI", "ANTHROPIC", "LITELLM", "LLM_GATEWAY")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": str(TESTS)
    }


def litellm_python() -> Path:
    """Return the interpreter that has LiteLLM."""
    return peer_python("litellm", say)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's output
