"""Measure one subject in this process and print the figures as JSON: `python -m bench.measure SUBJECT …`."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, get_args

from bench import own, peers, subjects
from bench.cores import stay_on
from bench.scene import PROMPT, Api, Loop, Scene
from bench.subjects import Ask, Tell

Open = Callable[[str, Scene], AbstractAsyncContextManager[Any]]
SUBJECTS: dict[str, Open] = {
    "ainvoke": subjects.ainvoke,
    "ainvoke_aiohttp": subjects.ainvoke_aiohttp,
    "abatch": subjects.abatch,
    "raw_aiohttp": subjects.raw_aiohttp,
    "gateway_request": subjects.gateway_request,
    "gateway_request_sdk": subjects.gateway_request_sdk,
    "gateway_request_frozen": subjects.gateway_request_frozen,
    "gateway_batch": subjects.gateway_batch,
    "litellm_router": peers.litellm_router,
    "tensorzero": peers.tensorzero,
    "any_llm": peers.any_llm,
    "nothing_with_journal": own.nothing_with_journal,
    "nothing_frozen": own.nothing_frozen,
    "nothing_without_journal": own.nothing_without_journal,
    "bare_runnable": own.bare_runnable,
}
STREAMS: dict[str, Open] = {
    "astream": subjects.astream,
    "raw_stream": subjects.raw_stream,
    "gateway_stream": subjects.gateway_stream,
    "gateway_stream_sdk": subjects.gateway_stream_sdk,
    "litellm_stream": peers.litellm_stream,
    "tensorzero_stream": peers.tensorzero_stream,
}
STATM = Path("/proc/self/statm")
COLD_CHECK = 0.01  # seconds
TAKE_LISTS = frozenset({"abatch", "gateway_batch", "bare_runnable"})


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One run of one subject. CPU of this process alone, user and system; latency as the caller sees it."""

    cpu_us: float  # a request
    per_second: float
    p50_ms: float
    p99_ms: float
    peak_mib: float  # of the whole process, libraries included
    first_ms: float = 0.0  # what the first piece of a stream took longer than at the server; the median


@dataclass(kw_only=True)
class Watch:
    """What the callers saw between two instants."""

    going: bool = True  # callers ask on
    cold: int = 0  # callers that had no answer yet
    counting: bool = False
    cpu: float = 0.0  # seconds
    took: float = 0.0
    waited: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def saw(self, waited: float, first: float | None = None) -> None:
        """Note one answer."""
        if self.counting:
            self.waited.append(waited)
            if first is not None:
                self.first.append(first)

    def begin(self) -> None:
        """Count from now on."""
        self.counting = True
        self.cpu, self.took = cpu_seconds(), time.perf_counter()

    def end(self) -> None:
        """Count no longer, and let the callers go."""
        self.cpu, self.took = cpu_seconds() - self.cpu, time.perf_counter() - self.took
        self.counting = self.going = False

    def figures(self) -> Figures:
        """Sum up."""
        return Figures(
            cpu_us=self.cpu / len(self.waited) * 1e6,
            per_second=len(self.waited) / self.took,
            p50_ms=quantile(self.waited, 0.5) * 1e3,
            p99_ms=quantile(self.waited, 0.99) * 1e3,
            peak_mib=peak_mib(),
            first_ms=quantile(self.first, 0.5) * 1e3 if self.first else 0.0,
        )


def quantile(values: list[float], share: float) -> float:
    """Return the value of rank ⌊share · (n - 1)⌋ in ascending order."""
    return sorted(values)[int(share * (len(values) - 1))]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def mib_now() -> float:
    """Return the memory that the process holds; where the system does not tell, the most it ever held."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_mib()


async def watch_callers(ask: Ask, *, concurrency: int, warm_up: float, seconds: float) -> Watch:
    """Let `concurrency` callers ask, again and again; count for `seconds`, after `warm_up` and the first answers."""
    watch = Watch(cold=concurrency)
    numbers = count()

    async def caller() -> None:
        await ask([PROMPT.format(number=next(numbers))])
        watch.cold -= 1
        while watch.going:
            began = time.perf_counter()
            await ask([PROMPT.format(number=next(numbers))])
            watch.saw(time.perf_counter() - began)

    await _during([caller() for _ in range(concurrency)], watch, warm_up, seconds)
    return watch


async def watch_streams(tell: Tell, *, concurrency: int, warm_up: float, seconds: float) -> Watch:
    """The same for streams; a stream's first piece says how long the server took for it."""
    watch = Watch(cold=concurrency)
    numbers = count()

    async def one() -> None:
        began = time.perf_counter()
        first = None
        async for text in tell(PROMPT.format(number=next(numbers))):
            if first is None:
                first = time.perf_counter() - began - float(text.split()[0])
        watch.saw(time.perf_counter() - began, first)

    async def caller() -> None:
        await one()
        watch.cold -= 1
        while watch.going:
            await one()

    await _during([caller() for _ in range(concurrency)], watch, warm_up, seconds)
    return watch


