"""Make many requests in this process and print its memory meanwhile, and what is left after: a part of bench.memory."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from bench.cores import stay_on
from bench.measure import mib_now
from bench.scene import PROMPT, Scene
from bench.subjects import gateway, request

SAMPLES = 100
OPEN = Path("/proc/self/fd")


@dataclass(kw_only=True)
class Course:
    """Memory over the requests that were answered, and what the shutdown left behind."""

    samples: list[tuple[int, float]] = field(default_factory=list)  # requests, MiB
    tasks: int = 0
    files: dict[str, int] = field(default_factory=dict)  # open ones by kind, as "socket"
    threads: list[str] = field(default_factory=list)  # other than the loop's own pool


def open_files() -> Counter[str]:
    """Count the open descriptors by kind; nothing where the system does not tell."""
    kinds: Counter[str] = Counter()
    for each in OPEN.iterdir() if OPEN.exists() else ():
        try:
            kinds[os.readlink(each).partition(":")[0]] += 1  # noqa: PTH115 - a link that leads nowhere
        except OSError:  # the one that lists them
            continue
    return kinds


async def course(server: str, transport: str, requests: int, concurrency: int) -> Course:
    """Ask `requests` times, shut down, and look what is left."""
    seen = Course()
    scene = Scene(concurrency=concurrency)
    before = open_files()
    threads = set(threading.enumerate())
    numbers = count()
    every = max(1, requests // SAMPLES)
    async with gateway(server, scene, transport) as ours:

        async def caller() -> None:
            while (number := next(numbers)) < requests:
                await request(ours, scene, [PROMPT.format(number=number)])
                if number % every == 0:
                    seen.samples.append((number, mib_now()))

        await asyncio.gather(*(caller() for _ in range(concurrency)))
    seen.samples.append((requests, mib_now()))
    await asyncio.sleep(0)
    gc.collect()
    seen.tasks = len(asyncio.all_tasks() - {asyncio.current_task()})
    seen.files = dict(open_files() - before)
    # asyncio keeps its pool until the loop ends; it is no part of the gateway.
    seen.threads = [each.name for each in set(threading.enumerate()) - threads if not each.name.startswith("asyncio_")]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["lean", "sdk"])
    parser.add_argument("--server", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--core", type=int, help="the core to stay on")
    given = parser.parse_args()
    stay_on(given.core)
    found = course(given.server, given.transport, given.requests, given.concurrency)
    print(json.dumps(asdict(asyncio.run(found))))  # noqa: T201 - the answer to the parent


if __name__ == "__main__":
    main()
