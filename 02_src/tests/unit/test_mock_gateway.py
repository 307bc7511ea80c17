"""The mock: what it answers, what it fails with, what it records, and that nothing but the script matters."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from fakes.provider import Recorder
from llm_gateway import (
    BatchError,
    DeadlineExceededError,
    GatewayClosedError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    LLMToolCall,
    ModelProvider,
    ProviderTimeoutError,
    RateLimitError,
    TokenUsage,
)
from llm_gateway.config import GatewayConfig, load_config
from llm_gateway.events import RetryScheduled
from llm_gateway.mock_gateway import MockLLMGateway, UnmatchedRequestError

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "mock_responses.json"
WEATHER = LLMTool(
    name="get_weather",
    description="Current weather.",
    input_schema={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def ask(text: str, *, model: str = "claude-haiku", system: str | None = None, **fields: Any) -> LLMRequest:
    messages = [LLMMessage(role="system", content=system)] if system else []
    return LLMRequest(model=model, messages=[*messages, LLMMessage(role="user", content=text)], **fields)


def rules(*given: dict[str, Any], default: Any = None) -> dict[str, Any]:
    return {"rules": list(given), "default": default}


async def answer(gateway: MockLLMGateway, text: str, **fields: Any) -> str:
    return (await gateway.request(ask(text, **fields))).content


# --- the example file ---------------------------------------------------------------------------------------------


async def test_the_example_answers_by_text_part_regex_model_and_id() -> None:
    async with MockLLMGateway(responses=EXAMPLE) as gateway:
        assert await answer(gateway, "Say hello.") == "Hello!"
        paris = await gateway.request(ask("What is the capital of France, please?"))
        assert await answer(gateway, "WHAT IS 2 + 2?", model="gpt-4o-mini") == "I would rather not calculate."
        cut = await gateway.request(ask("Write it.", request_id="report-1"))
    assert paris.content == "Paris"
    assert paris.receipt is not None
    assert paris.receipt.usage == TokenUsage(input_tokens=14, output_tokens=1, cache_read_tokens=8)
    assert paris.receipt.provider_time == pytest.approx(0.4)
    assert (cut.content, cut.finish_reason) == ("The report begins", "length")


async def test_the_example_plays_an_agent_with_a_tool() -> None:
    async with MockLLMGateway(responses=str(EXAMPLE)) as gateway:
        question = LLMMessage(role="user", content="How is the weather?")
        wish = await gateway.request(LLMRequest(model="claude-haiku", messages=[question], tools=[WEATHER]))
        assert wish.tool_calls is not None
        call = wish.tool_calls[0]
        turns = [
            question,
            LLMMessage(role="assistant", tool_calls=wish.tool_calls),
            LLMMessage(role="tool", content="21 °C", tool_call_id=call.id),
        ]
        last = await gateway.request(LLMRequest(model="claude-haiku", messages=turns, tools=[WEATHER]))
    assert (wish.content, wish.finish_reason) == ("", "tool_calls")
    assert (call.name, call.arguments) == ("get_weather", {"city": "Oslo"})
    assert last.content == "It is 21 °C in Oslo."
    gateway.assert_called(times=2, containing="weather")
    gateway.assert_called(times=1, containing="21 °C")
    gateway.assert_called_with_tools("get_weather")


async def test_the_example_plays_a_provider_that_recovers() -> None:
    seen = Recorder()
    async with MockLLMGateway(responses=EXAMPLE, observers=[seen]) as gateway:
        response = await gateway.request(ask("Please summarise this."))
    assert response.content == "A summary."
    assert response.receipt is not None
    assert response.receipt.attempts == 3
    waits = [event for event in seen.events if isinstance(event, RetryScheduled)]
    assert [event.kind for event in waits] == ["rate_limit", "unavailable"]
    assert waits[0].wait >= 2.0
    assert response.receipt.queue_wait == pytest.approx(sum(event.wait for event in waits))


async def test_the_example_fails_every_first_attempt_of_one_agent() -> None:
    async with MockLLMGateway(responses=EXAMPLE) as gateway:
        answers = await gateway.batch([ask(f"page {n}", agent="indexer") for n in range(3)])
    assert all(each.receipt is not None and each.receipt.attempts == 2 for each in answers)
    gateway.assert_called(times=3, agent="indexer", attempt=1)
    gateway.assert_called(times=6, agent="indexer")


async def test_the_example_looks_at_the_system_message() -> None:
    async with MockLLMGateway(responses=EXAMPLE) as gateway:
        with pytest.raises(BatchError, match=r"ContextLengthError: .*\(HTTP 400\): 200000 tokens at most"):
            await gateway.batch([ask("All of it.", system="You read whole books.")])


# --- which rule ---------------------------------------------------------------------------------------------------


async def test_the_first_rule_that_fits_answers() -> None:
    two = rules({"match": {"contains": "a"}, "reply": "first"}, {"match": {"contains": "ab"}, "reply": "second"})
    async with MockLLMGateway(responses=two) as gateway:
        assert await answer(gateway, "abc") == "first"
    assert gateway.last_call.rule == "rules[0]"


async def test_a_rule_without_a_match_answers_everything() -> None:
    async with MockLLMGateway(responses=rules({"reply": "yes"})) as gateway:
        assert await answer(gateway, "anything") == "yes"


async def test_only_the_last_message_of_the_user_counts_and_blocks_have_their_text() -> None:
    blocks = [{"type": "text", "text": "in "}, {"type": "image", "url": "x"}, {"type": "text", "text": "parts"}]
    turns = [
        LLMMessage(role="user", content="in full"),
        LLMMessage(role="assistant", content="in between"),
        LLMMessage(role="user", content=blocks),
    ]
    both = rules({"match": {"text": "in full"}, "reply": "old"}, {"match": {"text": "in parts"}, "reply": "new"})
    async with MockLLMGateway(responses=both) as gateway:
        response = await gateway.request(LLMRequest(model="claude-haiku", messages=turns))
    assert response.content == "new"
    assert gateway.last_call.text == "in parts"


async def test_a_sequence_is_answered_in_turn_and_its_last_answer_stays() -> None:
    async with MockLLMGateway(responses=rules({"replies": ["one", "two"]})) as gateway:
        assert [await answer(gateway, "next") for _ in range(4)] == ["one", "two", "two", "two"]


async def test_reset_forgets_calls_and_begins_sequences_anew() -> None:
    async with MockLLMGateway(responses=rules({"replies": ["one", "two"]})) as gateway:
        assert [await answer(gateway, "next") for _ in range(2)] == ["one", "two"]
        gateway.reset()
        gateway.assert_not_called()
        assert await answer(gateway, "next") == "one"
        assert gateway.get_stats()["completed"] == 3


# --- no rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "nearest"),
    [
        (ask("What is the capital of Spain?"), "'capital of France', which wants text that contains"),
        (ask("Say hallo."), "'greeting, word for word', which wants the text \"Say hello.\""),
        (
            ask("What is 2 + 2?", model="claude-opus"),
            r"'any sum', which wants model 'gpt-4o-mini'. Change it",
        ),
        (ask("Write it.", request_id="report-2", model="gpt-4o-mini"), "'any sum', which wants text that matches"),
        (
            ask("?", system="You read whole"),
            "'too long for the model', which wants a system message that contains \"You read whole books\"",
        ),
    ],
    ids=["contains", "text", "model", "regex", "system"],
)
async def test_a_call_that_no_rule_fits_fails_with_the_nearest_rule(request_: LLMRequest, nearest: str) -> None:
    async with MockLLMGateway(responses=EXAMPLE) as gateway:
        with pytest.raises(UnmatchedRequestError) as caught:
            await gateway.request(request_)
    assert nearest.replace("\\", "") in str(caught.value)
    assert f"request '{request_.request_id}', attempt 1" in str(caught.value)
    assert gateway.last_call.outcome == "unmatched"
    assert gateway.get_stats()["failures"] == {"unmatched": 1}


async def test_the_sentence_names_everything_that_the_nearest_rule_misses() -> None:
    match = {"agent": "critic", "request_id": "a", "attempt": 2, "after_tool": "search", "contains": "hello"}
    async with MockLLMGateway(responses=rules({"match": match, "reply": "x"})) as gateway:
        with pytest.raises(UnmatchedRequestError) as caught:
            await gateway.request(ask("hello", request_id="b"))
    assert str(caught.value) == (
        "No rule of the mock fits \"hello\" to claude-haiku (request 'b', attempt 1); the nearest is 'rules[0]', which "
        "wants request id 'a' and agent 'critic' and attempt 2 and the result of 'search' at the end. Change it, add "
        'a rule, or set "default".'
    )


async def test_without_rules_and_default_nothing_is_answered() -> None:
    async with MockLLMGateway(responses={}) as gateway:
        with pytest.raises(UnmatchedRequestError, match=r'neither rules nor a "default"'):
            await gateway.request(ask("hello"))


async def test_a_default_answers_what_no_rule_fits() -> None:
    async with MockLLMGateway(responses=rules({"match": {"text": "a"}, "reply": "A"}, default="?")) as gateway:
        assert [await answer(gateway, text) for text in "ab"] == ["A", "?"]
    assert [call.rule for call in gateway.calls] == ["rules[0]", "default"]


# --- answers that are made up -------------------------------------------------------------------------------------


async def test_the_same_seed_and_the_same_question_give_the_same_answer() -> None:
    async def made_up(seed: int, **fields: Any) -> str:
        async with MockLLMGateway(seed=seed) as gateway:
            return await answer(gateway, "What is the capital of France?", **fields)

    first = await made_up(1)
    assert first == await made_up(1, request_id="another", agent="critic", deadline=5.0)
    assert 'of claude-haiku to "What is the capital of France?"' in first
    assert first.startswith("Mock answer")
    others = [
        await made_up(2),
        await made_up(1, model="claude-opus"),
        await made_up(1, temperature=1.0),
        await made_up(1, system="Be brief."),
        await made_up(1, tools=[WEATHER]),
    ]
    assert len({first, *others}) == 6


def test_another_process_gives_the_same_answer_whatever_its_hash_seed() -> None:
    code = """
