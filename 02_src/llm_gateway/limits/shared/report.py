"""What a process has to tell the store with its next word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_gateway.limits.base import Resource
from llm_gateway.limits.shared.protocol import Amounts, Give, Said


@dataclass(slots=True)
class Report:
    """News since the last word. What was told and never answered is told again where the store must know it."""

    born: str = ""  # the state of the store that is known
    busy: int = 0  # calls under way
    has_news: bool = False
    is_urgent: bool = False
    empty_at: float = -math.inf  # when the minutes' buckets are empty
    shut_until: float = -math.inf
    refusals: int = 0
    answered: bool = False
    _gives: dict[tuple[tuple[Resource, int], ...], Give] = field(default_factory=dict)
    _charges: Amounts = field(default_factory=dict)
    _levels: Amounts = field(default_factory=dict)

    def give(self, born: str, takes: Mapping[Resource, int], amounts: Amounts) -> None:
        """Give permits back that were taken from the state `born`; those of another one are lost."""
        if not amounts or born != self.born:
            return
        key = tuple(takes.items())
        known = self._gives.setdefault(key, {"born": born, "takes": dict(takes), "amounts": {}})
        for resource, amount in amounts.items():
            known["amounts"][resource] = known["amounts"].get(resource, 0.0) + amount

    def charge(self, amounts: Amounts) -> None:
        """Take what was used beyond what the store knows of."""
        for resource, amount in amounts.items():
            self._charges[resource] = self._charges.get(resource, 0.0) + amount

    def lower(self, resource: Resource, level: float) -> None:
        """Let no more than `level` permits be there."""
        self._levels[resource] = min(level, self._levels.get(resource, math.inf))

    def only_days(self) -> None:
        """Forget what was used of the minutes' limits, whose buckets are empty anyway when this is told."""
        self._charges = {each: amount for each, amount in self._charges.items() if each == "requests_per_day"}
        self._gives = {}

    def tell(self, said: Said, now: float) -> None:
        """Write the news into `said`, and have none."""
        said["busy"] = self.busy
        if self._gives:
            said["gives"] = list(self._gives.values())
        if self._charges:
            said["charges"] = self._charges
        if self._levels:
            said["levels"] = self._levels
        if self.shut_until > now:
            said["shut"], said["refusals"] = self.shut_until - now, self.refusals
        elif self.answered:
            said["answered"] = True
        if self.empty_at > -math.inf:
            said["empty_in"] = self.empty_at - now
        self._gives, self._charges, self._levels = {}, {}, {}
        self.has_news = self.is_urgent = False
        self.empty_at = self.shut_until = -math.inf
        self.answered = False

    def untold(self, said: Said, now: float) -> None:
        """Take back what was told and never answered. Permits given back may be lost, what was used may not."""
        self.charge(said.get("charges", {}))
        for resource, level in said.get("levels", {}).items():
            self.lower(resource, level)
        if "shut" in said:
            self.shut_until = max(self.shut_until, now + said["shut"])
        if "empty_in" in said:
            self.empty_at = max(self.empty_at, now + said["empty_in"])