async def _during(callers: list[Any], watch: Watch, warm_up: float, seconds: float) -> None:
    async def clock() -> None:
        await asyncio.sleep(warm_up)
        while watch.cold:  # noqa: ASYNC110 - an event would cost the callers; some libraries read much at their first call
            await asyncio.sleep(COLD_CHECK)
        watch.begin()
        await asyncio.sleep(seconds)
        while len(watch.waited) < len(callers):  # noqa: ASYNC110 - as above; the slow ones get the time for an answer each
            await asyncio.sleep(COLD_CHECK)
        watch.end()

    async with asyncio.TaskGroup() as group:
        for caller in (*callers, clock()):
            group.create_task(caller)


async def watch_lists(ask: Ask, *, concurrency: int, warm_up: float, seconds: float) -> Watch:
    """Ask in lists of `concurrency`, one after another; each request of a list waits for the whole list.

    Whole lists are counted: those that begin within `seconds`, after those that begin within `warm_up`.
    """
    watch = Watch()
    numbers = count()
    for lasts in (warm_up, seconds):
        until = time.perf_counter() + lasts
        while True:
            prompts = [PROMPT.format(number=next(numbers)) for _ in range(concurrency)]
            began = time.perf_counter()
            await ask(prompts)
            for _ in prompts:
                watch.saw(time.perf_counter() - began)
            if time.perf_counter() >= until:
                break
        if watch.counting:
            watch.end()
        else:
            watch.begin()
    return watch


async def measure(subject: str, server: str, scene: Scene, *, warm_up: float, seconds: float) -> Figures:
    """Open the subject, warm it up, and measure."""
    span = {"warm_up": warm_up, "seconds": seconds}
    if subject in STREAMS:
        async with STREAMS[subject](server, scene) as tell:
            return (await watch_streams(tell, concurrency=scene.concurrency, **span)).figures()
    watching = watch_lists if subject in TAKE_LISTS else watch_callers
    async with SUBJECTS[subject](server, scene) as ask:
        return (await watching(ask, concurrency=scene.concurrency, **span)).figures()


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What callers waited whose neighbour's call took `slow_s`, in seconds."""

    callers: int
    slow_s: float
    median_s: float
    longest_s: float


async def slow_neighbour(subject: str, server: str, *, callers: int, seconds: float) -> Neighbours:
    """Let `callers` ask at the same time, one of them something that takes `seconds`."""
    prompts = [PROMPT.format(number=number) for number in range(callers)]
    slow = f"[[wait {seconds}]] " + prompts[0]
    waited: dict[str, float] = {}

    async with SUBJECTS[subject](server, Scene(concurrency=callers)) as ask:

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
    parser.add_argument("subject", choices=[*SUBJECTS, *STREAMS])
    parser.add_argument("--server", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--api", choices=get_args(Api), default="openai")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--latency-ms", type=int, default=0)
    parser.add_argument("--warm-up", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--core", type=int, help="the core to stay on")
    parser.add_argument("--loop", choices=get_args(Loop), default="asyncio")
    parser.add_argument("--slow", type=float, help="seconds of the slow neighbour, instead of the other figures")
    given = parser.parse_args()
    stay_on(given.core)
    if given.slow is not None:
        found: Any = slow_neighbour(given.subject, given.server, callers=given.concurrency, seconds=given.slow)
    else:
        scene = Scene(
            concurrency=given.concurrency,
            api=given.api,
            long=given.long,
            latency_ms=given.latency_ms,
            loop=given.loop,
        )
        found = measure(given.subject, given.server, scene, warm_up=given.warm_up, seconds=given.seconds)
    with asyncio.Runner(loop_factory=factory_of(given.loop)) as runner:
        print(json.dumps(asdict(runner.run(found))))  # noqa: T201 - the answer to the parent


def factory_of(loop: Loop) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes a loop of this kind; None for asyncio's own."""
    if loop == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