import asyncio
from llm_gateway import LLMMessage, LLMRequest
from llm_gateway.mock_gateway import MockLLMGateway
request = LLMRequest(model="claude-haiku", messages=[LLMMessage(role="user", content="Grüße")])
print(asyncio.run(MockLLMGateway(seed=3).request(request)).content.encode())
"""
    answers = {printed(code, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert len(answers) == 1
    assert "b'Mock answer" in answers.pop()


def printed(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout  # noqa: S603


def test_neither_a_provider_package_nor_the_network_is_touched() -> None:
    code = f"""
import asyncio, sys
def watch(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"the mock wanted {{event}} of {{details}}")
sys.addaudithook(watch)
from llm_gateway import LLMMessage, LLMRequest
from llm_gateway.mock_gateway import MockLLMGateway
async def main():
    async with MockLLMGateway({{"retry": {{"base_delay": 0}}}}, responses={str(EXAMPLE)!r}) as gateway:
        for model in ("claude-haiku", "gpt-4o-mini", "local-llama", "smollm2-135m"):
            request = LLMRequest(model=model, messages=[LLMMessage(role="user", content="Say hello.")])
            print((await gateway.request(request)).content)
        failing = request.model_copy(update={{"agent": "indexer", "messages": [LLMMessage(role="user", content="x")]}})
        await gateway.batch([failing], return_exceptions=True)
