"""Whether memory stays flat over many requests, and whether a shutdown leaves anything: `make bench-memory`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.cores import cores
from bench.environments import ROOT
from bench.memory_run import Course
from bench.plot import memory_plot
from bench.report import machine, versions
from bench.suite import output, say, server

REPORT = ROOT / "00_docs" / "benchmarks-memory.md"
PICTURE = ROOT / "00_docs" / "pictures" / "memory.svg"
REQUESTS = 200_000
TRANSPORTS = ("lean", "sdk")
MOST_GROWTH_MIB = 4.0

PAGE = """# Benchmarks: memory

What one process holds while it makes {requests:,} requests, 64 at a time, everything on, and what is left of it after
`shutdown()`.

This page is written by the command that measures:

```bash
make bench-memory
```

{date} · {machine} · Python {python} · {versions}

![Memory over requests](pictures/memory.svg)

| | after a tenth, MiB | at the end, MiB | growth, MiB | tasks left | files, sockets left | threads left |  |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
{rows}

- "After a tenth" and "at the end" are medians of the samples of the second and of the last tenth of the requests: what
  is read and cached at first is not counted. Flat is a growth of at most {most:g} MiB; one byte a request would be 0.2.
- Files and sockets are the open descriptors that were not there before the gateway was made; the thread pool of the
  event loop is not the gateway's and is left out.
"""


def growth(course: Course) -> tuple[float, float]:
    """Return the memory of the second and of the last tenth of the requests."""
    last = course.samples[-1][0]
    second = [mib for requests, mib in course.samples if 0.1 * last <= requests < 0.2 * last]
    end = [mib for requests, mib in course.samples if requests >= 0.9 * last]
    return median(second), median(end)


def is_clean(course: Course) -> bool:
    """Tell whether memory stayed flat and nothing was left."""
    begun, ended = growth(course)
    left = course.tasks or course.files or course.threads
    return ended - begun <= MOST_GROWTH_MIB and not left


def row(transport: str, course: Course) -> str:
    """Return the row of one transport."""
    begun, ended = growth(course)
    files = sum(course.files.values())
    figures = f"{begun:.1f} | {ended:.1f} | {ended - begun:+.1f} | {course.tasks} | {files} | {len(course.threads)}"
    return f"| {transport} | {figures} | {'reached' if is_clean(course) else '**missed**'} |"


def run(url: str, transport: str, requests: int) -> Course:
    """Measure one transport in a process of its own."""
    core = [f"--core={cores()[0]}"] if cores() else []
    more = [f"--server={url}", f"--requests={requests}", *core]
    told = json.loads(output([sys.executable, "-m", "bench.memory_run", transport, *more]).splitlines()[-1])
    told["samples"] = [(requests, mib) for requests, mib in told["samples"]]
    return Course(**told)


def main() -> int:
    """Measure, print, write the page; 1 if memory grew or something was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="for each transport (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=REPORT, help="the Markdown file to write (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the plot to write (default: %(default)s)")
    given = parser.parse_args()
    here = machine()
    courses: dict[str, Course] = {}
    with server() as url:
        for transport in TRANSPORTS:
            courses[transport] = run(url, transport, given.requests)
            say(row(transport, courses[transport]))
    given.picture.write_text(memory_plot({name: each.samples for name, each in courses.items()}), encoding="utf-8")
    page = PAGE.format(
        requests=given.requests,
        date=datetime.now(UTC).date(),
        machine=here,
        python=platform.python_version(),
        versions=versions(None),
        rows="\n".join(row(name, each) for name, each in courses.items()),
        most=MOST_GROWTH_MIB,
    )
    given.report.write_text(page, encoding="utf-8")
    say(f"Written to {given.report} and {given.picture}")
    return 0 if all(is_clean(each) for each in courses.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
