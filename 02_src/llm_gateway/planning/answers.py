"""What answers teach: how long they are, how long they take, and how far the estimate of their prompt was off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from llm_gateway.simulation.work import P99, RandomWork

MOST_KEPT = 200  # answers of one stratum; more would make the estimate slower, and hardly better
ENOUGH = 5  # answers below which a stratum learns from all answers of its model
LAST_ONES = 8  # answers that are still under way when nothing is left to begin; the longest of them is waited for
SIZES = (256, 1024, 4096, 16_384, 65_536)  # tokens of a prompt at which the next stratum begins


class Stratum(NamedTuple):
    """Rows of one model whose prompts are about as long."""

    model: str
    size: int  # place in SIZES


class Answer(NamedTuple):
    """One answer that was paid for."""

    ratio: float  # tokens of the prompt as counted, by those estimated
    output: float  # tokens
    seconds: float  # in the provider


class Level(NamedTuple):
    """What the rows of one source come to on average, in one draw: as in `Answer`."""

    ratio: float
    output: float
    seconds: float
    last: float  # seconds of one answer: the one that is waited for at the end


def stratum_of(model: str, input_tokens: int) -> Stratum:
    """Return the stratum of a row."""
    return Stratum(model, sum(input_tokens >= size for size in SIZES))


@dataclass(slots=True)
class Learned:
    """The answers known so far, by stratum, in bounded memory: a fair choice of them where there are many."""

    rng: Random
    answers: dict[Stratum, list[Answer]] = field(default_factory=dict)
    counts: dict[Stratum, int] = field(default_factory=dict)

    def add(self, stratum: Stratum, answer: Answer) -> None:
        """Take in one answer (Vitter, "Random Sampling with a Reservoir", 1985, algorithm R)."""
        count = self.counts[stratum] = self.counts.get(stratum, 0) + 1
        kept = self.answers.setdefault(stratum, [])
        if len(kept) < MOST_KEPT:
            kept.append(answer)
        elif (place := self.rng.randrange(count)) < MOST_KEPT:
            kept[place] = answer

    @property
    def count(self) -> int:
        """How many answers were taken in."""
        return sum(self.counts.values())

    def of_model(self, model: str) -> int:
        """How many answers of a model were taken in."""
        return sum(count for stratum, count in self.counts.items() if stratum.model == model)

    def pool(self, stratum: Stratum) -> tuple[Stratum | str, Sequence[Answer]]:
        """Return what a stratum learns from: its own answers, or those of its model if it has few; and their name."""
        own = self.answers.get(stratum, [])
        if len(own) >= ENOUGH:
            return stratum, own
        return stratum.model, [
            each for other, found in self.answers.items() if other.model == stratum.model for each in found
        ]


class Bootstrap:
    """Draws what rows may come to on average, from the answers that are known of their like.

    A draw is the mean of as many answers, drawn again with replacement (Efron, "Bootstrap Methods", 1979), its error
    widened by the root of n / (n - 1) for few answers; and the chance of the rows themselves, whose mean varies by
    their own deviation over the root of their number. A single answer tells no deviation; the prior's stands in.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers
        count = len(answers)
        self._means = [sum(column) / count for column in zip(*answers, strict=True)]
        self._deviations = [
            math.sqrt(sum((each - mean) ** 2 for each in column) / count)
            for column, mean in zip(zip(*answers, strict=True), self._means, strict=True)
        ]
        self._widening = math.sqrt(count / (count - 1)) if count > 1 else 0.0

    def draw(self, rows: int, rng: Random) -> Level:
        """Return one replicate for `rows` rows."""
        if not self._answers:
            return _prior(rng)
        last = max(each.seconds for each in rng.choices(self._answers, k=min(rows, LAST_ONES)))
        if len(self._answers) == 1:
            factor = math.exp(rng.gauss(0.0, _deviation() / 2))
            return Level(self._means[0], self._means[1] * factor, self._means[2] * factor, last * factor)
        again = rng.choices(self._answers, k=len(self._answers))
        own = rng.gauss(0.0, 1.0) / math.sqrt(rows)
        drawn = []
        for column, (mean, deviation) in enumerate(zip(self._means, self._deviations, strict=True)):
            resampled = sum([each[column] for each in again]) / len(again)
            drawn.append(max(0.0, mean + (resampled - mean) * self._widening + own * deviation))
        return Level(drawn[0], drawn[1], drawn[2], last)


def _prior(rng: Random) -> Level:
    """Draw from what is assumed of answers that nobody knows: all of a model's are longer, or all are shorter."""
    work = RandomWork()
    output = work.output_tokens.draw(rng)
    first = work.latency.first_token.draw(rng)
    seconds = first + output / work.latency.speed
    return Level(math.exp(rng.gauss(0.0, 0.1)), output, seconds, seconds)


def _deviation() -> float:
    """Return the deviation of the logarithms of answers' lengths, before one was seen."""
    sizes = RandomWork().output_tokens
    return math.log(sizes.p99 / sizes.median) / P99
