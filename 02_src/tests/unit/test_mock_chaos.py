"""Seeded misfortune: what a seed decides, what lasts, and what the gateway makes of it."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest

from fakes.deployments import said
from llm_gateway import (
    ConfigurationError,
    LLMResponse,
    MockLLMGateway,
    StreamInterruptedError,
)
from llm_gateway.mock_gateway import Chaos
from llm_gateway.mock_gateway.chaos import OUTAGE, STORM, Fate, Weather, load_chaos
from llm_gateway.mock_gateway.matching import Asked
from llm_gateway.mock_gateway.responses import Reply, ScriptedError
from llm_gateway.models import LLMRequest

TIMEOUT = 60.0


def ask(text: str = "hello", model: str = "claude-haiku") -> LLMRequest:
    return LLMRequest(model=model, messages=[said("user", text)])


def fate(weather: Weather, text: str = "hello", model: str = "claude-haiku", **fields: Any) -> Fate:
    asked = Asked(request=ask(text, model), model=model, attempt=1)
    return weather.fate(asked, **{"now": 0.0, "timeout": TIMEOUT, "streamed": False, **fields})


def kind(drawn: Fate) -> int | str | None:
    error = drawn.instead.error if drawn.instead else None
    return None if error is None else error.status or error.kind


async def outcomes(gateway: MockLLMGateway, count: int = 30) -> list[str]:
    asked = [ask(f"question {number}") for number in range(count)]
    return [type(each).__name__ for each in await gateway.batch(asked, return_exceptions=True)]


def test_what_befalls_a_question_depends_on_the_seed_and_not_on_the_order() -> None:
    texts = [f"question {number}" for number in range(40)]
    chaos = Chaos(seed=3, slow=0.3, truncated=0.3)
    one, other = Weather(chaos), Weather(chaos)
    forth = {text: fate(one, text) for text in texts}
    back = {text: fate(other, text) for text in reversed(texts)}
    assert forth == back
    assert forth != {text: fate(Weather(Chaos(seed=4, slow=0.3, truncated=0.3)), text) for text in texts}
    assert {text: fate(one, text) for text in texts} != forth  # asked again, it may go otherwise
    one.clear_up()
    assert {text: fate(one, text) for text in texts} == forth


def test_each_chance_comes_about_as_often_as_it_says_and_changes_no_other() -> None:
    def slow(chaos: Chaos) -> set[int]:
        weather = Weather(chaos)
        return {number for number in range(1000) if fate(weather, f"question {number}").delay}

    alone = slow(Chaos(slow=0.2))
    assert 150 < len(alone) < 250
    assert slow(Chaos(slow=0.2, cut_streams=1.0)) == alone
    assert slow(Chaos(slow=0.4)) > alone
    assert not slow(Chaos())


def test_a_storm_hits_all_that_ask_this_model_until_it_is_over() -> None:
    seeds = range(40)
    hints = Counter[bool]()
    for seed in seeds:
        weather = Weather(Chaos(seed=seed, rate_limits=1.0))
        first = fate(weather)
        assert kind(first) == 429
        weather._chaos = Chaos(seed=seed)
        assert kind(fate(weather, "other", now=STORM[0] - 0.1)) == 429
        assert kind(fate(weather, "other", "gpt-4o-mini")) is None
        assert kind(fate(weather, "other", now=STORM[1])) is None
        assert first.instead is not None
        assert first.instead.error is not None
        hint = first.instead.error.retry_after
        hints[hint is not None] += 1
        assert hint is None or STORM[0] <= hint <= STORM[1]
    assert set(hints) == {True, False}


def test_an_outage_goes_before_a_storm_and_has_one_face_while_it_lasts() -> None:
    faces = set()
    for seed in range(30):
        weather = Weather(Chaos(seed=seed, outages=1.0, rate_limits=1.0))
        faces.add(face := kind(fate(weather)))
        assert kind(fate(weather, "other", now=OUTAGE[0] - 0.1)) == face
    assert faces == {503, 529, "unavailable"}


@pytest.mark.parametrize(("truncated", "error"), [(1.0, "incomplete_response"), (0.0, "unavailable")])
def test_a_stream_that_breaks_keeps_what_the_script_says_of_it(truncated: float, error: str) -> None:
    drawn = fate(Weather(Chaos(truncated=truncated, cut_streams=1.0)), streamed=True)
    reply = Reply.model_validate({"content": "a b c", "stream": {"reasoning": "hm", "pace": 2.0}})
    broken = drawn.upon(reply).stream
    assert broken is not None
    assert (broken.reasoning, broken.pace) == ("hm", 2.0)
    assert broken.error is not None
    assert broken.error.kind == error
    failing = Reply(error=ScriptedError(status=500))
    assert drawn.upon(failing) == failing
    assert Fate(delay=1.5).upon(failing).latency == 1.5


def test_a_call_that_does_not_stream_is_not_cut_and_a_truncated_one_uses_no_answer_up() -> None:
    assert fate(Weather(Chaos(cut_streams=1.0))) == Fate()
    assert kind(fate(Weather(Chaos(truncated=1.0)))) == "incomplete_response"


async def test_the_gateway_rides_out_a_storm_without_an_error_for_anybody() -> None:
    async with MockLLMGateway(chaos={"seed": 1, "rate_limits": 0.05}, skip_waits=True) as gateway:
        assert await outcomes(gateway) == ["LLMResponse"] * 30
        gateway.assert_called(rule="chaos")


async def test_a_scripted_sequence_goes_on_after_the_chaos_where_it_stood() -> None:
    responses = {"rules": [{"replies": ["first", "second", "third"]}]}
    chaos = Chaos(seed=2, rate_limits=0.2, truncated=0.3)
    async with MockLLMGateway(responses=responses, chaos=chaos, skip_waits=True) as gateway:
        contents = [(await gateway.request(ask(text))).content for text in ("a", "b", "c")]
        assert contents == ["first", "second", "third"]
        gateway.assert_called(rule="chaos")


async def test_reset_brings_the_same_chaos_again() -> None:
    chaos = Chaos(seed=2, rate_limits=0.1, outages=0.05, slow=0.2, truncated=0.1)
    async with MockLLMGateway(chaos=chaos, skip_waits=True, config={"retry": {"quota": 0}}) as gateway:
        first, calls = await outcomes(gateway), [str(call.outcome) for call in gateway.calls]
        assert set(first) > {"LLMResponse"}
        gateway.reset()
        # The weather is the same, though the hour is a later one.
        assert fate(gateway._weather or Weather(chaos), "x") == fate(Weather(chaos), "x")
        assert len(calls) >= 30


async def test_a_cut_stream_is_mended_before_its_first_piece_and_told_after_it() -> None:
    chaos = Chaos(seed=1, cut_streams=0.4, truncated=0.1)
    async with MockLLMGateway(chaos=chaos, skip_waits=True) as gateway:
        told = Counter([await ending(gateway, f"question {number}") for number in range(100)])
    assert set(told) == {"at once", "mended", "ProviderUnavailableError", "IncompleteResponseError"}


async def ending(gateway: MockLLMGateway, text: str) -> str:
    """How a streamed answer ended."""
    try:
        async with aclosing(gateway.stream(ask(text))) as pieces:
            last = [piece async for piece in pieces][-1]
    except StreamInterruptedError as error:
        return type(error.cause).__name__
    assert isinstance(last, LLMResponse)
    assert last.receipt is not None
    return "at once" if last.receipt.attempts == 1 else "mended"


async def test_the_slow_take_time_on_the_gateways_clock_and_the_slowest_time_out() -> None:
    async with MockLLMGateway(chaos={"slow": 1.0}, skip_waits=True) as gateway:
        await outcomes(gateway)
        assert {call.outcome for call in gateway.calls} == {"ok", "timeout"}
        assert gateway.calls[-1].at > 3.0


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (3, r"The mock's chaos is an int \(3\); give a dict, such as"),
        ({"slow": -1}, "The mock's chaos: slow: -1 is wrong: it should be greater than or equal to 0."),
        ({"seed": True}, "The mock's chaos: seed: True is wrong: it should be a number."),
    ],
    ids=["no-dict", "negative", "boolean"],
)
def test_a_chaos_that_is_malformed_is_told_in_a_sentence(source: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load_chaos(source)
