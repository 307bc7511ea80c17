"""The arithmetic of a job's budget: it lends money to the processes that work on the job, never more than there is."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel

from llm_gateway.budgets import ROUNDING
from llm_gateway.limits.shared.protocol import MORE, WANTED, Lending, Lent, Loan, Part

PURSE = "purse"  # the fact of a job that holds it
SILENT = 30.0  # seconds after which a process that said nothing is taken for dead
KEPT = 3600.0  # seconds for which one that is not heard of stands by itself in the ledger


class Member(BaseModel):
    """What one process has of a job's budget. US dollars."""

    lent: float
    spent: float
    at: float  # when it was heard of, by the clock of whoever keeps the ledger; seconds

    def counts(self, now: float) -> float:
        """What it has surely spent; of a dead process all that it had, since its last calls may have been paid."""
        return self.spent if self.at + SILENT >= now else self.lent


class Purse(BaseModel):
    """A job's budget and who has what of it. Pure arithmetic: whoever keeps it makes each step atomic."""

    limit: float  # US dollars
    gone: float = 0.0  # spent by whoever is no member any more
    members: dict[str, Member] = {}
    wanted_at: float | None = None  # when somebody asked in vain

    @classmethod
    def read(cls, stored: Any) -> Self:
        """Take what was stored as a fact of the job."""
        return cls.model_validate(stored)

    def spent(self, now: float) -> float:
        """What was spent by all, as far as it was told, and what dead processes may have spent."""
        return self.gone + sum(member.counts(now) for member in self.members.values())

    def in_doubt(self, now: float) -> float:
        """The part of `spent` that dead processes had borrowed and nobody knows to be spent."""
        return sum(member.counts(now) - member.spent for member in self.members.values())

    def lend(self, said: Lending, now: float) -> Lent:
        """Hear how a process stands, and lend it what it needs, with some more, if that is there."""
        is_last_word = said.get("bye", False)
        parts = {
            name: self._lend(said["me"], part, now, is_last_word=is_last_word) for name, part in said["parts"].items()
        }
        return {"born": "", "parts": parts}

    def _lend(self, me: str, part: Part, now: float, *, is_last_word: bool) -> Loan:
        if me not in self.members:  # new, with nothing, or forgotten: then its loan counts as gone
            self.gone = max(0.0, self.gone - part["lent"])
        self.members[me] = Member(lent=part["lent"], spent=part["spent"], at=now)
        self._forget(now)
        if is_last_word:
            self.gone += self.members.pop(me).spent
        lent = self.gone + sum(member.lent for member in self.members.values())
        need = 0.0 if is_last_word else part["need"]
        loan = 0.0
        if need > 0 and lent + need > self.limit * (1.0 + ROUNDING):
            self.wanted_at = now
        elif need > 0:
            left = max(0.0, self.limit - lent - need)
            loan = need + min(need * MORE, left / (2 * len(self.members)))
            self.members[me].lent += loan
        return {
            "loan": repr(loan),
            "gone": repr(self.gone),
            "lent": repr(lent + loan),
            "spent": repr(self.spent(now)),
            "wanted": self.wanted_at is not None and self.wanted_at + WANTED > now,
            "limit": self.limit,
        }

    def _forget(self, now: float) -> None:
        """Add up those who have not been heard of for long, so that the ledger stays small."""
        for name, member in list(self.members.items()):
            if member.at + KEPT < now:
                self.gone += self.members.pop(name).lent
