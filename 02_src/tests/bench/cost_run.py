"""Measure in this process what limits and order cost, and print the figures as JSON: `python -m bench.cost_run …`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.measure import cpu_seconds, peak_mib
from bench.paced_subjects import MODEL
from bench.workload import Work, endless

from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestPriority
from llm_gateway.clients.base import Completion
from llm_gateway.config import LimitSettings
from llm_gateway.limits import JointPace, Pace, Wait
from llm_gateway.models import TokenUsage
from llm_gateway.queue import RequestQueue, Ticket
from llm_gateway.tokens import Estimator

WAITING = 1000  # requests in the queue all the time
ARRIVE = 1000  # of a flood in one turn of the loop
TICK_S = 0.002
HUGE = 10**9
STATM = Path("/proc/self/statm")


@dataclass(frozen=True, kw_only=True)
class Order:
    """CPU of the queue and of the limits, in microseconds a request."""

    queue_us: float
    limits_us: float


@dataclass(frozen=True, kw_only=True)
class Flood:
    """Many requests that wait. Bytes are of the whole process, from when the requests are made to when all wait."""

    tickets: int
    queued_s: float
    stall_s: float  # the longest time in which the loop did nothing else
    cancel_stall_s: float  # and when their callers leave
    bytes_a_ticket: float


def requests_of(works: Sequence[Work]) -> list[LLMRequest]:
    """Make the requests, of every class in turn."""
    classes = list(RequestPriority)
    return [
        LLMRequest(
            model=MODEL,
            messages=[LLMMessage(role="user", content=each.prompt)],
            agent=each.agent,
            priority=classes[number % len(classes)],
        )
        for number, each in enumerate(works)
    ]


async def order(count: int) -> Order:
    """Let requests of 64 agents and three classes in, one after the other, and settle each by its usage."""
    works = list(islice(endless(), WAITING + count))
    usages = [
        TokenUsage(input_tokens=each.tokens - each.output_tokens, output_tokens=each.output_tokens) for each in works
    ]
    loop = asyncio.get_running_loop()
    tickets = [
        Ticket(
            request=each,
            reply=loop.create_future(),
            submitted=0.0,
            priority=each.priority,
            agent=each.agent,
            cost=250.0,
        )
        for each in requests_of(works)
    ]
    usage_of = dict(zip(map(id, tickets), usages, strict=True))
    queue = RequestQueue(MODEL, max_size=HUGE)
    for ticket in tickets[:WAITING]:
        queue.put_nowait(ticket)
    taken: list[Ticket] = []
    began = cpu_seconds()
    for ticket in tickets[WAITING:]:
        queue.put_nowait(ticket)
        best = queue.best()
        assert best is not None
        queue.take(best)
        queue.charge(best, 7.0)
        taken.append(best)
    turned = cpu_seconds()
    settings = LimitSettings(rpm=HUGE, tpm=HUGE, itpm=HUGE, otpm=HUGE)
    pace = JointPace([Pace(settings, "actual", now=0.0, name="model 'm'")])
    estimator = Estimator()
    for number, ticket in enumerate(taken):
        estimate = estimator.expected(ticket.request, "actual")
        grant = pace.reserve(estimate.cost, number / 1000)
        assert not isinstance(grant, Wait)
        usage = usage_of[id(ticket)]
        estimator.learn(ticket.request, estimate, usage)
        pace.answered(grant, estimator.charged(ticket.request, usage, "actual"), number / 1000 + 0.1, {})
    ended = cpu_seconds()
    return Order(queue_us=(turned - began) / count * 1e6, limits_us=(ended - turned) / count * 1e6)


class Silent:
    """A client that never answers, and the factory of it."""

    def connect(self, _deployment: object, /) -> Silent:
        return self

    def check(self, _request: object, /) -> None: ...

    async def generate(self, _request: object, /) -> Completion:
        await asyncio.Event().wait()
        raise AssertionError

    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...


class OverSilence(LLMGateway):
    """A gateway whose calls never end."""

    _careful = False

    def _connect(self) -> Any:
        return Silent()


class Stall:
    """Watches for how long the loop is away."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.longest = max(self.longest, time.perf_counter() - began - TICK_S)


async def flood(count: int, *, as_batch: bool) -> Flood:
    """Let `count` requests wait: from as many callers, or as one batch."""
    works = list(islice(endless(), 1000))
    requests = requests_of([works[number % len(works)] for number in range(count)])
    limits = {"rpm": HUGE, "tpm": HUGE, "charge": "actual"}
    config = {
        "models": {MODEL: {"limits": limits}},
        "providers": {"openai": {"api_key": "sk-bench"}},
        "logs": {"dir": False},
        "batching": {"max_queue_size": 4 * count},
    }
    gateway = OverSilence(config)
    callers = [asyncio.create_task(gateway.request(requests_of(works[:1])[0]))]
    await asyncio.sleep(0.1)  # what is loaded for the first request
    gc.collect()
    before, began = resident_bytes(), time.perf_counter()
    stall = Stall()
    watching = asyncio.create_task(stall.watch())
    await asyncio.sleep(2 * TICK_S)
    if as_batch:
        callers.append(asyncio.create_task(_ignore(gateway.batch(requests))))
    else:
        for number, request in enumerate(requests):
            callers.append(asyncio.create_task(gateway.request(request)))
            if number % ARRIVE == ARRIVE - 1:
                await asyncio.sleep(0)
    while gateway.get_stats()["queued"]["total"] < count - 64:
        if callers[-1].done():
            raise RuntimeError("a request that should wait has ended") from callers[-1].exception()
        await asyncio.sleep(TICK_S)
    queued_s = time.perf_counter() - began
    await asyncio.sleep(2 * TICK_S)
    arriving = stall.longest
    gc.collect()
    held = resident_bytes() - before
    stall.longest = 0.0
    await gateway.shutdown(0.0)
    await asyncio.gather(*callers, return_exceptions=True)
    await asyncio.sleep(2 * TICK_S)
    watching.cancel()
    return Flood(
        tickets=count,
        queued_s=queued_s,
        stall_s=arriving,
        cancel_stall_s=stall.longest,
        bytes_a_ticket=held / count,
    )


async def _ignore(work: Coroutine[Any, Any, Any]) -> Any:
    return await work


def resident_bytes() -> float:
    """Return the memory that the process holds now; where the system does not tell, what it held at most."""
    if STATM.exists():
        import resource

        return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_mib() * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("order", "callers", "batch"))
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    found: Order | Flood
    if given.what == "order":
        found = asyncio.run(order(given.count))
    else:
        found = asyncio.run(flood(given.count, as_batch=given.what == "batch"))
    print(json.dumps(asdict(found)))  # noqa: T201 - the answer to the parent


if __name__ == "__main__":
    main()
