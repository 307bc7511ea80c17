"""Budgets that many processes share: each spends loans of a ledger, which never lends more than a budget holds."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llm_gateway.budgets import ROUNDING, Account, Budgets, Hold
from llm_gateway.clock import Clock
from llm_gateway.errors import BudgetExceededError
from llm_gateway.limits.shared.protocol import Lender, Lending, Loan, Part, StoreError

log = logging.getLogger("llm_gateway")

HEARTBEAT = 1.0  # seconds between two words at most
SETTLED = 0.5  # seconds after a loan in which it is not given back: who waited for it may only now see it
RETRY = 0.25  # seconds between two words while a call waits for money
PATIENCE = 0.5  # seconds for an answer


@dataclass(slots=True, eq=False)
class SharedAccount(Account):
    """One budget and this process's part in it; `spent` and `reserved` are of this process. US dollars."""

    lent: float = 0.0  # to this process since the beginning, less what it gave back
    gone: float = 0.0  # spent by processes that have left
    spent_by_all: float = 0.0  # as the ledger knew it last
    spent_when_told: float = 0.0  # what this process had told of its own then
    lent_to_all: float = 0.0
    asked: float = 0.0  # by a call that waits
    lent_at: float = -math.inf  # the latest loan
    wanted: bool = False  # others wait for what is lent here and not used
    told: tuple[float, float] | None = None  # what was lent and spent when the ledger heard of it last

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell; there may be many agents, and most of them rest."""
        return bool(not self.of_agent or self.asked or self.reserved or self.told != (self.lent, self.spent))

    @property
    def spent_anywhere(self) -> float:
        """What all processes spent, as far as is known here."""
        return self.spent_by_all + self.spent - self.spent_when_told

    def part(self, now: float) -> Part:
        """Say how it stands; give back what is not used where others want it, or nobody here does."""
        used = self.spent + self.reserved
        idle = not self.asked and not self.reserved
        if (self.wanted or idle) and now >= self.lent_at + SETTLED:
            self.lent = min(self.lent, used)
        self.lent = max(self.lent, self.spent)  # a call may cost more than its worst case
        self.spent_when_told = self.spent
        self.told = self.lent, self.spent
        need = max(0.0, used + self.asked - self.lent) if self.asked else 0.0
        self.asked = 0.0
        return {"limit": self.limit, "lent": self.lent, "spent": self.spent, "gone": self.gone, "need": need}

    def hear(self, loan: Loan, now: float) -> None:
        """Take in what the ledger answered."""
        amount = float(loan["loan"])
        if amount > 0:
            self.lent += amount
            self.lent_at = now
        self.gone = float(loan["gone"])
        self.spent_by_all = float(loan["spent"])
        self.lent_to_all = float(loan["lent"])
        self.wanted = loan["wanted"]
        self.limit = loan.get("limit", self.limit)


@dataclass(slots=True)
class SharedBudgets(Budgets):
    """`Budgets` of all processes on one ledger: what all spent and reserved never exceeds them.

    A budget counts as long as the ledger is kept, a day after its last use. While the ledger does not answer, calls
    are paid from what is lent already; others wait. What a process that died had borrowed counts as spent.
    """

    on_due: Callable[[], None] = field(default=lambda: None)
    waits: bool = False  # a call, for money
    me: str = field(default_factory=lambda: uuid.uuid4().hex[:12])  # in the ledger, in whichever loop
    born: str = ""  # the state of the ledger that is known
    _parts: dict[str, SharedAccount] = field(default_factory=dict)

    def check(self, amount: float, *, model: str, agent: str | None) -> None:
        """Raise BudgetExceededError for a call that could cost `amount` US dollars and never fits any more."""
        for account in self._shared(model, agent):
            spent = account.spent_anywhere
            if spent + amount > account.limit * (1.0 + ROUNDING):
                left = max(0.0, account.limit - max(spent, account.lent_to_all))
                raise BudgetExceededError(
                    account.name, limit=account.limit, spent=spent, left=left, cost=amount, remedy=self.remedy
                )

    def reserve(self, amount: float, *, model: str, agent: str | None) -> Hold | Account:
        """Take the worst case of a call from every budget, or from none; return the widest that lacks a loan.

        `on_change` tells when to ask again. Raises BudgetExceededError if it never fits any more.
        """
        self.check(amount, model=model, agent=agent)
        accounts = self._shared(model, agent)
        lacking = [each for each in accounts if each.spent + each.reserved + amount > each.lent * (1.0 + ROUNDING)]
        for account in lacking:
            account.asked = max(account.asked, amount)
        if lacking:
            if not self.waits:
                self.waits = True
                self.on_due()
            return lacking[0]
        for account in accounts:
            account.reserved += amount
        return Hold(amount, accounts)

    def snapshot(self) -> dict[str, Any]:
        """Return every budget that was touched: limit, spent, reserved and left of all processes, in US dollars."""
        return {
            account.name: {
                "limit": account.limit,
                "spent": account.spent_anywhere,
                "reserved": account.reserved,
                "left": max(0.0, account.limit - max(account.spent_anywhere + account.reserved, account.lent_to_all)),
            }
            for account in self._parts.values()
        }

    def say(self, now: float) -> dict[str, Part]:
        """Return how every budget stands here."""
        self.waits = False
        return {name: account.part(now) for name, account in self._parts.items() if account.has_news}

    def forget(self) -> None:
        """Tell everything again: the ledger was emptied."""
        for account in self._parts.values():
            account.told = None

    def hear(self, loans: dict[str, Loan], now: float) -> None:
        """Take in what the ledger answered, and let those who wait look again."""
        for name, loan in loans.items():
            self._parts[name].hear(loan, now)
        for changed in self.on_change:
            changed()

    def _shared(self, model: str, agent: str | None) -> list[SharedAccount]:
        return [each for each in self._of(model, agent) if isinstance(each, SharedAccount)]

    def _account(self, kind: str, key: str | None, name: str, limit: float) -> Account:
        account = self._accounts.get((kind, key))
        if account is None:
            account = self._accounts[kind, key] = self._parts[f"{kind}:{key or ''}"] = SharedAccount(
                name, limit, of_agent=kind == "agent"
            )
        return account


class Ledger:
    """The talk of one process's budgets with the store, one word at a time. `run` ends when it is cancelled."""

    def __init__(
        self, budgets: SharedBudgets, store: Lender, *, key: str, clock: Clock, patience: float = PATIENCE
    ) -> None:
        """Take what talks, and to whom; `patience` is for an answer, in seconds."""
        self._patience = patience
        self._budgets = budgets
        self._store = store
        self._key = key
        self._clock = clock
        self._silent = False
        self._ring = asyncio.Event()
        budgets.on_due = self._ring.set

    async def run(self) -> None:
        """Talk when a call waits for money, and now and then."""
        task = asyncio.current_task()
        while task is not None and not task.cancelling():
            self._ring.clear()
            if await self._talk():
                with suppress(TimeoutError):
                    async with self._clock.timeout(HEARTBEAT):
                        await self._ring.wait()
            else:
                await self._clock.sleep(RETRY)

    async def say_bye(self) -> None:
        """Give back what is not used, if the store can be reached."""
        with suppress(StoreError, TimeoutError):
            async with self._clock.timeout(self._patience):
                await self._store.lend(self._key, {**self._lending(), "bye": True})

    def _lending(self) -> Lending:
        return {"me": self._budgets.me, "born": self._budgets.born, "parts": self._budgets.say(self._clock.now())}

    async def _talk(self) -> bool:
        """Return whether all that was asked for was lent."""
        said = self._lending()
        if not said["parts"]:
            return True
        try:
            async with self._clock.timeout(self._patience):
                answer = await self._store.lend(self._key, said)
        except (StoreError, TimeoutError):
            if not self._silent:
                log.warning("the store of the shared budgets does not answer; calls that need a new loan wait for it")
            self._silent = True
            return False
        self._silent = False
        if said["born"] and answer["born"] != said["born"]:
            log.warning("the store of the shared budgets was emptied; it is told anew what was spent")
            self._budgets.forget()
        self._budgets.born = answer["born"]
        self._budgets.hear(answer["parts"], self._clock.now())
        return all(float(answer["parts"][name]["loan"]) >= part["need"] for name, part in said["parts"].items())
