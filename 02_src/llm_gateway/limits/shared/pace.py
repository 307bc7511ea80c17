"""A pace that all processes keep together: one gate, one set of limits, one learned rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from llm_gateway.config import Charge, LimitSettings
from llm_gateway.limits.base import Reservation, Resource
from llm_gateway.limits.headers import Standing
from llm_gateway.limits.learning import LearnedRate
from llm_gateway.limits.pace import Pace
from llm_gateway.limits.shared.limiter import SharedLimiter
from llm_gateway.limits.shared.protocol import Reply
from llm_gateway.tokens import Cost

INSTANTS = ("used_at", "refused_at")  # of a LearnedRate: on this process's clock here, on the store's in a view
SAME_EVENT = 0.05  # seconds by which two processes may date an event differently


class SharedPace(Pace):
    """A `Pace` whose limiter is a `SharedLimiter`; what it learns, others read, and the other way round.

    The view is what one process writes and the others read: the limits, as given or told, and the learned rate.
    """

    limiter: SharedLimiter

    def __init__(
        self, settings: LimitSettings, charge: Charge, *, now: float, name: str, cautious: bool, limiter: SharedLimiter
    ) -> None:
        super().__init__(settings, charge, now=now, name=name, cautious=cautious, limiter=limiter)
        self._settings = settings
        self._cautious = cautious
        self._base = replace(self._scale)  # the learned rate as of the latest view
        self._ahead: float | None = None  # by how much the store's clock is ahead of this process's

    def answered(
        self, reservation: Reservation, actual: Cost, now: float, standings: Mapping[Resource, Standing] | None = None
    ) -> None:
        """Settle by what the call used, and learn what the answer's headers tell."""
        refusals = self.gate.refusals
        super().answered(reservation, actual, now, standings)
        if refusals and not self.gate.refusals:
            self.limiter.report.answered = True

    def refused(
        self,
        reservation: Reservation,
        now: float,
        *,
        hint: float | None,
        draw: float,
        standings: Mapping[Resource, Standing] | None = None,
    ) -> None:
        """Shut the gate after a 429, for every process."""
        super().refused(reservation, now, hint=hint, draw=draw, standings=standings)
        report = self.limiter.report
        report.shut_until, report.refusals = self.gate.opens_at, self.gate.refusals
        report.is_urgent = True
        self.limiter.on_due()

    # --- the view -----------------------------------------------------------------------------------------------

    @property
    def given(self) -> str:
        """What the configuration says, to tell a newer one by."""
        return json.dumps([self._settings.model_dump(mode="json"), self.charge, self._cautious])

    def view(self) -> str:
        """Return what other processes need to know."""
        learned = asdict(self._scale)
        for name in INSTANTS:
            at = learned[name]
            learned[name] = None if at is None or self._ahead is None else at + self._ahead
        table = [[resource, whole, rate] for resource, whole, rate in self.limiter.table()]
        return json.dumps({"given": self.given, "unknown": self._unknown, "limits": table, "learned": learned})

    def is_newer_than(self, view: str) -> bool:
        """Whether this process began with another configuration than the view tells of."""
        return bool(json.loads(view).get("given") != self.given)

    def accepted(self, said: LearnedRate) -> None:
        """Note that what was said is what all others read now."""
        self._base = said

    def snapshot_of_learning(self) -> LearnedRate:
        """Return the learned rate as it is now."""
        return replace(self._scale)

    def adopt(self, view: str, now: float) -> None:
        """Take over what another process has learned; what this one learned since the last view is added to it."""
        seen: dict[str, Any] = json.loads(view)
        known = {each.name for each in fields(LearnedRate)}
        theirs = LearnedRate(**{name: figure for name, figure in seen["learned"].items() if name in known})
        for name in INSTANTS:
            at = getattr(theirs, name)
            if at is not None:
                setattr(theirs, name, at - (self._ahead or 0.0))
        mine, base = self._scale, self._base
        self._base = replace(theirs)
        self._unknown = seen["unknown"]
        if _instant(mine) > _instant(theirs) + SAME_EVENT:
            theirs = mine  # it was refused after all that they know of
            self.limiter.changed_limits = True
        elif abs(_instant(mine) - _instant(base)) < SAME_EVENT or _instant(mine) == _instant(base):
            theirs.let_in += mine.let_in - base.let_in
            theirs.calls += mine.calls - base.calls
        self._scale = theirs
        self.limiter.adopt([(each[0], each[1], each[2]) for each in seen["limits"]], theirs.rate, now)

    def hear(self, reply: Reply, sent: float, now: float) -> None:
        """Keep the gate shut as long as the store says, and know its clock."""
        self._ahead = reply["now"] - (sent + now) / 2
        opens_at = now + reply["gate"]
        if reply["gate"] > 0 and opens_at > self.gate.opens_at + SAME_EVENT:
            self.gate.opens_at, self.gate.shut_at = opens_at, now
            self.gate.refusals = max(self.gate.refusals, int(reply["refusals"]))


def _instant(learned: LearnedRate) -> float:
    return -math.inf if learned.refused_at is None else learned.refused_at
