"""Whether the memory of a plan stays flat at a million rows: `make bench-plan`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.suite import say

SIZES = (10_000, 100_000, 1_000_000)
REPEATED = 0.1  # of the rows
MOST_GROWTH_MIB = 32.0  # from the second to the last size; the pages of the digests' database take 16 of them
KIB = 1024


class Course(NamedTuple):
    """One plan."""

    rows: int
    seconds: float
    peak: float  # MiB


def write_rows(path: Path, count: int) -> None:
    """Write synthetic rows of all sizes, some of them twice."""
    rng = Random(count)
    with path.open("w") as file:
        for number in range(count):
            text = number if rng.random() > REPEATED else rng.randrange(number + 1)
            words = "word " * (1 + text % 97)
            file.write(json.dumps({"request_id": f"id {number}", "prompt": f"{words}{text}", "max_tokens": 100}) + "\n")


def course(count: int) -> Course:
    """Plan `count` rows in a process of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        write_rows(path, count)
        command = [sys.executable, "-m", "llm_gateway", "plan", str(path), "-m", "gpt-4o-mini", "--json"]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder)  # noqa: S603 - our own command
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        assert told["to_ask"] == count
        return Course(count, time.monotonic() - began, usage.ru_maxrss / KIB)


def main() -> int:
    """Print a line for each size; 1 if the memory grew."""
    courses = []
    for size in SIZES:
        courses.append(course(size))
        rows, seconds, peak = courses[-1]
        say(f"{rows:>9,} rows  {seconds:7.1f} s  {rows / seconds:7,.0f} rows/s  peak {peak:6.1f} MiB")
    growth = courses[-1].peak - courses[-2].peak
    say(f"growth from {SIZES[-2]:,} to {SIZES[-1]:,} rows: {growth:.1f} MiB (at most {MOST_GROWTH_MIB:g})")
    return int(growth > MOST_GROWTH_MIB)


if __name__ == "__main__":
    sys.exit(main())
