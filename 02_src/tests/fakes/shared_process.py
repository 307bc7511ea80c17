"""A process of its own that shares limits: `python -m fakes.shared_process URL CALLS TAKES OPTIONS`.

It prints every call as it begins, and every change between "shared" and "alone", one JSON line each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from fakes.shared_members import CALL, Call, Ledger, Member
from llm_gateway.limits.shared.store import RedisStore

WATCH = 0.02  # seconds between two looks at the state


class Printed(list[Call]):
    """Says each call at once: what a killed process has begun must not be lost."""

    def append(self, call: Call) -> None:
        super().append(call)
        say({"began": call.began})


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(url: str, calls: str, takes: str, options: str) -> None:
    ledger = Ledger(calls=Printed())
    member = Member(0, RedisStore(url), ledger, **json.loads(options))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    member.flood(int(calls), CALL, takes=float(takes), actual=CALL)
    state = ""
    while not ended.is_set():
        if state != member.state:
            state = member.state
            say({"state": state, "at": member.clock.now()})
        await asyncio.sleep(WATCH)
    await member.paces.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