asyncio.run(main())
unwanted = "langchain_openai langchain_anthropic langchain_ollama langchain openai anthropic ollama httpx xllamacpp"
print([name for name in unwanted.split() if name in sys.modules])
"""
    assert printed(code).split("\n") == ["Hello!"] * 4 + ["[]", ""]


async def test_made_up_usage_is_plausible_and_priced() -> None:
    async with MockLLMGateway() as gateway:
        short = await gateway.request(ask("Hi."))
        long = await gateway.request(ask("word " * 4000, tools=[WEATHER]))
    assert short.receipt is not None
    assert long.receipt is not None
    assert short.receipt.usage is not None
    assert long.receipt.usage is not None
    assert 1 <= short.receipt.usage.input_tokens < 10
    assert 4000 < long.receipt.usage.input_tokens < 6000
    assert short.tokens_used == short.receipt.usage.total_tokens
    assert (short.receipt.cost_usd or 0) > 0


async def test_a_made_up_answer_keeps_to_max_tokens() -> None:
    async with MockLLMGateway() as gateway:
        response = await gateway.request(ask("Tell me everything.", max_tokens=5))
    assert response.finish_reason == "length"
    assert response.receipt is not None
    assert response.receipt.usage is not None
    assert response.receipt.usage.output_tokens == 5


async def test_usage_of_null_means_that_the_provider_does_not_say() -> None:
    async with MockLLMGateway(responses=rules({"reply": {"content": "x", "usage": None}})) as gateway:
        response = await gateway.request(ask("?"))
    assert response.tokens_used is None
    assert response.receipt is not None
    assert (response.receipt.usage, response.receipt.cost_usd) == (None, None)


class Verdict(BaseModel):
    good: bool
    reasons: list[str]


async def test_a_made_up_answer_follows_the_schema_that_the_request_demands() -> None:
    async with MockLLMGateway() as gateway:
        text = await answer(gateway, "Is it good?", response_format=Verdict.model_json_schema())
    assert Verdict.model_validate_json(text) == Verdict(good=False, reasons=["mock"])


@pytest.mark.parametrize("choice", ["any", "get_weather"])
async def test_a_made_up_answer_calls_the_tool_that_it_must_call(choice: str) -> None:
    async with MockLLMGateway() as gateway:
        response = await gateway.request(ask("?", tools=[WEATHER], tool_choice=choice))
    assert response.tool_calls is not None
    call = response.tool_calls[0]
    assert (call.name, response.content, response.finish_reason) == ("get_weather", "", "tool_calls")
    jsonschema.validate(call.arguments, WEATHER.input_schema)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
async def test_a_made_up_answer_calls_no_tool_of_its_own_accord(choice: str | None) -> None:
    async with MockLLMGateway() as gateway:
        response = await gateway.request(ask("?", tools=[WEATHER], tool_choice=choice))
    assert response.tool_calls is None


async def test_the_ids_of_tool_calls_are_made_up_the_same_way_or_given() -> None:
    calls = [{"name": "a"}, {"name": "b", "id": "mine", "arguments": {"n": [1, None]}}]
    async with MockLLMGateway(responses=rules({"reply": {"tool_calls": calls}})) as gateway:
        first, again, other = await gateway.batch([ask("x"), ask("x"), ask("y")])
    assert first.tool_calls == again.tool_calls != other.tool_calls
    assert first.tool_calls is not None
    assert first.tool_calls[0].id.startswith("call_")
    assert first.tool_calls[1] == LLMToolCall(id="mine", name="b", arguments={"n": [1, None]})


# --- time, chance, configuration ----------------------------------------------------------------------------------


async def test_a_latency_passes_on_the_gateways_clock() -> None:
    async with MockLLMGateway(responses=rules({"reply": {"latency": 30.0}})) as gateway:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(gateway.request(ask(str(n))) for n in range(5)))
        assert asyncio.get_running_loop().time() - began == pytest.approx(30.0)


async def test_a_latency_beyond_the_providers_timeout_is_a_timeout() -> None:
    config = {"providers": {"anthropic": {"timeout": 5.0}}, "retry": {"max_attempts": 1}}
    async with MockLLMGateway(config, responses=rules({"reply": {"latency": 30.0}})) as gateway:
        began = asyncio.get_running_loop().time()
        with pytest.raises(ProviderTimeoutError, match=r"the scripted latency is 30 s\. If it needs longer than 5 s"):
            await gateway.request(ask("?"))
        assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)


async def test_pauses_before_retries_depend_on_the_seed_alone() -> None:
    async def waits(seed: int, config: dict[str, Any] | None = None) -> list[float]:
        seen = Recorder()
        failing = rules({"replies": [*[{"error": {"status": 500}}] * 3, "ok"]})
        async with MockLLMGateway(config, responses=failing, seed=seed, observers=[seen]) as gateway:
            await gateway.request(ask("?"))
            gateway.reset()
            await gateway.request(ask("?"))
        found = [event.wait for event in seen.events if isinstance(event, RetryScheduled)]
        assert found[:3] == found[3:]
        return found

    assert await waits(1) == await waits(1) == await waits(2, {"seed": 1})
    assert await waits(1) != await waits(2)


def test_the_journal_is_off_unless_the_configuration_speaks_of_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(config: Mapping[str, Any] | GatewayConfig | None) -> None:
        async with MockLLMGateway(config) as gateway:
            await gateway.request(ask("?"))

    monkeypatch.chdir(tmp_path)
    asyncio.run(use(None))
    asyncio.run(use({}))
    asyncio.run(use(load_config({"batching": {"max_batch_size": 4}})))
    assert list(tmp_path.iterdir()) == []
    for section in ({"dir": tmp_path / "logs"}, {"keep_days": 3}):
        asyncio.run(use({"logs": section}))
    for folder in (tmp_path / "logs", tmp_path / "04_logs" / "gateway"):
        lines = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
        assert "item_done" in {line["event"] for line in lines}


def test_skipped_waits_take_no_time_and_stand_in_the_receipt() -> None:
    hour = {"error": {"status": 429, "retry_after": 250.0}, "latency": 50.0}
    script = rules({"match": {"text": "busy"}, "replies": [hour, "done"]}, default={"latency": 40.0})

    async def main() -> tuple[LLMResponse, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with MockLLMGateway(responses=script, skip_waits=True) as gateway:
            busy = asyncio.create_task(gateway.request(ask("busy")))
            await gateway.request(ask("other"))
            assert not busy.done()
            with pytest.raises(DeadlineExceededError):
                await gateway.request(ask("late", deadline=39.0))
            response = await busy
        return response, loop.time() - began

    response, took = asyncio.run(main())
    assert response.receipt is not None
    assert response.receipt.queue_wait >= 250.0
    assert response.receipt.provider_time == pytest.approx(50.0)
    assert took < 50.0  # of the 339 seconds that were skipped


def test_a_gateway_that_skips_waits_serves_one_loop_after_another() -> None:
    gateway = MockLLMGateway(responses=rules({"reply": {"latency": 10.0}}), skip_waits=True)

    async def main() -> LLMResponse:
        return await gateway.request(ask("?", deadline=20.0))

    for _ in range(2):
        receipt = asyncio.run(main()).receipt
        assert receipt is not None
        assert receipt.provider_time == pytest.approx(10.0)
    assert [call.at for call in gateway.calls] == [0.0, 0.0]


def test_shutdown_with_skipped_waits_cancels_what_takes_longer_than_its_patience() -> None:
    async def main() -> list[LLMResponse | BaseException]:
        script = rules({"match": {"text": "slow"}, "reply": {"latency": 50.0}}, default={"latency": 20.0})
        gateway = MockLLMGateway({"drain_timeout": 30.0}, responses=script, skip_waits=True)
        batch = asyncio.create_task(gateway.batch([ask("quick"), ask("slow")], return_exceptions=True))
        await asyncio.sleep(0)
        await gateway.shutdown()
        return await batch

    quick, slow = asyncio.run(main())
    assert isinstance(quick, LLMResponse)
    assert isinstance(slow, GatewayClosedError)


# --- calls and assertions -----------------------------------------------------------------------------------------


async def test_every_call_is_recorded_with_its_outcome() -> None:
    replies = [{"error": {"status": 429}, "latency": 1.0}, {"content": "ok", "latency": 1.0}]
    async with MockLLMGateway(responses=rules({"name": "busy", "replies": replies})) as gateway:
        task = asyncio.create_task(gateway.request(ask("?", request_id="a", tools=[WEATHER])))
        await asyncio.sleep(0.5)
        assert gateway.last_call.outcome is None
        await task
        left = asyncio.create_task(gateway.request(ask("?", request_id="b")))
        await asyncio.sleep(0.5)
        left.cancel()
    first, second, third = gateway.calls
    assert (first.request.request_id, first.model, first.attempt, first.at) == ("a", "claude-haiku", 1, 0.0)
    assert (first.rule, first.outcome, first.tools) == ("busy", "rate_limit", ["get_weather"])
    assert (second.attempt, second.outcome, second.batch_id != first.batch_id) == (2, "ok", True)
    assert second.at > 1.0
    assert (third.attempt, third.outcome) == (1, "cancelled")


async def test_calls_of_one_batch_share_its_id() -> None:
    async with MockLLMGateway() as gateway:
        await gateway.batch([ask("a"), ask("b")])
        await gateway.request(ask("c"))
    assert [call.batch_id == gateway.calls[0].batch_id for call in gateway.calls] == [True, True, False]


async def test_assertions_that_hold_say_nothing() -> None:
    async with MockLLMGateway() as gateway:
        gateway.assert_not_called()
        await gateway.request(ask("The big question", request_id="a", agent="critic", tools=[WEATHER]))
        gateway.assert_called()
        gateway.assert_called(times=1, model=ModelProvider.CLAUDE_HAIKU, containing="big", rule="default")
        gateway.assert_called(times=1, model="claude-haiku", request_id="a", agent="critic", attempt=1)
        gateway.assert_called(times=0, model="claude-opus")
        gateway.assert_not_called(containing="small")
        gateway.assert_called_with_tools("get_weather")
        assert gateway.last_call is gateway.calls[-1]


async def test_an_assertion_that_fails_says_what_was_called_instead() -> None:
    script = rules({"name": "busy", "replies": [{"error": {"status": 429}}, "ok"]})
    async with MockLLMGateway(responses=script) as gateway:
        await gateway.request(ask("What  is\nthat?", request_id="a", agent="critic", tools=[WEATHER]))
    asked = "\"What is that?\" to claude-haiku by agent 'critic' offering get_weather"
    instead = f""" All calls:
  1. {asked}: rate_limit from 'busy' (request 'a', attempt 1)
  2. {asked}: ok from 'busy' (request 'a', attempt 2)"""
    with pytest.raises(AssertionError) as caught:
        gateway.assert_called(times=1, model=ModelProvider.CLAUDE_HAIKU, containing="What")
    assert str(caught.value) == 'Expected 1 call to claude-haiku containing "What", got 2.' + instead
    with pytest.raises(AssertionError) as caught:
        gateway.assert_called(request_id="b", agent="judge", rule="idle", attempt=3)
    expected = "Expected a call with request id 'b' by agent 'judge' at attempt 3 answered by 'idle', got none."
    assert str(caught.value) == expected + instead
    with pytest.raises(AssertionError) as caught:
        gateway.assert_not_called(agent="critic")
    assert str(caught.value) == "Expected no call by agent 'critic', got 2." + instead
    with pytest.raises(AssertionError) as caught:
        gateway.assert_called_with_tools("get_weather", "search")
    assert str(caught.value) == "Expected a call that offers get_weather and search, got none." + instead


def test_an_assertion_without_any_call_says_so() -> None:
    gateway = MockLLMGateway()
    with pytest.raises(AssertionError, match=r"^Expected 2 calls, got none\. No model was called\.$"):
        gateway.assert_called(times=2)
    with pytest.raises(AssertionError, match="no model was called"):
        _ = gateway.last_call


async def test_a_long_list_of_calls_is_cut() -> None:
    async with MockLLMGateway() as gateway:
        await gateway.batch([ask(str(n)) for n in range(40)])
    with pytest.raises(AssertionError, match=r"30\. .*\n  … and 10 more$"):
        gateway.assert_not_called()


async def test_a_rate_limit_beyond_all_attempts_reaches_the_caller_as_from_a_real_provider() -> None:
    busy = rules({"name": "busy", "reply": {"error": {"kind": "rate_limit", "retry_after": 3.0}}})
    async with MockLLMGateway({"retry": {"max_throttles": 1}}, responses=busy) as gateway:
        with pytest.raises(RateLimitError, match=r"anthropic .*\(HTTP 429\).* scripted by 'busy'") as caught:
            await gateway.request(ask("?", request_id="a"))
    error = caught.value
    assert (error.provider, error.model, error.request_id) == ("anthropic", "claude-haiku-5-5", "a")
    assert (error.status, error.retry_after, error.attempts) == (429, 3.0, 2)
