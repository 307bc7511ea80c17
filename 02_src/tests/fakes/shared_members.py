"""Processes that share limits, as tasks of one loop: each queues calls and begins them when its pace lets it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llm_gateway.clock import LoopClock, Timer
from llm_gateway.config import load_config
from llm_gateway.limits import Grant, Paces, Wait
from llm_gateway.limits.shared.protocol import Store
from llm_gateway.router import Deployments
from llm_gateway.tokens import Cost

CALL = Cost(1.0, 50.0, 50.0, 100.0)


@dataclass(slots=True)
class Call:
    """One call that waits, or began."""

    cost: Cost
    since: float
    high: bool = False
    low: bool = False
    takes: float = 0.1  # seconds
    actual: Cost | None = None  # what it uses; None: never answered
    member: int = 0
    began: float | None = None


@dataclass(slots=True)
class Ledger:
    """Every call that any member began, in order."""

    calls: list[Call] = field(default_factory=list)

    def between(self, start: float, end: float) -> int:
        return sum(start <= (call.began or 0.0) < end for call in self.calls)

    def excess(self, rate: float, burst: float, column: int = 0) -> float:
        """By how much the fullest window exceeds rate · window + the larger of burst and the largest call."""
        level = worst = 0.0  # the bucket's missing permits
        last = 0.0
        for call in self.calls:
            began, amount = call.began or 0.0, call.cost[column]
            level = max(0.0, level - (began - last) * rate) + amount
            last = began
            worst = max(worst, level - max(burst, amount))
        return worst


class Member:
    """One process: HIGH calls before the others, each kind first come, first served."""

    def __init__(self, number: int, store: Store, ledger: Ledger, **options: Any) -> None:
        settings = {"provider": "p", "model": "m", **options}
        account = {"limits": settings.pop("account")} if "account" in settings else {}
        shared = settings.pop("shared", {})
        config = load_config(
            {
                "providers": {
                    "p": {"kind": "anthropic", "base_url": "http://h.example", "api_key": "sk-canary-1", **account}
                },
                "models": {"m": settings},
                "limits": {"redis_url": "redis://unused", **shared},
            }
        )
        self.number = number
        self.clock = LoopClock()
        self.paces = Paces(config, self.clock, store=store)
        self.pace = self.paces.of(Deployments(config)["m"][0])
        self.pace.on_change = self._wake
        self.ledger = ledger
        self.high: deque[Call] = deque()
        self.others: deque[Call] = deque()
        self.under_way = 0
        self._alarm: Timer | None = None
        self._due = False

    def add(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.member = self.number
            (self.high if call.high else self.others).append(call)
        self._wake()

    def flood(self, count: int, cost: Cost = CALL, **fields: Any) -> None:
        """Queue `count` equal calls."""
        self.add(Call(cost, self.clock.now(), **fields) for _ in range(count))

    @property
    def state(self) -> str:
        return str(self.pace.snapshot(self.clock.now())["shared"]["state"])

    def kill(self) -> None:
        """End as a killed process does: without a word."""
        for task in self.paces._tasks:
            task.cancel()
        self.pace.on_change = None
        self.high.clear()
        self.others.clear()

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._due = False
        now = self.clock.now()
        while queue := self.high or self.others:
            call = queue[0]
            grant = self.pace.reserve(call.cost, now, low=call.low, high=call.high)
            if isinstance(grant, Wait):
                assert grant.seconds > 0
                if self._alarm is not None:
                    self._alarm.cancel()
                self._alarm = self.clock.call_at(now + grant.seconds, self._wake)
                return
            queue.popleft()
            call.began = now
            self.ledger.calls.append(call)
            self.under_way += 1
            self.clock.call_at(now + call.takes, partial(self._end, call, grant))

    def _end(self, call: Call, grant: Grant) -> None:
        self.under_way -= 1
        if call.actual is None:
            self.pace.keep(grant)
        else:
            self.pace.answered(grant, call.actual, self.clock.now(), {})
        self._wake()
