"""The script of the shared limits on a real server, in virtual time: what it decides, without waiting for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from typing import Any

from fakes.redis_server import RedisServer
from llm_gateway.config import Charge, LimitSettings
from llm_gateway.limits import Level, MemoryLimiter, Reservation, Resource, Wait
from llm_gateway.limits.shared.protocol import Lending, Lent, Reply, Said, StoreError, lending_script, script
from llm_gateway.tokens import Cost

HANDED_IN = "local now = tonumber(ARGV[2])\n"
_keys = count()


def new_key() -> str:
    """Return a key that no other test uses."""
    return f"test:{next(_keys)}"


class VirtualStore:
    """A `Store` whose clock is the test's. It can be slow, gone, or emptied."""

    def __init__(self, server: RedisServer, clock: Callable[[], float]) -> None:
        self._client = server.client()
        self._script: Any = self._client.register_script(script(HANDED_IN))
        self._lending: Any = self._client.register_script(lending_script(HANDED_IN))
        self._clock = clock
        self.gone = False
        self.hangs = False
        self.takes = 0.0  # seconds for an answer
        self.decisions = 0

    async def decide(self, key: str, said: Said, /) -> Reply:
        await self._travel()
        if self.gone:
            raise StoreError("ConnectionError")
        reply = self.decide_now(key, said, self._clock())
        await self._travel()
        return reply

    async def lend(self, key: str, said: Lending, /) -> Lent:
        await self._travel()
        if self.gone:
            raise StoreError("ConnectionError")
        lent: Lent = json.loads(self._lending(keys=[key], args=[json.dumps(said), repr(self._clock())]))
        await self._travel()
        return lent

    async def _travel(self) -> None:
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.takes:
            await asyncio.sleep(self.takes / 2)

    def decide_now(self, key: str, said: Said, now: float) -> Reply:
        self.decisions += 1
        reply: Reply = json.loads(self._script(keys=[key], args=[json.dumps(said), repr(now)]))
        return reply

    def flush(self) -> None:
        self._client.flushdb()

    async def aclose(self) -> None:
        """Nothing that a test would miss; `close` ends it."""

    def close(self) -> None:
        self._client.close()


class DirectLimiter(MemoryLimiter):
    """A `Limiter` that asks the script for every call, and keeps no share: it has to decide as memory does."""

    def __init__(self, store: VirtualStore, settings: LimitSettings, charge: Charge, *, now: float = 0.0) -> None:
        self._store = store
        self._key = new_key()
        self._born = ""
        super().__init__(settings, charge, now=now, name="model 'm'")
        flows = [(each.resource, each.bucket.rate, each.bucket.burst, each.bucket.burst) for each in self._limits]
        self._born = self._say(now, view="{}", flows=flows)["born"]

    def _say(self, now: float, **more: Any) -> Reply:
        said: Said = {"me": "m", "born": self._born, "version": 0 if not self._born else 1, "ttl": 1e13, "busy": 0}
        said.update(more)  # type: ignore[typeddict-item]
        return self._store.decide_now(self._key, said, now)

    def reserve(self, cost: Cost, now: float, /, *, low: bool = False, high: bool = False) -> Reservation | Wait:
        self.check(cost)
        need = {limit.resource: cost[limit.column] for limit in self._limits}
        ask = {"need": need, "times": 1, "delay": 0.0, "low": low, "high": high, "spent": True}
        reply = self._say(now, ask=ask)
        if "share" not in reply:
            self._binding = (reply["resource"], now + reply["wait"])
            return Wait(reply["wait"], reply["resource"], reply["only_low"])
        for limit in self._limits:
            limit.reserved += cost[limit.column]
            limit.used += cost[limit.column]
        self._open += 1
        return Reservation(cost, now, reply["share"]["takes"])

    def settle(self, reservation: Reservation, actual: Cost, now: float, /) -> None:
        if self._close(reservation):
            self._end(reservation, actual, now, refunds=self._refunds)

    def refund(self, reservation: Reservation, now: float, /) -> None:
        if self._close(reservation):
            self._end(reservation, Cost(0.0, 0.0, 0.0, 0.0), now, refunds=True)

    def _end(self, reservation: Reservation, actual: Cost, now: float, *, refunds: bool) -> None:
        gives, charges = {}, {}
        for limit in self._limits:
            over = actual[limit.column] - reservation.cost[limit.column]
            if over > 0:
                charges[limit.resource] = over
                limit.used += over
            elif over < 0 and refunds:
                gives[limit.resource] = -over
                limit.used += over
        give = {"born": self._born, "takes": dict(reservation.takes), "amounts": gives}
        self._say(now, gives=[give] if gives else [], charges=charges)

    def levels(self, now: float, /) -> dict[Resource, Level]:
        there = {resource: float(level) for resource, level in self._say(now)["levels"].items()}
        return {
            limit.resource: Level(
                limit.whole, limit.bucket.rate, limit.bucket.burst, there[limit.resource], limit.reserved, limit.used, 0
            )
            for limit in self._limits
        }
