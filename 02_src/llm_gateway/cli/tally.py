"""What became of the rows so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from llm_gateway.errors import GatewayError
from llm_gateway.models import LLMResponse


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one run. A row counts once its line has been written."""

    total: int | None = None  # rows of the input; None while it is not known
    read: int = 0
    answered: int = 0
    malformed: int = 0
    without_result: int = 0  # read, and given up when the run was stopped
    failed: Counter[str] = field(default_factory=Counter)  # by kind of error
    examples: dict[str, str] = field(default_factory=dict)  # the first sentence of each kind
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0  # US dollars, as far as it is known
    unpriced: int = 0  # answers of unknown cost

    @property
    def done(self) -> int:
        """Rows whose result is written."""
        return self.answered + self.malformed + self.failed.total()

    @property
    def errors(self) -> int:
        """Rows whose result is an error."""
        return self.malformed + self.failed.total()

    @property
    def known_cost(self) -> float | None:
        """US dollars; None if there were answers and the cost of not one of them is known."""
        return None if self.unpriced and self.unpriced == self.answered else self.cost

    def count_answer(self, response: LLMResponse) -> None:
        """Count a row that was answered."""
        self.answered += 1
        receipt = response.receipt
        if receipt is not None and receipt.usage is not None:
            self.input_tokens += receipt.usage.input_tokens
            self.output_tokens += receipt.usage.output_tokens
        if receipt is None or receipt.cost_usd is None:
            self.unpriced += 1
        else:
            self.cost += receipt.cost_usd

    def count_malformed(self) -> None:
        """Count a row that could not be asked."""
        self.malformed += 1

    def count_failure(self, error: Exception) -> None:
        """Count a row that was asked in vain."""
        kind = error.kind if isinstance(error, GatewayError) else "bug"
        self.failed[kind] += 1
        self.examples.setdefault(kind, str(error) or type(error).__name__)
