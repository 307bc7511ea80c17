"""How many calls a second four processes are let in by one Redis, and how many decisions of the script that takes.

Usage: `make bench-redis`. Started with numbers it is one of the four.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.suite import say

from fakes.redis_server import RedisServer
from fakes.shared_members import CALL, Ledger, Member
from llm_gateway.limits.shared.protocol import Amounts, Said
from llm_gateway.limits.shared.store import RedisStore

PROCESSES = 4
SECONDS = 5.0
WARM_UP = 1.0
BACKLOG = 200  # calls that wait at any time
GOAL = 5000.0  # admitted a second
LIMITS = {"rpm": 60_000_000, "tpm": 6_000_000_000, "safety": 1.0}  # beyond reach: the store alone sets the pace


async def admit(url: str, start: float) -> int:
    """Begin calls one after the other for `SECONDS`; return how many."""
    ledger = Ledger()
    member = Member(0, RedisStore(url), ledger, limits=LIMITS, max_concurrency=100_000)
    counted = 0
    while (now := time.time()) < start + WARM_UP + SECONDS:
        if now < start + WARM_UP:
            ledger.calls.clear()
        counted += len(ledger.calls)
        ledger.calls.clear()
        if len(member.others) < BACKLOG:
            member.flood(BACKLOG, takes=0.0, actual=CALL)
        await asyncio.sleep(0.001)
    member.others.clear()
    await member.paces.aclose()
    return counted


async def bare(url: str, start: float) -> int:
    """Ask the script for one call at a time for `SECONDS`, with no share; return how many it decided."""
    store = RedisStore(url)
    said: Said = {"me": str(start), "born": "", "version": 0, "ttl": 10.0, "busy": 0, "view": "{}"}
    said["flows"] = [("requests", 1e6, 1e6, 1e6), ("tokens", 1e8, 1e8, 1e8)]
    said["born"] = (await store.decide("bare", said))["born"]
    said["version"] = -1  # of no interest
    need: Amounts = {"requests": 1.0, "tokens": 100.0}
    said["ask"] = {"need": need, "times": 1, "delay": 0.0, "low": False, "high": False, "spent": True}
    decided = 0

    async def one() -> None:
        nonlocal decided
        while time.time() < start + WARM_UP + SECONDS:
            await store.decide("bare", said)
            decided += time.time() > start + WARM_UP

    await asyncio.gather(*(one() for _ in range(4)))
    await store.aclose()
    return decided


async def run(server: RedisServer, how: str) -> tuple[float, float]:
    """Return what four processes did a second together, and the script's decisions a second."""
    with server.client() as client:
        client.config_resetstat()
    start = time.time() + 2.0
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, __file__, how, server.url, repr(start), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(PROCESSES)
    ]
    answers = [await worker.communicate() for worker in workers]
    with server.client() as client:
        decisions = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    return sum(json.loads(out) for out, _ in answers) / SECONDS, decisions / (SECONDS + WARM_UP)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Reservations a second of four processes together, and the scripts that their Redis ran for them."""

    reservations: float
    scripts: float
    bare: float  # reservations with a script for each


def measured() -> Shared:
    """Measure with a Redis of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            reservations, scripts = asyncio.run(run(server, "admit"))
            bare, _ = asyncio.run(run(server, "bare"))
        finally:
            server.kill()
    return Shared(reservations=reservations, scripts=scripts, bare=bare)


def main() -> int:
    """Print the figures; 1 if the goal is missed."""
    found = measured()
    say(f"{PROCESSES} processes, one Redis, two limits on every call, {SECONDS:.0f} s each:")
    say(f"  through shares:              {found.reservations:9,.0f} reservations/s, {found.scripts:,.0f} scripts/s")
    say(f"  one script for each of them: {found.bare:9,.0f} reservations/s")
    say(f"goal: {GOAL:,.0f} reservations/s: {'reached' if found.reservations >= GOAL else 'missed'}")
    return 0 if found.reservations >= GOAL else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work = {"admit": admit, "bare": bare}[sys.argv[1]]
        say(str(asyncio.run(work(sys.argv[2], float(sys.argv[3])))))
    else:
        sys.exit(main())
