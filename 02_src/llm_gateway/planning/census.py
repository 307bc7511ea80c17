"""One pass over an input: how many rows, of which models, how long, how many twice; and a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import NamedTuple, TypeVar

from llm_gateway.clients.base import Deployment
from llm_gateway.config import GatewayConfig
from llm_gateway.jobs.records import NewRow
from llm_gateway.jobs.rows import name_of
from llm_gateway.models import LLMRequest, RequestPriority, TokenUsage
from llm_gateway.planning.answers import Answer, Learned, Stratum, stratum_of
from llm_gateway.planning.seen import Seen
from llm_gateway.pricing import MILLION, Price, price_of
from llm_gateway.router import Deployments
from llm_gateway.tokens import estimate_input

PRICES_KEPT = 16_384  # lengths of prompts whose price is remembered: many are of one length
ANTHROPIC_MAX_TOKENS = 4096  # what a request to it asks for that names no other


class Kind(NamedTuple):
    """Rows that are estimated together."""

    stratum: Stratum
    limit: int | None  # bits of the longest answer allowed; None: no limit is known


@dataclass(slots=True)
class Sums:
    """Rows of one kind, added up. Tokens as estimated; prices in US dollars."""

    rows: int = 0
    input: float = 0.0
    limit: float = 0.0  # longest answers allowed
    admitted_input: float = 0.0  # prompts that are longer than the longest answer
    admitted_limit: float = 0.0  # longest answers of the others
    input_usd: float = 0.0
    output_rate: float = 0.0  # price of a token more in each row's answer

    def add(self, other: Sums, sign: int = 1) -> None:
        """Add, or with -1 take away."""
        self.rows += sign * other.rows
        self.input += sign * other.input
        self.limit += sign * other.limit
        self.admitted_input += sign * other.admitted_input
        self.admitted_limit += sign * other.admitted_limit
        self.input_usd += sign * other.input_usd
        self.output_rate += sign * other.output_rate


class Entry(NamedTuple):
    """One row as it was counted."""

    kind: Kind
    sums: Sums
    repeats: bool


class Candidate(NamedTuple):
    """A row that may be asked as part of the sample."""

    row: NewRow
    entry: Entry


class Past(NamedTuple):
    """What an earlier run of the job knows of a row. `seconds` and tokens of an answer; None: it has none."""

    answer: tuple[int, int, float] | None  # input tokens, output tokens, seconds


@dataclass(slots=True)
class Census:
    """Counts the rows of an input. Memory does not grow with it; close it in the end.

    `sample` is how many rows of each stratum are kept for a sample.
    """

    config: GatewayConfig
    sample: int = 0
    seed: int = 0
    kinds: dict[Kind, Sums] = field(default_factory=dict)  # of rows that are to be asked
    repeated: dict[Kind, Sums] = field(default_factory=dict)  # of those, what earlier rows ask too
    candidates: dict[Stratum, list[Candidate]] = field(default_factory=dict)
    rows: int = 0
    malformed: int = 0
    ended: int = 0  # by earlier runs of the job
    cached: int = 0  # rows that have their answer in the cache
    cached_repeats: int = 0  # rows that will have it there once an earlier one is answered
    without_limit: int = 0  # rows to ask whose longest answer nobody states
    urgent: set[str] = field(default_factory=set)  # models with rows that are not LOW
    learned: Learned = field(init=False)
    prices: dict[str, Price] = field(default_factory=dict)
    deployments: dict[str, list[Deployment]] = field(default_factory=dict)
    _rng: Random = field(init=False)
    _unique: dict[Stratum, int] = field(default_factory=dict)
    _seen: Seen = field(default_factory=Seen)
    _made: Deployments = field(init=False)
    _rates: Callable[[str, int], tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin the chance."""
        self._rng = Random(self.seed)  # noqa: S311 - a sample is no secret
        self.learned = Learned(Random(self.seed + 1))  # noqa: S311
        self._made = Deployments(self.config)
        self._rates = lru_cache(PRICES_KEPT)(self._priced)

    def close(self) -> None:
        """Forget which rows there were."""
        self._seen.close()

    def refuse(self) -> None:
        """Count a row that cannot be asked."""
        self.rows += 1
        self.malformed += 1

    def is_new_id(self, row: NewRow) -> bool:
        """Whether no earlier row has the id of this one; call it once a row, before it is added."""
        if row.key is None or row.key == f"line-{row.number}":  # nobody else may have that one
            return True
        return self._seen.add_id(row.key)

    def add(
        self,
        request: LLMRequest,
        row: NewRow,
        past: Past | None = None,
        *,
        key: bytes | None = None,
        is_cached: bool = False,
    ) -> None:
        """Count a row; `past` says that it has ended in an earlier run, and how.

        `key` is that of its answer in the cache, if that is to be kept, and `is_cached` says that it is there.
        """
        self.rows += 1
        if past is not None:
            self._add_past(self._entry(request, is_new=self._seen.add_request(row.fingerprint)), past.answer)
            return
        is_new = self._seen.add_request(row.fingerprint if key is None else key)
        if is_cached or (key is not None and not is_new):
            self.cached += is_cached
            self.cached_repeats += not is_cached
            return
        entry = self._entry(request, is_new=is_new)
        self.kinds.setdefault(entry.kind, Sums()).add(entry.sums)
        self.without_limit += not (request.max_tokens or self._made[row.model][0].settings.max_tokens)
        if request.priority is not RequestPriority.LOW:
            self.urgent.add(row.model)
        if entry.repeats:
            self.repeated.setdefault(entry.kind, Sums()).add(entry.sums)
        elif self.sample:
            self._keep(Candidate(row, entry))

    def answered(self, candidate: Candidate, answer: tuple[int, int, float] | None, *, kept: bool) -> None:
        """Learn from a row of the sample; `kept` takes it out of what is to be asked."""
        entry = candidate.entry
        if kept:
            self.kinds[entry.kind].add(entry.sums, -1)
            self._add_past(entry, answer)
        elif answer is not None:
            self._learn(entry, answer)

    def _add_past(self, entry: Entry, answer: tuple[int, int, float] | None) -> None:
        self.ended += 1
        if answer is not None:
            self._learn(entry, answer)

    def _learn(self, entry: Entry, answer: tuple[int, int, float]) -> None:
        counted, output, seconds = answer
        self.learned.add(entry.kind.stratum, Answer(counted / entry.sums.input, float(output), seconds))

    def _entry(self, request: LLMRequest, *, is_new: bool) -> Entry:
        model = name_of(request.model)
        self._know(model)
        first = self.deployments[model][0]
        tokens = estimate_input(request)
        limit = request.max_tokens or first.settings.max_tokens
        if limit is None and first.endpoint.kind == "anthropic":
            limit = ANTHROPIC_MAX_TOKENS
        plain, rate = self._rates(model, tokens)
        sums = Sums(
            rows=1,
            input=tokens,
            limit=limit or 0,
            admitted_input=tokens if limit is None or tokens > limit else 0,
            admitted_limit=limit if limit is not None and tokens <= limit else 0,
            input_usd=plain,
            output_rate=rate,
        )
        return Entry(Kind(stratum_of(model, tokens), None if limit is None else limit.bit_length()), sums, not is_new)

    def _know(self, model: str) -> None:
        """Look up what a model is and costs, when its first row comes."""
        if model not in self.prices:
            deployments = self.deployments[model] = self._made[model]
            self.prices[model] = price_of(deployments[0])

    def _priced(self, model: str, tokens: int) -> tuple[float, float]:
        """Return the price of a prompt, and of each token of its answer; 0 where it is unknown, and nobody asks."""
        price = self.prices[model]
        plain = price.cost(TokenUsage(input_tokens=tokens)) or 0.0
        full = price.cost(TokenUsage(input_tokens=tokens, output_tokens=MILLION)) or 0.0
        return plain, (full - plain) / MILLION

    def _keep(self, candidate: Candidate) -> None:
        """Keep a fair choice of the rows of each stratum (Vitter's algorithm R)."""
        stratum = candidate.entry.kind.stratum
        count = self._unique[stratum] = self._unique.get(stratum, 0) + 1
        kept = self.candidates.setdefault(stratum, [])
        if len(kept) < self.sample:
            kept.append(candidate)
        elif (place := self._rng.randrange(count)) < self.sample:
            kept[place] = candidate

    def chosen(self, size: int) -> list[Candidate]:
        """Return the sample: from each stratum its share of the rows, at least one while there are enough for that."""
        parts = shares({stratum: self._unique[stratum] for stratum in sorted(self.candidates)}, size)
        # Which of the kept ones is chance too: the first rows of an input tend to stay at the first places.
        found = [each for stratum, part in parts.items() for each in self._rng.sample(self.candidates[stratum], part)]
        return sorted(found, key=lambda each: each.row.number)


Part = TypeVar("Part", bound=Hashable)


def shares(counts: Mapping[Part, int], size: int) -> dict[Part, int]:
    """Divide `size` among parts in proportion, at least one each while it lasts, never more than a part has.

    What comes out adds up to `size`, or to all there is.
    """
    total = sum(counts.values())
    size = min(size, total)
    largest_first = sorted(counts, key=lambda each: (-counts[each], str(each)))
    parts = {each: int(place < size) for place, each in enumerate(largest_first)}
    for _ in range(size - sum(parts.values())):
        # One by one to whoever is furthest below its share: the largest remainders, and never beyond what is there.
        below = (each for each in largest_first if parts[each] < counts[each])
        parts[min(below, key=lambda each: parts[each] - counts[each] * size / total)] += 1
    return parts
