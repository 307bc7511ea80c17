"""Run one subject under a limit in this process and print what its callers saw, as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from random import Random

from bench.paced_subjects import SUBJECTS, Ask, Told
from bench.workload import HIGH, HIGH_EVERY_S, SEED, Work, endless, work

SETTLING_S = 1.5  # after the first call: the server's bucket is full again
PATIENCE_S = 60.0  # with HIGH beside a flood; what has no answer then is counted as unanswered
AGENTS = {"careful": (16, 60.0), "busy": (64, 125.0), "greedy": (256, 250.0), "greediest": (1024, 125.0)}
"""How many requests each agent has open at a time, and the mean tokens of their inputs and outputs."""
UNEVEN_S = 3.0  # until all agents have their requests in, and what they are charged is known


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the callers saw. Instants in seconds on the machine's monotonic clock."""

    began: float = 0.0  # of what counts
    ended: float = 0.0  # the last answer
    offered: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by the error's name
    high_waits: list[float] = field(default_factory=list)  # seconds beyond the answer's own
    high_queued: list[float] = field(default_factory=list)  # of those the seconds in the subject's own queue
    high_offered: int = 0
    served: Counter[str] = field(default_factory=Counter)  # tokens by agent


class Run:
    """Asks a subject, and notes what comes of it."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.seen = Seen(began=time.monotonic())

    async def one(self, work: Work, *, due: float | None = None) -> None:
        """Ask once; the wait counts from `due`, by default from now."""
        self.seen.offered += 1
        self.seen.high_offered += work.priority == HIGH
        began = time.monotonic() if due is None else due
        try:
            queued = await self._ask(work)
        except Exception as error:  # noqa: BLE001 - whatever a subject raises, its caller has no answer
            self.seen.failed[type(error).__name__] += 1
            return
        seen = self.seen  # what counts may have begun meanwhile
        seen.ended = time.monotonic()
        seen.answered += 1
        seen.served[work.agent] += work.tokens
        if work.priority == HIGH:
            seen.high_waits.append(seen.ended - began - work.answer_s)
            if queued is not None:
                seen.high_queued.append(queued)

    async def through(self, works: Iterable[Work], callers: int) -> None:
        """Let so many callers ask, each the next request when it has its answer."""
        rest = iter(works)

        async def caller() -> None:
            for each in rest:
                await self.one(each)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def after_learning(self, seconds: float, requests: int, callers: int) -> None:
        """Ask without end for some seconds, and then, without a pause, so many requests that count."""
        end = time.monotonic() + seconds

        def works() -> Iterator[Work]:
            source = endless(agents=callers)
            yield from _until(end, source)
            self.seen = Seen(began=time.monotonic())
            yield from islice(source, requests)

        await self.through(works(), callers)

    async def beside_high(self, low: list[Work], callers: int) -> None:
        """Let HIGH requests come at their pace until all others are answered."""
        rng = Random(SEED + 1)
        flood = asyncio.create_task(self.through(low, callers))
        arrivals: list[asyncio.Task[None]] = []
        due = self.seen.began + HIGH_EVERY_S
        while due < self.seen.began + PATIENCE_S:
            await asyncio.wait([flood], timeout=due - time.monotonic())
            if flood.done():
                break
            arrivals.append(asyncio.create_task(self.one(work(rng, agent="user", priority=HIGH), due=due)))
            due += HIGH_EVERY_S
        await _end([flood, *arrivals], patience=self.seen.began + PATIENCE_S - time.monotonic())

    async def agents(self, seconds: float) -> None:
        """Let agents of very different greed ask without end; what they are served counts after the first seconds."""

        def works(name: str, mean_tokens: float) -> Iterator[Work]:
            rng = Random(f"{SEED} {name}")
            while True:
                yield work(rng, agent=name, mean_tokens=mean_tokens)

        tasks = [
            asyncio.create_task(self.through(works(name, mean), callers)) for name, (callers, mean) in AGENTS.items()
        ]
        await asyncio.sleep(UNEVEN_S)
        self.seen = counted = Seen(began=time.monotonic())
        await asyncio.sleep(seconds - UNEVEN_S)
        self.seen = Seen()
        await _end(tasks, patience=0.0)
        self.seen = counted


def _until(end: float, source: Iterator[Work]) -> Iterator[Work]:
    while time.monotonic() < end:
        yield next(source)


async def _end(tasks: list[asyncio.Task[None]], *, patience: float) -> None:
    """Wait for `tasks`, in the end in vain."""
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, patience))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def measure(subject: str, told: Told, *, requests: int, learn: float, mode: str) -> Seen:
    """Open the subject, make one call so that all is loaded and connected, and run."""
    async with SUBJECTS[subject](told) as ask:
        await ask(Work(prompt="Are you there?", answer_s=0.0, output_tokens=1, agent="warm-up"))
        await asyncio.sleep(SETTLING_S)
        low = list(islice(endless(), requests))
        run = Run(ask)
        if mode == "high":
            await run.beside_high(low, told.callers)
        elif mode == "agents":
            await run.agents(learn)
        elif learn:
            await run.after_learning(learn, requests, told.callers)
        else:
            await run.through(low, told.callers)
        return run.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("told", help="the fields of Told, as JSON")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="of learning before the requests; of all agents")
    parser.add_argument("--mode", choices=("requests", "high", "agents"), default="requests")
    given = parser.parse_args()
    told = Told(**json.loads(given.told))
    seen = asyncio.run(measure(given.subject, told, requests=given.requests, learn=given.seconds, mode=given.mode))
    print(json.dumps({each.name: getattr(seen, each.name) for each in fields(seen)}))  # noqa: T201 - the answer to the parent


if __name__ == "__main__":
    main()
