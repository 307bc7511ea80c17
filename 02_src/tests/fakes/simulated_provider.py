"""A provider with true limits, in the loop's own time: it refuses what comes too fast and books every call."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from fakes.emulator.limits import Limits, Meter, Refusal
from fakes.emulator.openai import duration
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.config import Charge
from llm_gateway.errors import RateLimitError
from llm_gateway.models import LLMRequest, TokenUsage

MINUTE = 60.0


@dataclass(slots=True, kw_only=True)
class Booking:
    """One call in the provider's ledger. Instants in seconds of the loop."""

    request: LLMRequest
    began: float
    charged: dict[str, float]  # at admission; what the answer adds comes on top
    ended: float | None = None
    status: int = 0  # 200, 429, or 0 while under way and after a cancel
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """No more calls in any second than `factor` times the mean of the minute before, `floor` calls at least."""

    factor: float = 2.0
    floor: int = 10


@dataclass(slots=True, kw_only=True)
class SimulatedProvider:
    """ClientFactory and ChatClient in one: every model shares the same limits.

    "admission_max": the larger of input and `max_tokens` when a call begins, never trued up. "actual": the input when
    it begins, the output when it ends. A refused call is not charged.
    """

    limits: Limits
    charge: Charge = "actual"
    seed: int = 0
    size: Callable[[LLMRequest, Random], tuple[int, int]] = lambda _request, _rng: (100, 50)  # input and output tokens
    latency: Callable[[LLMRequest, Random], float] = lambda _request, rng: rng.uniform(0.05, 0.2)
    refusal_latency: float = 0.02
    hints: bool = True  # a refusal says when to come back
    headers: bool = False  # every answer tells where the limits stand, as OpenAI does
    heard: Callable[[LLMRequest, Mapping[str, str]], None] = lambda _request, _headers: None  # gets the headers
    acceleration: Acceleration | None = None
    ledger: list[Booking] = field(default_factory=list)
    _meter: Meter | None = None
    _recent: deque[float] = field(default_factory=deque)  # admissions of the last minute
    _rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)

    def connect(self, _deployment: Deployment, /) -> SimulatedProvider:
        return self

    def check(self, _request: LLMRequest, /) -> None:
        return None

    async def aclose(self) -> None:
        return None

    def abandon(self) -> None:
        return None

    async def generate(self, request: LLMRequest, /) -> Completion:
        now = asyncio.get_running_loop().time
        tokens_in, tokens_out = self.size(request, self._rng)
        costs = self._costs(request, tokens_in)
        booking = Booking(request=request, began=now(), charged=costs)
        self.ledger.append(booking)
        try:
            wait = self._admit(costs, now())
            if wait is not None:
                await self._refuse(request, booking, wait)
            await asyncio.sleep(self.latency(request, self._rng))
            if self.charge == "actual":
                produced = float(tokens_out)
                self._limits_now(now()).charge({"tokens": produced, "output-tokens": produced}, now())
            booking.status = 200
            self._tell(request, booking)
        finally:
            booking.ended = now()
        usage = TokenUsage(input_tokens=tokens_in, output_tokens=tokens_out)
        return Completion(content="ok", finish_reason="stop", usage=usage)

    def change(self, limits: Limits) -> None:
        """Enforce other limits from now on; their buckets begin empty."""
        self.limits = limits
        now = asyncio.get_running_loop().time()
        meter = self._meter = Meter(limits, now)
        meter.charge({name: each.remaining for name, each in meter.standings().items()}, now)

    def count(self, status: int, *, since: float = 0.0, until: float = math.inf) -> int:
        """How many calls that began in that time had `status`."""
        return sum(entry.status == status for entry in self.ledger if since <= entry.began < until)

    def used(self, resource: str, *, since: float = 0.0, until: float = math.inf) -> float:
        """What the calls that were let in during that time were charged at admission."""
        let_in = (entry for entry in self.ledger if entry.status == 200 and since <= entry.began < until)
        return sum(entry.charged[resource] for entry in let_in)

    async def _refuse(self, request: LLMRequest, booking: Booking, wait: float) -> None:
        await asyncio.sleep(self.refusal_latency)
        booking.status = 429
        self._tell(request, booking)
        hint = math.ceil(wait * 1000) / 1000 if self.hints else None
        raise RateLimitError("slow down", provider="simulated", model="m", status=429, retry_after=hint)

    def _costs(self, request: LLMRequest, tokens_in: int) -> dict[str, float]:
        tokens = float(tokens_in)
        both = max(tokens, float(request.max_tokens or 0)) if self.charge == "admission_max" else tokens
        return {"requests": 1.0, "tokens": both, "input-tokens": tokens, "output-tokens": 0.0}

    def _limits_now(self, now: float) -> Meter:
        if self._meter is None:
            self._meter = Meter(self.limits, now)
        return self._meter

    def _admit(self, costs: Mapping[str, float], now: float) -> float | None:
        """Charge the call, or return the seconds until it would pass."""
        if self.acceleration is not None and self._accelerates(self.acceleration, now):
            return 1.0
        refusal: Refusal | None = self._limits_now(now).admit(costs, now)
        if refusal is not None:
            return refusal.standing.wait
        self._recent.append(now)
        return None

    def _accelerates(self, rule: Acceleration, now: float) -> bool:
        while self._recent and self._recent[0] <= now - MINUTE:
            self._recent.popleft()
        last_second = sum(1 for each in self._recent if each > now - 1.0)
        return last_second >= max(rule.floor, rule.factor * len(self._recent) / MINUTE)

    def _tell(self, request: LLMRequest, booking: Booking) -> None:
        if not self.headers:
            return
        for name, standing in self._limits_now(asyncio.get_running_loop().time()).standings().items():
            booking.headers[f"x-ratelimit-limit-{name}"] = str(standing.limit)
            booking.headers[f"x-ratelimit-remaining-{name}"] = str(standing.remaining)
            booking.headers[f"x-ratelimit-reset-{name}"] = duration(standing.reset)
        self.heard(request, booking.headers)
