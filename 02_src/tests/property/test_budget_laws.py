"""Laws of budgets: money is reserved all or nothing, and never overdrawn."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.provider import FakeProvider, ask, gateway_over, unavailable
from fakes.virtual_time import run_virtual
from llm_gateway import BudgetExceededError, LLMGateway, LLMRequest, LLMResponse
from llm_gateway.budgets import Account, Budgets, Hold
from llm_gateway.config import BudgetSettings
from llm_gateway.models import TokenUsage

MODELS = ["m", "n"]
AGENTS = [None, "a", "b"]
AMOUNTS = st.sampled_from([0.0, 1e-6, 0.1, 0.3, 1.0, 7.0])


class Books:
    """The same accounts, kept by adding up every call."""

    def __init__(self, settings: BudgetSettings) -> None:
        self.settings = settings
        self.calls: list[tuple[str, str | None, float]] = []  # what each one costs, or may cost

    def sums(self) -> list[tuple[float, float]]:
        """What stands on each budget, and its limit."""
        settings, calls = self.settings, self.calls
        pairs = [(sum(cost for *_, cost in calls), settings.total or float("inf"))]
        pairs += [(sum(c for m, _, c in calls if m == model), limit) for model, limit in settings.models.items()]
        for agent in AGENTS:
            limit = settings.agents.get(agent, settings.each_agent) if agent else settings.each_agent
            pairs.append((sum(c for _, a, c in calls if a == agent), limit or float("inf")))
        return pairs

    def hold(self) -> bool:
        return all(stands <= limit + 1e-9 for stands, limit in self.sums())


@given(st.data())
def test_spent_and_reserved_never_exceed_a_budget_and_a_refusal_takes_nothing(data: st.DataObject) -> None:
    limit = st.sampled_from([None, 0.5, 2.0, 10.0])
    settings = BudgetSettings(
        total=data.draw(limit),
        models={"m": 3.0} if data.draw(st.booleans()) else {},
        each_agent=data.draw(limit),
        agents={"a": 1.0} if data.draw(st.booleans()) else {},
    )
    budgets, books = Budgets(settings), Books(settings)
    holds: dict[Hold, int] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        settles = data.draw(st.booleans())
        if holds and settles:
            hold = data.draw(st.sampled_from([*holds]))
            place = holds.pop(hold)
            model, agent, worst = books.calls[place]
            actual = data.draw(st.sampled_from([0.0, worst / 2, worst]))
            if actual:
                budgets.settle(hold, actual)
            else:
                budgets.release(hold)
            budgets.settle(hold, worst)  # void
            books.calls[place] = model, agent, actual
        else:
            model, agent = data.draw(st.sampled_from(MODELS)), data.draw(st.sampled_from(AGENTS))
            worst = data.draw(AMOUNTS)
            before = budgets.snapshot()
            books.calls.append((model, agent, worst))
            try:
                taken = budgets.reserve(worst, model=model, agent=agent)
            except BudgetExceededError:
                taken = None
            if isinstance(taken, Hold):
                holds[taken] = len(books.calls) - 1
            else:
                books.calls[-1] = model, agent, worst + 1e-6
                assert not books.hold()  # it would not have fitted
                books.calls.pop()
                untouched = budgets.snapshot()
                assert {name: untouched[name] for name in before} == before
                if isinstance(taken, Account):
                    assert taken.reserved > 0  # somebody will bring money back
        assert books.hold()
        for figures in budgets.snapshot().values():
            assert figures["spent"] + figures["reserved"] <= figures["limit"] * (1 + 1e-9)
    for hold in holds:
        budgets.release(hold)
    assert all(each["reserved"] == pytest.approx(0, abs=1e-9) for each in budgets.snapshot().values())


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_used_as_far_as_it_goes_and_nobody_waits_for_ever(seed: int) -> None:
    rng = Random(seed)
    models = {
        name: {"price": {"input": 0, "output": 1_000_000}, "max_tokens": 20, "max_concurrency": rng.randint(1, 5)}
        for name in ("gpt-4o-mini", "claude-haiku")
    }
    limit = rng.uniform(100, 400)
    provider = FakeProvider(
        latency=lambda _: rng.uniform(0.1, 3.0),
        usage=lambda _: TokenUsage(input_tokens=1, output_tokens=rng.randint(0, 20)),
        answer=lambda _: unavailable() if rng.random() < 0.1 else None,
    )
    outcomes: list[object] = []

    async def caller(gateway: LLMGateway, request: LLMRequest) -> None:
        await asyncio.sleep(rng.uniform(0, 20))
        try:
            outcomes.append(await gateway.request(request))
        except BudgetExceededError as error:
            outcomes.append(error)

    async def main() -> dict[str, float]:
        async with gateway_over(provider, models=models, budgets={"total": limit}) as gateway:
            asked = [ask(str(n), model=rng.choice(list(models)), agent=rng.choice(["a", "b"])) for n in range(80)]
            await asyncio.gather(*(caller(gateway, each) for each in asked))
            figures: dict[str, float] = gateway.get_stats()["budgets"]["the gateway"]
            return figures

    figures = run_virtual(main(), seed=seed)
    paid = [each.receipt.cost_usd for each in outcomes if isinstance(each, LLMResponse) and each.receipt]
    assert figures["spent"] == pytest.approx(sum(cost or 0.0 for cost in paid))
    assert (figures["reserved"], len(outcomes)) == (0, 80)
    assert limit - 20 < figures["spent"] <= limit  # what is left would not pay another call
