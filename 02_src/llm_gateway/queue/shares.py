"""Which class goes next: HIGH first, and to the others at least their share of what is served."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llm_gateway.models import RequestPriority

SHARES: Mapping[RequestPriority, float] = {RequestPriority.NORMAL: 0.20, RequestPriority.LOW: 0.05}
"""Of the tokens that are served while a class waits; a class that does not use its share leaves it to the others."""


class Shares:
    """Deficit counters of the classes below HIGH.

    While a class waits, every token served to anyone credits it with its share; once the credit covers its next
    request, that one goes before the classes above. So strict priority holds but for the guaranteed shares, and a
    class that nobody holds up owes and is owed nothing.
    """

    def __init__(self) -> None:
        self._credit = dict.fromkeys(SHARES, 0.0)
        self._owes = False  # whether a credit may be more than nothing

    def choose(self, costs: Mapping[RequestPriority, float]) -> RequestPriority | None:
        """Return the class to serve of those that wait, given the cost of each one's next request."""
        for priority in SHARES:
            if priority in costs and self._credit[priority] >= costs[priority]:
                return priority
        return min(costs, default=None)

    def served(self, priority: RequestPriority, cost: float, waiting: Collection[RequestPriority]) -> None:
        """Note that `priority` was served `cost`, while the classes in `waiting` (itself included) waited."""
        if len(waiting) == 1:  # as mostly: nobody is held up
            if self._owes:
                self._credit = dict.fromkeys(SHARES, 0.0)
                self._owes = False
            return
        self._owes = True
        for each, share in SHARES.items():
            if each not in waiting:
                self._credit[each] = 0.0
                continue
            self._credit[each] += share * cost
            if each is priority:
                self._credit[each] = max(0.0, self._credit[each] - cost)
