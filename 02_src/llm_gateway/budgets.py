"""Budgets in US dollars: what was spent and what calls under way may cost at worst never exceed them.

Pure arithmetic, no I/O. A budget counts from the gateway's construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_gateway.config import BudgetSettings
from llm_gateway.errors import UNDER_BUDGETS, BudgetExceededError
from llm_gateway.models import LLMRequest
from llm_gateway.price_lanes import PRICE_SHARES

ROUNDING = 1e-12  # share of a budget that floating point may lose


@dataclass(slots=True, eq=False)
class Account:
    """One budget. Amounts in US dollars."""

    name: str  # as an error's sentence speaks of it
    limit: float
    of_agent: bool = False  # whether it is one agent's alone
    spent: float = 0.0
    reserved: float = 0.0  # the worst case of the calls under way

    @property
    def left(self) -> float:
        """What may still be spent if no call under way gives anything back."""
        return max(0.0, self.limit - self.spent - self.reserved)

    def holds(self, amount: float, *, reserved: float) -> bool:
        """Whether `amount` fits beside what is spent and `reserved`."""
        return self.spent + reserved + amount <= self.limit * (1.0 + ROUNDING)


@dataclass(slots=True, eq=False)
class Hold:
    """The worst case of one call, taken from every budget that it falls under."""

    amount: float
    accounts: Sequence[Account]
    open: bool = True


@dataclass(slots=True)
class Budgets:
    """The budgets of one gateway: of everything, of each model, of each agent."""

    settings: BudgetSettings
    on_change: list[Callable[[], None]] = field(default_factory=list)  # called when money comes back
    owner: str = "the gateway"  # of the budget of everything, as an error's sentence speaks of it
    remedy: str = UNDER_BUDGETS  # what such a sentence advises
    _accounts: dict[tuple[str, str | None], Account] = field(default_factory=dict)

    def applies_to(self, model: str) -> bool:
        """Whether a call of `model` may fall under a budget."""
        settings = self.settings
        of_agents = settings.each_agent is not None or bool(settings.agents)
        return settings.total is not None or model in settings.models or of_agents

    def check(self, amount: float, *, model: str, agent: str | None) -> None:
        """Raise BudgetExceededError for a call that could cost `amount` US dollars and never fits any more."""
        for account in self._of(model, agent):
            if not account.holds(amount, reserved=0.0):
                raise BudgetExceededError(
                    account.name,
                    limit=account.limit,
                    spent=account.spent,
                    left=account.left,
                    cost=amount,
                    remedy=self.remedy,
                )

    def reserve(self, amount: float, *, model: str, agent: str | None) -> Hold | Account:
        """Take the worst case of a call from every budget, or from none.

        An account, of several the widest: it fits there once calls under way turn out cheaper than their worst case;
        `on_change` tells when to ask again. Raises BudgetExceededError if it never fits any more.
        """
        self.check(amount, model=model, agent=agent)
        accounts = self._of(model, agent)
        for account in accounts:
            if not account.holds(amount, reserved=account.reserved):
                return account
        for account in accounts:
            account.reserved += amount
        return Hold(amount, accounts)

    def take(self, amount: float, *, model: str, agent: str | None) -> Hold:
        """Take the worst case of a call that is under way already, whether or not it fits."""
        accounts = self._of(model, agent)
        for account in accounts:
            account.reserved += amount
        return Hold(amount, accounts)

    def settle(self, hold: Hold, actual: float) -> None:
        """Replace the worst case by the actual cost. The second time is void."""
        if not hold.open:
            return
        hold.open = False
        for account in hold.accounts:
            account.reserved = max(0.0, account.reserved - hold.amount)
            account.spent += actual
        for changed in self.on_change:
            changed()

    def release(self, hold: Hold) -> None:
        """Give everything back: the call cost nothing. Void after `settle`."""
        self.settle(hold, 0.0)

    def snapshot(self) -> dict[str, Any]:
        """Return every budget that was touched: limit, spent, reserved and left, in US dollars."""
        return {
            account.name: {
                "limit": account.limit,
                "spent": account.spent,
                "reserved": account.reserved,
                "left": account.left,
            }
            for account in self._accounts.values()
        }

    def _of(self, model: str, agent: str | None) -> list[Account]:
        settings = self.settings
        found = []
        if settings.total is not None:
            found.append(self._account("total", None, self.owner, settings.total))
        if model in settings.models:
            found.append(self._account("model", model, f"model '{model}'", settings.models[model]))
        limit = settings.each_agent if agent is None else settings.agents.get(agent, settings.each_agent)
        if limit is not None:
            name = "requests that name no agent" if agent is None else f"agent '{agent}'"
            found.append(self._account("agent", agent, name, limit))
        return found

    def _account(self, kind: str, key: str | None, name: str, limit: float) -> Account:
        account = self._accounts.get((kind, key))
        if account is None:
            account = self._accounts[kind, key] = Account(name, limit, of_agent=kind == "agent")
        return account


class JointBudgets(Budgets):
    """The budgets of a gateway and, until `part`, those of a job: a call holds its worst case in all, or in none."""

    __slots__ = ("_job", "own")

    def __init__(self, own: Budgets, job: Budgets) -> None:
        super().__init__(own.settings)
        self.own = own
        self._job: Budgets | None = job
        own.on_change = job.on_change = self.on_change

    def part(self) -> None:
        """Let calls fall under the job's budgets no more."""
        self._job = None
        for changed in self.on_change:
            changed()

    def applies_to(self, model: str) -> bool:
        """Whether a call of `model` may fall under a budget."""
        return any(each.applies_to(model) for each in self._parts())

    def check(self, amount: float, *, model: str, agent: str | None) -> None:
        """Raise BudgetExceededError for a call that could cost `amount` US dollars and never fits any more."""
        for each in self._parts():
            each.check(amount, model=model, agent=agent)

    def reserve(self, amount: float, *, model: str, agent: str | None) -> Hold | Account:
        """Take the worst case of a call from every budget, or from none, as `Budgets.reserve` does."""
        self.check(amount, model=model, agent=agent)
        hold = self.own.reserve(amount, model=model, agent=agent)
        if not isinstance(hold, Hold) or self._job is None:
            return hold
        of_job = self._job.reserve(amount, model=model, agent=agent)
        if isinstance(of_job, Hold):
            return Hold(amount, [*hold.accounts, *of_job.accounts])
        for account in hold.accounts:  # without a word to those who wait: nothing came back
            account.reserved = max(0.0, account.reserved - amount)
        return of_job

    def snapshot(self) -> dict[str, Any]:
        """Return every budget that was touched: limit, spent, reserved and left, in US dollars."""
        return {name: account for each in self._parts() for name, account in each.snapshot().items()}

    def _of(self, model: str, agent: str | None) -> list[Account]:
        return [account for each in self._parts() for account in each._of(model, agent)]  # noqa: SLF001 - of its kind

    def _parts(self) -> tuple[Budgets, ...]:
        return (self.own,) if self._job is None else (self.own, self._job)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPurse:
    """What the rows of provider batches of one model are paid from: each holds its worst case, at the batch price."""

    budgets: Budgets
    model: str
    worst_case: Callable[[LLMRequest], float]  # US dollars in the standard lane; raises what `Upstream.worst_case` does

    @classmethod
    def of(cls, budgets: Budgets | None, model: str, worst_case: Callable[[LLMRequest], float]) -> BatchPurse | None:
        """Return the purse of a model; None where no budget can apply to it."""
        if budgets is None or not budgets.applies_to(model):
            return None
        return cls(budgets=budgets, model=model, worst_case=worst_case)

    def check(self, request: LLMRequest, agent: str | None) -> None:
        """Raise BudgetExceededError for a row that never fits any more; InvalidRequestError, ConfigurationError."""
        self.budgets.check(self._amount(request), model=self.model, agent=agent)

    def reserve(self, request: LLMRequest, agent: str | None) -> Hold | Account:
        """Take the worst case of a row, as `Budgets.reserve` does. Raises what `check` raises."""
        return self.budgets.reserve(self._amount(request), model=self.model, agent=agent)

    def take(self, request: LLMRequest, agent: str | None) -> Hold:
        """Take the worst case of a row that is in a batch under way already, whether or not it fits."""
        return self.budgets.take(self._amount(request), model=self.model, agent=agent)

    def settle(self, hold: Hold, cost: float | None) -> None:
        """Note what a row cost; None: nobody knows, so that its worst case counts."""
        self.budgets.settle(hold, hold.amount if cost is None else cost)

    def _amount(self, request: LLMRequest) -> float:
        return self.worst_case(request) * PRICE_SHARES["batch"]
