"""The simulated provider: limits as the providers enforce them, their headers, and what goes wrong."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from fakes.provider import ask
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.config import LimitSettings, ModelSettings, endpoint_of, load_config
from llm_gateway.errors import (
    IncompleteResponseError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitError,
)
from llm_gateway.limits import read_standings
from llm_gateway.simulation import Acceleration, Latency, LogNormal, RandomWork, SimulatedProvider, Trouble, Work
from llm_gateway.simulation.dialects import go_duration
from llm_gateway.simulation.provider import SimulatedClient
from llm_gateway.simulation.troubles import TroubleKind


def deployment(kind: str = "openai", name: str = "m", **settings: Any) -> Deployment:
    config = load_config({"providers": {"simulated": {"kind": kind}}})
    return Deployment(
        name=name,
        endpoint=endpoint_of(config, "simulated", {}),
        settings=ModelSettings(provider="simulated", model=name, **settings),
    )


def connected(provider: SimulatedProvider, kind: str = "openai", **settings: Any) -> SimulatedClient:
    return provider.connect(deployment(kind, **settings))


def working(tokens_in: int = 100, tokens_out: int = 50, seconds: float = 1.0) -> Any:
    return lambda _request, _rng: Work(input_tokens=tokens_in, output_tokens=tokens_out, seconds=seconds)


async def outcomes(client: SimulatedClient, number: int, **request: Any) -> list[Completion | ProviderError]:
    calls = (client.generate(ask(f"r{each}").model_copy(update=request)) for each in range(number))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, Completion | ProviderError) for each in ended)
    return ended  # type: ignore[return-value]  # as just asserted


def refusals(ended: list[Completion | ProviderError]) -> list[RateLimitError]:
    return [each for each in ended if isinstance(each, RateLimitError)]


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_bucket_lets_its_burst_through_and_then_what_flows_back() -> None:
    client = connected(SimulatedProvider(limits=LimitSettings(rpm=60, burst_seconds=5), work=working()))
    assert len(refusals(await outcomes(client, 8))) == 3
    await asyncio.sleep(2.0 - 1.0)  # the calls themselves took a second
    assert len(refusals(await outcomes(client, 8))) == 6


async def test_a_refused_call_is_told_when_it_would_pass() -> None:
    provider = SimulatedProvider(limits=LimitSettings(rpm=60), work=working())
    client = connected(provider)
    told = refusals(await outcomes(client, 2))[0]
    assert told.status == 429
    assert told.retry_after == pytest.approx(1.0)
    assert provider.count(429) == provider.count(200) == 1
    provider.hints = False
    assert refusals(await outcomes(client, 3))[0].retry_after is None


async def test_a_limit_of_a_day_can_be_used_at_once() -> None:
    client = connected(SimulatedProvider(limits=LimitSettings(rpd=10), work=working()))
    assert len(refusals(await outcomes(client, 12))) == 2


async def test_charged_at_admission_is_the_larger_of_input_and_max_tokens() -> None:
    provider = SimulatedProvider(limits=LimitSettings(tpm=60_000), work=working(100, 50))
    client = connected(provider)
    assert len(refusals(await outcomes(client, 4, max_tokens=400))) == 2  # 1,000 at once
    assert provider.used("tpm") == 800
    await asyncio.sleep(10)
    assert len(refusals(await outcomes(client, 8))) == 2  # 150 each: without max_tokens the provider guesses the output


async def test_charged_by_use_is_the_input_at_once_and_the_output_as_it_is_produced() -> None:
    limits = LimitSettings(otpm=600, burst_seconds=5, charge="actual")  # 10 a second, 50 at once
    client = connected(SimulatedProvider(limits=limits, work=working(100, 300, 10.0)))  # 30 a second
    await client.generate(ask("first"))
    assert refusals(await outcomes(client, 1))  # 150 below zero
    await asyncio.sleep(15.0)
    assert not refusals(await outcomes(client, 1))


async def test_what_a_cancelled_call_produced_is_charged() -> None:
    provider = SimulatedProvider(limits=LimitSettings(tpm=6000, charge="actual"), work=working(10, 400, 4.0))
    client = connected(provider)
    call = asyncio.create_task(client.generate(ask("r")))
    await asyncio.sleep(1.0)
    call.cancel()
    await asyncio.wait([call])
    assert provider.ledger[0].produced == {"tpm": pytest.approx(100), "otpm": pytest.approx(100)}
    assert provider.ledger[0].status == 0


async def test_more_than_a_whole_limit_never_passes_and_gets_no_hint() -> None:
    client = connected(SimulatedProvider(limits=LimitSettings(tpm=1000), work=working(5000)))
    assert refusals(await outcomes(client, 1))[0].retry_after is None


async def test_refused_calls_count_as_requests_where_the_provider_counts_them() -> None:
    provider = SimulatedProvider(limits=LimitSettings(rpm=60), work=working(), charges_refused=True)
    client = connected(provider)
    await outcomes(client, 5)
    assert refusals(await outcomes(client, 1))[0].retry_after == pytest.approx(4.0)


async def test_max_tokens_cuts_an_answer_short() -> None:
    client = connected(SimulatedProvider(work=working(100, 200, 2.0)))
    [cut] = await outcomes(client, 1, max_tokens=50)
    assert isinstance(cut, Completion)
    assert (cut.finish_reason, cut.usage and cut.usage.output_tokens) == ("length", 50)
    assert now() == pytest.approx(0.5)
    [whole] = await outcomes(client, 1)
    assert isinstance(whole, Completion)
    assert whole.finish_reason == "stop"


async def test_the_models_of_an_account_share_its_limits_and_each_has_its_own() -> None:
    provider = SimulatedProvider(accounts={"simulated": LimitSettings(rpm=60, burst_seconds=3)}, work=working())
    one = provider.connect(deployment(name="one", limits={"rpm": 60, "burst_seconds": 2}))
    two = provider.connect(deployment(name="two"))
    assert len(refusals(await outcomes(one, 3))) == 1
    await asyncio.sleep(10)
    ended = await asyncio.gather(outcomes(one, 2), outcomes(two, 2))
    assert sum(len(refusals(each)) for each in ended) == 1


async def test_limits_that_change_begin_empty() -> None:
    provider = SimulatedProvider(
        limits=LimitSettings(rpm=600), accounts={"simulated": LimitSettings(rpm=6000)}, work=working()
    )
    client = connected(provider)
    provider.change(LimitSettings(rpm=60))
    assert refusals(await outcomes(client, 1))[0].retry_after == pytest.approx(1.0)


async def test_a_sudden_rise_is_refused_where_the_provider_dislikes_it() -> None:
    provider = SimulatedProvider(acceleration=Acceleration(factor=2.0, floor=3), work=working())
    client = connected(provider)
    assert len(refusals(await outcomes(client, 5))) == 2
    await asyncio.sleep(120)
    assert len(refusals(await outcomes(client, 3))) == 0


# --- headers ----------------------------------------------------------------------------------------------------


async def test_openai_tells_requests_and_tokens_as_it_does_on_the_wire() -> None:
    client = connected(SimulatedProvider(limits=LimitSettings(rpm=600, tpm=60_000), work=working(100, 50)))
    headers = (await client.generate(ask("r"))).headers
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-tokens"] == "60000"
    assert set(read_standings(headers)) == {"requests", "tokens"}


async def test_anthropic_tells_instants_and_rounds_tokens_to_thousands() -> None:
    limits = LimitSettings(rpm=60, itpm=600_000, otpm=60_000, burst_seconds=10)
    client = connected(SimulatedProvider(limits=limits, work=working(3400, 700, 0.1)), "anthropic")
    headers = (await client.generate(ask("r"))).headers
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-input-tokens-remaining"] == "598000"
    assert headers["anthropic-ratelimit-output-tokens-remaining"] == "59000"
    assert headers["anthropic-ratelimit-output-tokens-reset"] == "2026-01-01T00:00:01Z"
    assert set(read_standings(headers)) == {"requests", "input_tokens", "output_tokens"}


async def test_anthropics_hint_is_in_whole_seconds() -> None:
    client = connected(SimulatedProvider(limits=LimitSettings(rpm=40), work=working()), "anthropic")
    assert refusals(await outcomes(client, 2))[0].retry_after == 2.0


async def test_other_providers_tell_nothing_and_so_do_all_if_asked() -> None:
    provider = SimulatedProvider(limits=LimitSettings(rpm=600), work=working())
    assert (await connected(provider, "ollama").generate(ask("r"))).headers == {}
    provider.headers = False
    assert (await connected(provider).generate(ask("r"))).headers == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.02, "20ms"),
        (1.5, "1.5s"),
        (7.0, "7s"),
        (360.0, "6m0s"),
        (3723.0, "1h2m3s"),
        (3600.25, "1h0m0.25s"),
    ],
)
def test_resets_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


# --- troubles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("rate_limit", RateLimitError, 429),
        ("overloaded", ProviderOverloadedError, 529),
        ("unavailable", ProviderUnavailableError, 503),
    ],
)
async def test_a_storm_refuses_calls_while_it_lasts(kind: TroubleKind, error: type[ProviderError], status: int) -> None:
    trouble = Trouble(kind=kind, start=10, end=20, hint=7)
    provider = SimulatedProvider(troubles=[trouble], work=working())
    client = connected(provider)
    assert isinstance((await outcomes(client, 1))[0], Completion)
    await asyncio.sleep(9.5)
    [met] = await outcomes(client, 1)
    assert type(met) is error
    assert (met.status, met.retry_after, provider.ledger[1].error) == (status, 7.0, error.kind)
    await asyncio.sleep(10)
    assert isinstance((await outcomes(client, 1))[0], Completion)


async def test_a_share_of_the_calls_fares_badly_by_the_seed() -> None:
    provider = SimulatedProvider(troubles=[Trouble(kind="overloaded", share=0.3)], work=working(), seed=4)
    ended = await outcomes(connected(provider), 500)
    assert 110 < sum(isinstance(each, ProviderOverloadedError) for each in ended) < 190
    again = SimulatedProvider(troubles=[Trouble(kind="overloaded", share=0.3)], work=working(), seed=4)
    await outcomes(connected(again), 500)
    assert [call.status for call in again.ledger] == [call.status for call in provider.ledger]


async def test_an_answer_that_never_comes_ends_with_the_patience_of_the_configuration() -> None:
    client = connected(SimulatedProvider(troubles=[Trouble(kind="timeout")], work=working()))
    assert isinstance((await outcomes(client, 1))[0], ProviderTimeoutError)
    assert now() == pytest.approx(60.0)


async def test_a_slow_answer_takes_so_many_times_longer_and_may_be_too_slow() -> None:
    provider = SimulatedProvider(troubles=[Trouble(kind="slow", factor=5)], work=working(seconds=2.0))
    client = connected(provider)
    assert isinstance((await outcomes(client, 1))[0], Completion)
    assert now() == pytest.approx(10.0)
    provider.work = working(seconds=20.0)
    assert isinstance((await outcomes(client, 1))[0], ProviderTimeoutError)
    assert now() == pytest.approx(70.0)


async def test_a_truncated_answer_breaks_off_on_the_way() -> None:
    provider = SimulatedProvider(troubles=[Trouble(kind="truncated")], work=working())
    assert isinstance((await outcomes(connected(provider), 1))[0], IncompleteResponseError)
    assert 0 < now() < 1
    assert provider.ledger[0].usage is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "flood"}, "'flood' is no trouble; known are rate_limit"),
        ({"kind": "slow", "start": 5, "end": 5}, "from 5 to 5 s"),
        ({"kind": "slow", "share": 0}, "0 is no share"),
    ],
)
def test_a_trouble_that_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trouble(**given)


# --- the rest of the seam, and chance ---------------------------------------------------------------------------


async def test_a_stream_brings_the_answer_in_one_piece() -> None:
    provider = SimulatedProvider(work=working())
    client = connected(provider)
    client.check(ask("r"))
    pieces = [each async for each in client.stream(ask("r"))]
    assert [type(each).__name__ for each in pieces] == ["TextDelta", "Completion"]
    await client.aclose()
    await provider.aclose()
    provider.abandon()


def test_half_of_a_log_normal_lies_below_its_median_and_99_percent_below_its_p99() -> None:
    rng = Random(1)
    drawn = sorted(LogNormal(2.0, 10.0).draw(rng) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(2.0, rel=0.05)
    assert drawn[19_800] == pytest.approx(10.0, rel=0.1)
    with pytest.raises(ValueError, match="must be above 0"):
        LogNormal(2.0, 1.0)


def test_drawn_work_is_longer_for_longer_answers() -> None:
    work = RandomWork(latency=Latency(first_token=LogNormal(1.0, 1.0), speed=10.0))(ask("r"), Random(3))
    assert work.input_tokens >= 1
    assert work.seconds == pytest.approx(1.0 + work.output_tokens / 10.0)
