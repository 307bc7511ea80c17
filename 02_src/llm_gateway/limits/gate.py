"""The gate of one credential and model: shut by a 429 until the provider's hint."""

from __future__ import annotations

import math
from dataclasses import dataclass

LONGEST_PAUSE = 60.0  # seconds, of those that nobody asked for
LONGEST_HINT = 86_400.0  # seconds; the longest limits are a day's
FIRST_PAUSE = 1.0


@dataclass(slots=True)
class Gate:
    """No call begins before `opens_at`, whichever ticket was refused. Instants in seconds."""

    opens_at: float = -math.inf
    shut_at: float = -math.inf  # when it was shut last
    refusals: int = 0  # in a row, without a hint, each after the gate had opened again

    def wait(self, now: float) -> float:
        """Return the seconds until a call may begin, 0.0 for now."""
        return self.opens_at - now if self.opens_at > now else 0.0

    def refused(self, now: float, *, began: float, hint: float | None, draw: float) -> None:
        """Shut because a call that began at `began` was refused; `hint` is the pause that the provider asked for.

        Without a hint the pause is up to 1 s, then 2, 4, … up to 60, between its half and its whole as `draw`, uniform
        in [0, 1), says. Refusals of calls that began before the gate was shut say nothing new. A shorter hint never
        opens earlier what a longer one has shut.
        """
        if hint is not None and math.isfinite(hint) and hint >= 0:
            pause = min(hint, LONGEST_HINT)
        elif began <= self.shut_at:
            return
        else:
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.refusals, 62))
            pause = longest * (1.0 + draw) / 2.0
            self.refusals += 1
        self.shut_at = max(self.shut_at, now)
        self.opens_at = max(self.opens_at, now + pause)

    def answered(self, *, began: float) -> None:
        """Note that a call that began at `began` was let in: after the gate was shut, that ends the row of refusals."""
        if began > self.shut_at:
            self.refusals = 0
