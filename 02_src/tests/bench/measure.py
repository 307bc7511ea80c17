"""Measure one subject in this process and print the figures as JSON: `python -m bench.measure SUBJECT …`."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from bench.subjects import PROMPT, SUBJECTS, TAKE_LISTS, Ask


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One run of one subject. CPU of this process alone, user and system; latency as the caller sees it."""

    cpu_us: float  # a request
    per_second: float
    p50_ms: float
    p99_ms: float
    peak_mib: float  # of the whole process, libraries included


def quantile(values: list[float], share: float) -> float:
    """Return the value of rank ⌊share · (n - 1)⌋ in ascending order."""
    return sorted(values)[int(share * (len(values) - 1))]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


async def run(ask: Ask, *, requests: int, concurrency: int, as_lists: bool) -> list[float]:
    """Make `requests` calls, `concurrency` at a time, and return the seconds that each caller waited.

    Single calls come from so many callers, each of which asks again when it has its answer. Lists are as long as
    that, one after another; each of their requests waited for the whole list.
    """
    numbers = iter(range(requests))
    waited: list[float] = []

    async def caller(size: int) -> None:
        for first in numbers:
            prompts = [PROMPT.format(number=number) for number in (first, *_take(numbers, size - 1))]
            began = time.perf_counter()
            await ask(prompts)
            waited.extend([time.perf_counter() - began] * len(prompts))

    if as_lists:
        await caller(concurrency)
    else:
        await asyncio.gather(*(caller(1) for _ in range(concurrency)))
    return waited


def _take(numbers: Iterator[int], count: int) -> Iterator[int]:
    for _, number in zip(range(count), numbers, strict=False):
        yield number


async def measure(subject: str, *, url: str, concurrency: int, requests: int, warm_up: int) -> Figures:
    """Open the subject, warm it up, and measure."""
    as_lists = subject in TAKE_LISTS
    async with SUBJECTS[subject](url, concurrency) as ask:
        await run(ask, requests=warm_up, concurrency=concurrency, as_lists=as_lists)
        cpu, began = cpu_seconds(), time.perf_counter()
        waited = await run(ask, requests=requests, concurrency=concurrency, as_lists=as_lists)
        took = time.perf_counter() - began
    cpu = cpu_seconds() - cpu  # after the end: what a journal still had to write is part of the cost
    return Figures(
        cpu_us=cpu / len(waited) * 1e6,
        per_second=len(waited) / took,
        p50_ms=quantile(waited, 0.5) * 1e3,
        p99_ms=quantile(waited, 0.99) * 1e3,
        peak_mib=peak_mib(),
    )


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What callers waited whose neighbour's call took `slow_s`, in seconds."""

    callers: int
    slow_s: float
    median_s: float
    longest_s: float


async def slow_neighbour(subject: str, *, url: str, callers: int, seconds: float) -> Neighbours:
    """Let `callers` ask at the same time, one of them something that takes `seconds`."""
    prompts = [PROMPT.format(number=number) for number in range(callers)]
    slow = f"[[wait {seconds}]] " + prompts[0]
    waited: dict[str, float] = {}

    async with SUBJECTS[subject](url, callers) as ask:

        async def caller(asked: list[str]) -> None:
            began = time.perf_counter()
            await ask(asked)
            waited.update(dict.fromkeys(asked, time.perf_counter() - began))

        if subject in TAKE_LISTS:
            await ask(prompts)
            await caller([slow, *prompts[1:]])
        else:
            await asyncio.gather(*(ask([each]) for each in prompts))
            await asyncio.gather(*(caller([each]) for each in (slow, *prompts[1:])))
    slow_s = waited.pop(slow)
    others = list(waited.values())
    return Neighbours(callers=callers, slow_s=slow_s, median_s=quantile(others, 0.5), longest_s=max(others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=0)
    parser.add_argument("--slow", type=float, help="seconds of the slow neighbour, instead of the other figures")
    given = parser.parse_args()
    if given.slow is not None:
        work = slow_neighbour(given.subject, url=given.url, callers=given.concurrency, seconds=given.slow)
        print(json.dumps(asdict(asyncio.run(work))))  # noqa: T201 - the answer to the parent
        return
    figures = measure(
        given.subject, url=given.url, concurrency=given.concurrency, requests=given.requests, warm_up=given.warm_up
    )
    print(json.dumps(asdict(asyncio.run(figures))))  # noqa: T201


if __name__ == "__main__":
    main()
