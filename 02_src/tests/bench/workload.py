"""What is asked in the benches with limits: the same requests for every subject, and the least time they take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

SEED = 20_26
FASTEST_S, SLOWEST_S = 0.05, 0.2  # how long an answer takes
MEAN_TOKENS, SPREAD = 125.0, 0.8  # of inputs and of outputs, log-normal
HIGH, LOW = 1, 3
HIGH_EVERY_S = 0.2  # where HIGH comes beside a flood
MARK = re.compile(r"\[\[answer ([0-9.]+) (\d+)\]\]")  # seconds and tokens, for the server
FILLER = "how does a gateway keep a hundred agents within the limits of one provider? "


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request, and what its answer will be."""

    prompt: str
    answer_s: float
    output_tokens: int
    agent: str
    priority: int = LOW

    @property
    def tokens(self) -> int:
        """What the server charges for it, in the end."""
        return input_tokens(self.prompt) + self.output_tokens


def work(rng: Random, *, agent: str, priority: int = LOW, mean_tokens: float = MEAN_TOKENS) -> Work:
    """Draw a request whose input and output have `mean_tokens` each in the mean."""
    characters = 4 * log_normal(rng, mean_tokens)
    output = log_normal(rng, mean_tokens)
    answer_s = round(rng.uniform(FASTEST_S, SLOWEST_S), 4)
    mark = f"[[answer {answer_s} {output}]] "
    filler = FILLER * math.ceil(characters / len(FILLER))
    prompt = (mark + filler)[: max(len(mark), characters)]
    return Work(prompt=prompt, answer_s=answer_s, output_tokens=output, agent=agent, priority=priority)


def input_tokens(text: str) -> int:
    """Count the tokens of a prompt as the server does."""
    return math.ceil(len(text) / 4)


def log_normal(rng: Random, mean: float) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - SPREAD * SPREAD / 2, SPREAD)))


def endless(*, seed: int = SEED, agents: int = 64) -> Iterator[Work]:
    """Yield requests of `agents` that take turns."""
    rng = Random(seed)
    while True:
        for number in range(agents):
            yield work(rng, agent=f"agent-{number}")


def least_seconds(costs: Sequence[float], *, per_minute: float, burst_seconds: float) -> float:
    """Return how long a limit takes at the least to let all of `costs` in, its full bucket at the start included."""
    return sum(costs) * 60.0 / per_minute - burst_seconds
