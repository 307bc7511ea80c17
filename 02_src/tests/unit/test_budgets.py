"""Budgets in US dollars: refused beforehand what does not fit, and never overdrawn."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, refused_key, unavailable
from fakes.virtual_time import VirtualTimeLoop, run_virtual
from llm_gateway import (
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    LLMGateway,
    LLMRequest,
    LLMResponse,
    ProviderTimeoutError,
    RequestPriority,
)
from llm_gateway.budgets import Account, Budgets, Hold, JointBudgets
from llm_gateway.config import BudgetSettings
from llm_gateway.models import TokenUsage

HIGH, NORMAL, LOW = RequestPriority
MILLION = 1_000_000


def priced(**section: object) -> dict[str, object]:
    """A model whose input is free; a call costs a dollar for each token of its answer, at most five of them."""
    return {"gpt-4o-mini": {"price": {"input": 0, "output": MILLION}, "max_tokens": 5, **section}}


def answers_of(tokens: int) -> FakeProvider:
    return FakeProvider(usage=lambda _: TokenUsage(input_tokens=10, output_tokens=tokens))


def account(gateway: LLMGateway, name: str = "the gateway") -> tuple[float, float, float]:
    """What was spent, is reserved, and is left."""
    figures = gateway.get_stats()["budgets"][name]
    return figures["spent"], figures["reserved"], figures["left"]


# --- the arithmetic ---------------------------------------------------------------------------------------------------


def test_a_call_takes_its_worst_case_from_every_budget_it_falls_under_or_from_none() -> None:
    budgets = Budgets(BudgetSettings(total=10, models={"m": 6}, agents={"a": 5}, each_agent=3))
    assert isinstance(budgets.reserve(4, model="m", agent="a"), Hold)
    blocked = budgets.reserve(2, model="other", agent="a")
    assert isinstance(blocked, Account)
    assert (blocked.name, blocked.of_agent) == ("agent 'a'", True)
    blocked = budgets.reserve(3, model="m", agent="b")
    assert isinstance(blocked, Account)
    assert (blocked.name, blocked.of_agent) == ("model 'm'", False)
    assert {name: figures["reserved"] for name, figures in budgets.snapshot().items()} == {
        "the gateway": 4,
        "agent 'a'": 4,
        "model 'm'": 4,
        "agent 'b'": 0,
    }


def test_what_was_not_spent_comes_back_once_and_everybody_hears_of_it() -> None:
    budgets = Budgets(BudgetSettings(total=10))
    heard: list[float] = []
    budgets.on_change.append(lambda: heard.append(budgets.snapshot()["the gateway"]["left"]))
    first, second = (budgets.reserve(4, model="m", agent=None) for _ in range(2))
    assert isinstance(first, Hold)
    assert isinstance(second, Hold)
    budgets.settle(first, 1)
    budgets.settle(first, 4)
    budgets.release(second)
    budgets.release(first)
    assert heard == [5, 9]
    assert budgets.snapshot()["the gateway"] == {"limit": 10, "spent": 1, "reserved": 0, "left": 9}


def test_what_can_never_fit_any_more_is_refused_with_what_is_left() -> None:
    budgets = Budgets(BudgetSettings(total=10))
    hold = budgets.reserve(4, model="m", agent=None)
    assert isinstance(hold, Hold)
    budgets.settle(hold, 3.5)
    with pytest.raises(
        BudgetExceededError, match=r"up to \$7.000000.*of the gateway, \$10, \$6.500000 is left"
    ) as caught:
        budgets.reserve(7, model="m", agent=None)
    error = caught.value
    assert (error.limit, error.spent, error.left, error.cost, error.owner) == (10, 3.5, 6.5, 7, "the gateway")


def test_agents_without_a_budget_of_their_own_have_one_each_and_the_nameless_share_one() -> None:
    budgets = Budgets(BudgetSettings(each_agent=3, agents={"rich": 100}))
    assert isinstance(budgets.reserve(50, model="m", agent="rich"), Hold)
    assert isinstance(budgets.reserve(3, model="m", agent="b"), Hold)
    assert isinstance(budgets.reserve(2, model="m", agent=None), Hold)
    assert isinstance(budgets.reserve(2, model="m", agent=None), Account)
    assert set(budgets.snapshot()) == {"agent 'rich'", "agent 'b'", "requests that name no agent"}


def test_a_gateway_with_budgets_of_agents_alone_leaves_the_nameless_in_peace() -> None:
    budgets = Budgets(BudgetSettings(agents={"a": 1}))
    assert budgets.applies_to("m")
    hold = budgets.reserve(1000, model="m", agent=None)
    assert isinstance(hold, Hold)
    budgets.settle(hold, 1000)
    assert budgets.snapshot() == {}


def test_a_model_without_a_budget_is_not_counted_where_only_models_have_one() -> None:
    budgets = Budgets(BudgetSettings(models={"m": 1}))
    assert (budgets.applies_to("m"), budgets.applies_to("other")) == (True, False)


def test_a_call_of_a_job_takes_its_worst_case_from_the_jobs_budget_and_the_gateways_or_from_neither() -> None:
    own = Budgets(BudgetSettings(total=10, each_agent=4))
    of_job = Budgets(BudgetSettings(total=6), owner="the job", remedy="raise it")
    both = JointBudgets(own, of_job)
    heard: list[None] = []
    both.on_change.append(lambda: heard.append(None))
    first = both.reserve(4, model="m", agent="a")
    assert isinstance(first, Hold)
    blocked = [both.reserve(3, model="m", agent=agent) for agent in ("a", "b")]
    assert [each.name for each in blocked if isinstance(each, Account)] == ["agent 'a'", "the job"]
    assert not heard
    assert {name: figures["reserved"] for name, figures in both.snapshot().items() if figures["reserved"]} == {
        "the gateway": 4,
        "agent 'a'": 4,
        "the job": 4,
    }
    both.settle(first, 1)
    both.settle(both.take(3, model="m", agent=None), 3)
    assert len(heard) == 2
    assert (both.snapshot()["the job"]["spent"], both.snapshot()["the gateway"]["spent"]) == (4, 4)
    with pytest.raises(BudgetExceededError, match=r"of the budget of the job, \$6, .* lower max_tokens, or raise it\."):
        both.reserve(3, model="m", agent="b")
    assert both.applies_to("m")
    assert not JointBudgets(Budgets(BudgetSettings()), Budgets(BudgetSettings())).applies_to("m")


# --- in the gateway ---------------------------------------------------------------------------------------------------


async def test_spending_ends_where_the_next_call_could_break_the_budget() -> None:
    provider = answers_of(2)
    async with gateway_over(provider, models=priced(), budgets={"total": 10}) as gateway:
        outcomes = await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(9)), return_exceptions=True)
        assert account(gateway) == (6, 0, 4)
        with pytest.raises(BudgetExceededError, match="of the gateway"):
            await gateway.request(ask("at the door"))
        assert (await gateway.request(ask("small", max_tokens=4))).content == "ok"
        json.dumps(gateway.get_stats()["budgets"])
    assert [isinstance(each, LLMResponse) for each in outcomes] == [True] * 3 + [False] * 6
    assert all(isinstance(each, BudgetExceededError) for each in outcomes[3:])
    assert len(provider.ledger) == 4


async def test_a_request_waits_for_money_while_calls_under_way_may_turn_out_cheaper() -> None:
    provider = answers_of(1)
    async with gateway_over(provider, models=priced(), budgets={"total": 12}) as gateway:
        await gateway.batch([ask(str(n)) for n in range(5)])
    assert [entry.began for entry in provider.ledger] == [0.0, 0.0, 1.0, 1.0, 2.0]


async def test_money_that_comes_back_in_one_model_wakes_the_other() -> None:
    provider = answers_of(1)
    provider.latency = lambda request: 3.0 if request.request_id == "slow" else 1.0
    models = priced() | {"claude-haiku": {"price": {"input": 0, "output": MILLION}, "max_tokens": 5}}
    async with gateway_over(provider, models=models, budgets={"total": 9}) as gateway:
        slow = asyncio.create_task(gateway.request(ask("slow")))
        await asyncio.sleep(0.5)
        await gateway.request(ask("other", model="claude-haiku"))
        await slow
    assert [entry.began for entry in provider.ledger] == [0.0, 3.0]


async def test_an_agent_that_waits_for_money_of_its_own_holds_up_nobody_else() -> None:
    provider = answers_of(1)
    provider.latency = lambda request: 10.0 if request.agent == "poor" else 1.0
    async with gateway_over(provider, models=priced(), budgets={"agents": {"poor": 7}}) as gateway:
        poor = [asyncio.create_task(gateway.request(ask(f"p{n}", HIGH, agent="poor"))) for n in range(3)]
        await asyncio.sleep(0.5)
        others = [gateway.request(ask(f"o{n}", agent=f"agent {n % 2}")) for n in range(4)]
        await asyncio.gather(*others)
        assert asyncio.get_running_loop().time() == 1.5
        outcomes = await asyncio.gather(*poor, return_exceptions=True)
    began = {entry.request.request_id: entry.began for entry in provider.ledger}
    assert [began["p0"], began["p1"], began["p2"]] == [0.0, 10.0, 20.0]
    assert all(isinstance(each, LLMResponse) for each in outcomes)


async def test_an_agent_without_money_delays_not_the_small_batches_of_others() -> None:
    provider = answers_of(1)
    batching = {"max_batch_size": 2, "max_wait_ms": 100}
    async with gateway_over(provider, models=priced(), budgets={"agents": {"poor": 6}}, batching=batching) as gateway:
        asked = [ask(f"p{n}", agent="poor") for n in range(4)] + [ask(f"o{n}", agent="o") for n in range(6)]
        outcomes = await gateway.batch(asked, return_exceptions=True)
    began = {entry.request.request_id: entry.began for entry in provider.ledger}
    assert max(began[f"o{n}"] for n in range(6)) < 1.0
    assert [isinstance(each, LLMResponse) for each in outcomes] == [True] * 2 + [False] * 2 + [True] * 6


async def test_a_failed_call_costs_nothing_but_one_that_broke_off_may_have_cost_all() -> None:
    timeout = ProviderTimeoutError("slow", provider="fake", model="m")
    provider = answers_of(1)
    provider.script = [unavailable(), rate_limited(), "ok", timeout, "ok"]
    async with gateway_over(provider, models=priced(), budgets={"total": 100}) as gateway:
        await gateway.request(ask("a"))
        assert account(gateway) == (1, 0, 99)
        await gateway.request(ask("b"))
        assert account(gateway) == (7, 0, 93)


async def test_a_caller_that_leaves_pays_the_worst_case_once_its_call_was_sent() -> None:
    provider = answers_of(1)
    async with gateway_over(provider, models=priced(max_concurrency=1), budgets={"total": 100}) as gateway:
        sent, queued = (asyncio.create_task(gateway.request(ask(name))) for name in "ab")
        await asyncio.sleep(0.5)
        assert account(gateway) == (0, 5, 95)
        sent.cancel()
        queued.cancel()
        await asyncio.wait([sent, queued])
        await asyncio.sleep(0)
        assert account(gateway) == (5, 0, 95)


async def test_an_answer_without_usage_counts_as_the_worst_case() -> None:
    provider = FakeProvider(usage=lambda _: None)
    async with gateway_over(provider, models=priced(), budgets={"total": 100}) as gateway:
        response = await gateway.request(ask("a"))
        assert account(gateway) == (5, 0, 95)
    assert response.receipt is not None
    assert response.receipt.cost_usd is None


async def test_what_has_no_bound_or_no_price_is_an_error_that_says_what_to_set() -> None:
    nothing = {"price": {"input": 0, "output": 1}}
    models = {"gpt-4o-mini": nothing, "local-llama": {"max_tokens": 5}}
    async with gateway_over(FakeProvider(), models=models, budgets={"total": 1}) as gateway:
        with pytest.raises(InvalidRequestError, match="max_tokens: missing; a budget needs the longest answer"):
            await gateway.request(ask("a"))
        with pytest.raises(ConfigurationError, match=r"models\.local-llama\.price: .* unknown"):
            await gateway.request(ask("b", model="local-llama"))
        assert (await gateway.request(ask("c", max_tokens=5))).content == "ok"


async def test_a_cheaper_deployment_answers_what_the_dearer_one_has_no_money_for() -> None:
    provider = answers_of(1)
    cheap = {"provider": "ollama", "price": {"input": 0, "output": 0}}
    async with gateway_over(provider, models=priced(deployments=[cheap]), budgets={"total": 4}) as gateway:
        await gateway.batch([ask(str(n)) for n in range(3)])
        assert account(gateway) == (0, 0, 4)
    assert set(provider.asked) == {"ollama/gpt-4o-mini"}


async def test_a_fallback_is_paid_from_its_own_models_budget() -> None:
    provider = answers_of(1)
    provider.by["openai/gpt-4o-mini"] = refused_key()
    models = priced(fallbacks=["claude-haiku"]) | {"claude-haiku": {"price": {"input": 0, "output": MILLION}}}
    async with gateway_over(provider, models=models, budgets={"models": {"claude-haiku": 6}}) as gateway:
        assert (await gateway.request(ask("a", max_tokens=5))).model == "claude-haiku"
        assert account(gateway, "model 'claude-haiku'") == (1, 0, 5)


async def test_money_that_is_gone_ends_the_wait_also_while_the_gateway_drains() -> None:
    provider = answers_of(5)
    gateway = gateway_over(provider, models=priced(), budgets={"total": 9})
    asked = [asyncio.create_task(gateway.request(ask(str(n)))) for n in range(2)]
    await asyncio.sleep(0.5)
    await gateway.shutdown()
    assert asyncio.get_running_loop().time() == 1.0
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in outcomes] == [LLMResponse, BudgetExceededError]


def test_a_gateway_that_goes_on_in_another_loop_keeps_its_accounts() -> None:
    provider = answers_of(1)
    gateway = gateway_over(provider, models=priced(), budgets={"total": 8})

    async def cut_off(request: LLMRequest) -> None:
        waiting = [
            asyncio.ensure_future(gateway.request(request)),
            asyncio.ensure_future(gateway.request(ask("waits"))),
        ]
        await asyncio.wait(waiting, timeout=0.5)

    async def ended() -> tuple[float, float, float]:
        await gateway.request(ask("later", max_tokens=3))
        await gateway.shutdown()
        return account(gateway)

    provider.latency = lambda _: 0.0 if provider.ledger[1:] else 100.0
    loop = VirtualTimeLoop()
    loop.run_until_complete(cut_off(ask("a")))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert run_virtual(ended()) == (6, 0, 2)
