"""How large calls are and how long they take: log-normal, as sizes and latencies of language models mostly are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from llm_gateway.models import LLMRequest

P99 = 2.3263478740408408  # standard deviations above the median of a normal distribution


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Positive numbers of which half lie below `median` and 99 % below `p99`."""

    median: float
    p99: float

    def __post_init__(self) -> None:
        """Raise ValueError for what no such distribution has."""
        if not 0 < self.median <= self.p99 < math.inf:
            raise ValueError(f"median {self.median:g} and p99 {self.p99:g} must be above 0, and p99 not the smaller")

    def draw(self, rng: Random) -> float:
        """Return one of them."""
        return self.median * math.exp(rng.gauss(0.0, math.log(self.p99 / self.median) / P99))

    def tokens(self, rng: Random) -> int:
        """Return one of them as a whole number, at least 1."""
        return max(1, round(self.draw(rng)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds until an answer is whole: until its first token, then its length at a steady speed."""

    first_token: LogNormal = LogNormal(0.6, 3.0)
    speed: float = 80.0  # output tokens a second

    def draw(self, output_tokens: int, rng: Random) -> float:
        """Return how long an answer of that length takes."""
        return self.first_token.draw(rng) + output_tokens / self.speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call asks of the provider."""

    input_tokens: int
    output_tokens: int  # if nothing cuts the answer short
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWork:
    """Draws the work of each call anew, whatever was asked."""

    input_tokens: LogNormal = LogNormal(500.0, 5000.0)
    output_tokens: LogNormal = LogNormal(250.0, 2000.0)
    latency: Latency = Latency()

    def __call__(self, _request: LLMRequest, rng: Random, /) -> Work:
        """Return the work of one call."""
        return self.draw(rng)

    def draw(self, rng: Random) -> Work:
        """Return the work of some call."""
        output = self.output_tokens.tokens(rng)
        return Work(
            input_tokens=self.input_tokens.tokens(rng), output_tokens=output, seconds=self.latency.draw(output, rng)
        )
