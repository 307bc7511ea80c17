"""`gateway.job(path, budget=…)`: a job stops before it would cost more, and goes on with more money."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes.provider import FakeProvider, ask, gateway_over
from llm_gateway import BudgetExceededError, ConfigurationError, LLMGateway, LLMRequest
from llm_gateway.jobs import Job
from llm_gateway.models import TokenUsage

STATE = Path("work.job")
MODELS = {
    "gpt-4o-mini": {
        "provider": "openai",
        "model": "m",
        "max_tokens": 10,  # 0.01 US dollars at worst
        "price": {"input": 0, "output": 1000},
        "max_concurrency": 2,
    }
}
COST = 0.008


def begun(**config: Any) -> tuple[LLMGateway, FakeProvider]:
    provider = FakeProvider(usage=lambda _: TokenUsage(input_tokens=10, output_tokens=8))
    return gateway_over(provider, models=MODELS, **config), provider


def some(count: int) -> list[LLMRequest]:
    return [ask(f"r{number}", text=f"question {number}") for number in range(1, count + 1)]


async def answered(job: Job, requests: list[LLMRequest]) -> int:
    return len([outcome async for outcome in job.run(requests)])


async def spent(job: Job) -> float:
    return (await job.ledger()).cost_usd


async def test_a_run_stops_before_its_budget_and_a_larger_one_goes_on() -> None:
    gateway, provider = begun()
    async with gateway, gateway.job(STATE, budget=0.05) as job:
        with pytest.raises(BudgetExceededError, match=r"of the budget of the job, .* or raise the job's `budget`"):
            await answered(job, some(20))
        assert 0.03 < await spent(job) <= 0.05
        assert gateway.get_stats()["budgets"]["the job"]["limit"] == 0.05
    assert len(provider.ledger) == 6
    gateway, provider = begun()
    async with gateway, gateway.job(STATE, budget=1.0) as job:
        assert await answered(job, some(20)) == 20
        assert await spent(job) == pytest.approx(20 * COST)
    assert len(provider.ledger) == 20 - 6


async def test_a_job_that_has_spent_all_of_it_does_not_open() -> None:
    gateway, _ = begun()
    async with gateway, gateway.job(STATE) as job:
        await answered(job, some(5))
    gateway, provider = begun()
    async with gateway:
        with pytest.raises(ConfigurationError, match=r"^budget: the job has spent \$0\.0400 of \$0\.0300; raise it"):
            await gateway.job(STATE, budget=0.03).__aenter__()
        async with gateway.job(STATE, budget=0.06) as job:  # the refused one holds nothing
            assert await answered(job, some(6)) == 6
    assert len(provider.ledger) == 1


async def test_a_gateway_that_has_made_calls_takes_no_budget_of_a_job() -> None:
    gateway, provider = begun()
    async with gateway:
        await gateway.request(ask("before"))
        with pytest.raises(ConfigurationError, match="budget: the gateway has made calls before; give the job a gate"):
            await gateway.job(STATE, budget=1.0).__aenter__()
        async with gateway.job(STATE) as job:
            assert await answered(job, some(2)) == 2
    assert len(provider.ledger) == 3


async def test_calls_beside_an_open_job_count_and_those_after_it_are_free() -> None:
    gateway, _ = begun(budgets={"total": 1.0})
    async with gateway:
        async with gateway.job(STATE, budget=0.03) as job:
            await gateway.request(ask("beside"))
            with pytest.raises(BudgetExceededError):
                await answered(job, some(20))
            with pytest.raises(BudgetExceededError):
                await gateway.request(ask("too much"))
            assert await spent(job) <= 0.03 - COST
        await gateway.request(ask("after"))
        budgets = gateway.get_stats()["budgets"]
        assert "the job" not in budgets
        assert budgets["the gateway"]["reserved"] == 0.0


async def test_a_job_in_memory_has_a_budget_too() -> None:
    gateway, _ = begun()
    async with gateway, gateway.job(None, budget=0.05) as job:
        with pytest.raises(BudgetExceededError):
            await answered(job, some(20))
        assert 0.03 < await spent(job) <= 0.05


async def slowly(requests: list[LLMRequest]) -> AsyncIterator[LLMRequest]:
    for request in requests:
        yield request


async def test_a_job_that_is_left_early_gives_back_what_its_calls_held() -> None:
    gateway, _ = begun(budgets={"total": 1.0})
    async with gateway:
        async with gateway.job(STATE, budget=0.5) as job:
            async for _outcome in job.run(slowly(some(20))):
                break
        account = gateway.get_stats()["budgets"]["the gateway"]
        assert account["reserved"] == 0.0
        async with gateway.job(STATE) as job:
            assert account["spent"] == pytest.approx(await spent(job))
