"""What became of the rows so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llm_gateway.jobs.records import Ledger, StoredResult, Verdict


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of a job, its earlier runs included. A row counts once its result is recorded."""

    total: int | None = None  # rows of the input; None while it is not known
    answered: int = 0
    errors: int = 0  # rows whose result is an error
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0  # US dollars, as far as it is known
    unpriced: int = 0  # answers of unknown cost

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Return the counts of what was done before."""
        return cls(
            answered=ledger.done,
            errors=ledger.ended - ledger.done,
            input_tokens=ledger.input_tokens,
            output_tokens=ledger.output_tokens,
            cost=ledger.cost_usd,
            unpriced=ledger.unpriced,
        )

    @property
    def done(self) -> int:
        """Rows that have a result."""
        return self.answered + self.errors

    @property
    def known_cost(self) -> float | None:
        """US dollars; None if there were answers and the cost of not one of them is known."""
        return known_cost(self.cost, self.answered, self.unpriced)

    def count(self, results: Sequence[StoredResult]) -> None:
        """Count rows that have ended."""
        if not results:
            return
        # By columns: a million rows come by here.
        _, _, _, _, kinds, _, _, _, input_tokens, output_tokens, costs, unpriced = zip(*results, strict=True)
        answered = kinds.count(None)
        self.answered += answered
        self.errors += len(kinds) - answered
        self.input_tokens += sum(input_tokens)
        self.output_tokens += sum(output_tokens)
        self.cost += sum(costs)
        self.unpriced += sum(unpriced)

    def add(self, verdict: Verdict) -> None:
        """Count a row that this process has ended."""
        if verdict.answer is not None:
            self.answered += 1
        else:
            self.errors += 1
        self.input_tokens += verdict.calls.input_tokens
        self.output_tokens += verdict.calls.output_tokens
        self.cost += verdict.calls.cost_usd
        self.unpriced += verdict.calls.unpriced


def known_cost(cost: float, answered: int, unpriced: int) -> float | None:
    """Return US dollars; None if the cost of not one answer is known."""
    return None if unpriced and unpriced >= answered else cost
