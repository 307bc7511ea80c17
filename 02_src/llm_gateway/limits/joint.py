"""Several paces that a call must keep at the same time: its model's and its account's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_gateway.limits.base import Reservation, Resource, Wait
from llm_gateway.limits.headers import Standing
from llm_gateway.limits.pace import Pace
from llm_gateway.tokens import Cost

Grant = tuple[Reservation, ...]
"""One reservation for each pace, in their order."""


@dataclass(slots=True, eq=False)
class JointPace:
    """All paces together let a call in, or none does. The first is the model's own, which headers speak of.

    A pace that others share can get permits without this one's doing: they come back from a call of another model.
    Then `on_change` is called on the loop, if the latest `reserve` had to wait.
    """

    paces: Sequence[Pace]
    on_change: Callable[[], None] | None = None
    shared: Callable[[], dict[str, Any]] | None = None  # how it stands with what other processes share
    _waits: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Listen to the paces that others share."""
        for pace in self.paces:
            pace.watchers.append(self._changed)

    def _changed(self) -> None:
        if self._waits and self.on_change is not None:
            self._waits = False
            self.on_change()

    @property
    def is_limited(self) -> bool:
        """Whether what a call costs matters; without a limit only the gate does."""
        for pace in self.paces:  # noqa: SIM110 - on everybody's way, and a generator takes four times as long
            if pace.limiter.is_limited:
                return True
        return False

    def is_free(self, now: float) -> bool:
        """Whether a call may begin at once and need not be counted: no limit, and no gate that is shut."""
        return not self.is_limited and all(pace.gate.opens_at <= now for pace in self.paces)

    def free(self, at: float) -> Grant:
        """Return the grant of a call that began at `at`, when it needed none."""
        return tuple([pace.limiter.free(at) for pace in self.paces])

    def check(self, cost: Cost) -> None:
        """Raise RequestTooLargeError for a cost that one of them will never let through."""
        for pace in self.paces:
            pace.check(cost)

    def reserve(self, cost: Cost, now: float, *, low: bool = False, high: bool = False) -> Grant | Wait:
        """Take all of `cost` from each, or nothing and say how long to wait. Raises RequestTooLargeError.

        A `low` call leaves 40 % in a bucket that holds more than 10 s of its rate, as a day's does. A `high` one goes
        before those of other processes, where permits are shared with them.
        """
        self._waits = False  # what is given back here helps nobody who waits here
        taken: list[Reservation] = []
        for pace in self.paces:
            outcome = pace.reserve(cost, now, low=low, high=high)
            if isinstance(outcome, Wait):
                for earlier, reservation in zip(self.paces, taken, strict=False):
                    earlier.refund(reservation, now)
                self._waits = True
                return outcome
            taken.append(outcome)
        return tuple(taken)

    def answered(self, grant: Grant, actual: Cost, now: float, standings: Mapping[Resource, Standing]) -> None:
        """Settle by what the call used, and learn what the answer's headers tell."""
        for pace, reservation in zip(self.paces, grant, strict=True):
            pace.answered(reservation, actual, now, standings if pace is self.paces[0] else None)

    def refused(
        self, grant: Grant, now: float, *, hint: float | None, draw: float, standings: Mapping[Resource, Standing]
    ) -> None:
        """Shut the model's gate after a 429; the account's permits count as used, since it may be what was used up."""
        first, *others = zip(self.paces, grant, strict=True)
        first[0].refused(first[1], now, hint=hint, draw=draw, standings=standings)
        for pace, reservation in others:
            pace.keep(reservation)

    def refund(self, grant: Grant, now: float) -> None:
        """Give everything back: the call was never sent."""
        for pace, reservation in zip(self.paces, grant, strict=True):
            pace.refund(reservation, now)

    def keep(self, grant: Grant) -> None:
        """Let the whole reservation count as used: the call was sent, and nobody knows what it used."""
        for pace, reservation in zip(self.paces, grant, strict=True):
            pace.keep(reservation)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Return where each limit stands, what is waited for, and for how long the gate is shut, for statistics."""
        limits = {
            f"{place}{resource}": {
                "limit": level.limit,
                "per_second": level.rate,
                "level": level.level,
                "reserved": level.reserved,
                "used": level.used,
                "waits": level.waits,
            }
            for place, pace in zip(("", "account_"), self.paces, strict=False)
            for resource, level in pace.limiter.levels(now).items()
        }
        binding = next((found for pace in self.paces if (found := pace.limiter.binding(now))), None)
        figures = {"limits": limits, "binding": binding, "gate": max(pace.gate.wait(now) for pace in self.paces)}
        if self.shared is not None:
            figures["shared"] = self.shared()
        return figures
