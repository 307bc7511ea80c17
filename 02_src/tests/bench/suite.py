"""Run the benchmarks: every measurement in a process of its own, subjects taking turns."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Figures, Neighbours
from bench.report import machine, markdown, show, versions
from bench.results import COMPARED, NEIGHBOURS, OWN_SHARE, Plan, Results

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parents[1]
LITELLM_HOME = ROOT / ".venv-bench"
LITELLM_NEEDS = ROOT / "requirements" / "bench.txt"
REPORT = ROOT / "00_docs" / "benchmarks.md"
IMPORT = (
    "import time; began = time.perf_counter(); import llm_gateway; "
    "llm_gateway.LLMGateway; print(time.perf_counter() - began)"
)


QUICK = Plan(rounds=1, requests=200, own_requests=2000, warm_up=64, imports=3, slow_s=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the gateway beside what it replaces.")
    parser.add_argument("--quick", action="store_true", help="a minute's worth, for development; writes no report")
    parser.add_argument("--without-litellm", action="store_true", help="leave LiteLLM out; needs no network then")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    given = parser.parse_args()
    plan = QUICK if given.quick else Plan()
    litellm = None if given.without_litellm else litellm_python()
    here = machine()
    say(f"On {here}")
    with server() as url:
        results = collect(plan, url, litellm)
    show(results)
    if not given.quick:
        given.report.write_text(markdown(results, plan, here, versions(litellm)), encoding="utf-8")
        say(f"Written to {given.report}")


def collect(plan: Plan, url: str, litellm: Path | None) -> Results:
    """Take every measurement, in rounds, so that whatever slows the machine for a while slows all subjects."""
    results = Results()
    compared = [each for each in COMPARED if litellm or each != "litellm_router"]
    for turn in range(1, plan.rounds + 1):
        for concurrency in plan.concurrencies:
            for subject in compared:
                python = litellm if subject == "litellm_router" and litellm else Path(sys.executable)
                found = run(python, subject, url, concurrency, requests=plan.requests, warm_up=plan.warm_up)
                results.compared.setdefault((subject, concurrency), []).append(Figures(**found))
                say(f"round {turn}: {subject} at {concurrency}: {found['cpu_us']:,.0f} µs CPU a request")
        for subject in OWN_SHARE:
            concurrency = 32 if subject == "bare_runnable" else 64
            requests = plan.own_requests
            found = run(Path(sys.executable), subject, url, concurrency, requests=requests, warm_up=plan.warm_up)
            results.own_share.setdefault(subject, []).append(Figures(**found))
            say(f"round {turn}: {subject}: {found['cpu_us']:,.0f} µs CPU a request")
    for subject in NEIGHBOURS:
        found = run(Path(sys.executable), subject, url, plan.callers, slow=plan.slow_s)
        results.neighbours[subject] = Neighbours(**found)
        say(f"neighbours of a slow call in {subject}: {found['longest_s']:.2f} s")
    imports = [float(output([sys.executable, "-c", IMPORT])) for _ in range(plan.imports + 1)]
    results.imports_s = imports[1:]  # the first reads the files from the disk
    return results


@contextmanager
def server() -> Iterator[str]:
    """Run the server in a process of its own; yields its base URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.server"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def run(python: Path, subject: str, url: str, concurrency: int, **options: float) -> dict[str, Any]:
    """Measure one subject in a fresh interpreter."""
    more = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [str(python), "-m", "bench.measure", subject, "--url", url, "--concurrency", str(concurrency), *more]
    found: dict[str, Any] = json.loads(output(command).splitlines()[-1])
    return found


def output(command: list[str]) -> str:
    return subprocess.run(  # noqa: S603 - our own commands
        command, env=environment(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def environment() -> dict[str, str]:
    """Give the children this folder's modules, and nothing that would turn on tracing or another address."""
    foreign = ("LANGSMITH", "LANGCHAIN", "OPENAI", "LITELLM", "LLM_GATEWAY")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": str(TESTS)
    }


def litellm_python() -> Path:
    """Return the interpreter that has LiteLLM, in an environment of its own, made where it is missing or outdated."""
    python = LITELLM_HOME / "bin" / "python"
    wanted = hashlib.sha256(LITELLM_NEEDS.read_bytes()).hexdigest()
    made_for = LITELLM_HOME / "made-for"
    if not made_for.exists() or made_for.read_text(encoding="utf-8") != wanted:
        say("Installing LiteLLM into .venv-bench …")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", LITELLM_HOME], check=True)  # noqa: S603
        subprocess.run([python, *install, "-r", LITELLM_NEEDS], check=True)  # noqa: S603
        made_for.write_text(wanted, encoding="utf-8")
    return python


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's output
