"""What the rows of a job's provider batches may cost, held from the gateway's budgets until it is known."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_gateway.budgets import BatchPurse, Hold
from llm_gateway.models import LLMRequest


@dataclass(slots=True)
class BatchMoney:
    """The holds of the batches under way, by intent and by row. Without a purse everything is free."""

    purse: BatchPurse | None
    _holds: dict[str, dict[int, Hold]] = field(default_factory=dict)

    def reserve(self, intent: str, number: int, request: LLMRequest) -> bool:
        """Hold the worst case of a row; False if it must wait until others turn out cheaper than theirs.

        Raises BudgetExceededError if it never fits any more; InvalidRequestError, ConfigurationError.
        """
        if self.purse is None:
            return True
        hold = self.purse.reserve(request, request.agent)
        if not isinstance(hold, Hold):
            return False
        self._holds.setdefault(intent, {})[number] = hold
        return True

    def take(self, intent: str, number: int, request: LLMRequest) -> None:
        """Hold the worst case of a row that an earlier run sent, whether or not it fits."""
        if self.purse is not None:
            self._holds.setdefault(intent, {})[number] = self.purse.take(request, request.agent)

    def settle(self, intent: str, number: int, cost: float | None) -> None:
        """Note what a row cost, in US dollars; None: nobody knows, so that its worst case counts."""
        hold = self._holds.get(intent, {}).pop(number, None)
        if hold is not None and self.purse is not None:
            self.purse.settle(hold, cost)

    def close(self, intent: str, *, in_doubt: bool) -> None:
        """Settle the rows that a batch left without a result: they cost nothing, or nobody knows what."""
        for number in list(self._holds.get(intent, ())):
            self.settle(intent, number, None if in_doubt else 0.0)
        self._holds.pop(intent, None)
