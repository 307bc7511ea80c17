"""Answers in a format: read, asked for again with the error, paid for and counted, and never lost."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from fakes.provider import FakeProvider, Recorder, ask, gateway_over, unavailable
from llm_gateway import (
    BatchError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidAnswerError,
    InvalidRequestError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    MissingDependencyError,
    MockLLMGateway,
    ProviderUnavailableError,
    TokenUsage,
)
from llm_gateway.coalescing import fingerprint
from llm_gateway.events import AttemptFailed, RequestDone, RetryScheduled
from llm_gateway.integrations.recording import plain_request
from llm_gateway.jobs import Job
from llm_gateway.jobs.encoding import request_json, request_of, response_json
from llm_gateway.mock_gateway.matching import Asked
from llm_gateway.models import TextDelta
from llm_gateway.tokens import estimate_input, most_input

MILLION = 1_000_000


class City(BaseModel):
    """A city."""

    name: str
    people: int = Field(ge=0)
    mayor: str | None = None


class Town(BaseModel):
    """Another class with the schema of a city but for its name."""

    name: str
    people: int = Field(ge=0)
    mayor: str | None = None


class Moody(BaseModel):
    """A class whose own check fails for reasons of its own."""

    name: str

    @field_validator("name")
    @classmethod
    def _fails(cls, name: str) -> str:
        raise KeyError(name)


SCHEMA = City.model_json_schema()
OSLO = '{"name": "Oslo", "people": 700000}'
BAD = '{"name": "Oslo", "people": -1}'
LOOK = LLMTool(name="look", description="Looks.", input_schema={"type": "object"})


def messages_of(provider: FakeProvider) -> list[list[tuple[str, Any]]]:
    return [[(each.role, each.content) for each in entry.request.messages] for entry in provider.ledger]


# --- what comes back ----------------------------------------------------------------------------------------------


async def test_an_answer_is_an_instance_of_the_class_or_what_its_json_says() -> None:
    async with gateway_over(FakeProvider(answer=lambda _: OSLO)) as gateway:
        by_class = await gateway.request(ask("a", response_format=City))
        by_schema = await gateway.request(ask("b", response_format=SCHEMA))
        plain = await gateway.request(ask("c"))
    assert by_class.parsed == City(name="Oslo", people=700000)
    assert by_schema.parsed == {"name": "Oslo", "people": 700000}
    assert plain.parsed is None
    assert by_class.content == plain.content == OSLO


@pytest.mark.parametrize("form", [City, SCHEMA], ids=["class", "schema"])
async def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_error(form: Any) -> None:
    provider, seen = FakeProvider(script=["Sure! Oslo.", BAD, OSLO]), Recorder()
    async with gateway_over(provider, observers=[seen]) as gateway:
        response = await gateway.request(ask("a", text="Which?", response_format=form))
        stats = gateway.get_stats()
    assert response.parsed
    first, second, third = messages_of(provider)
    assert first == [("user", "Which?")]
    assert second[:2] == [("user", "Which?"), ("assistant", "Sure! Oslo.")]
    assert "not JSON" in second[2][1]
    assert third[:2] == [("user", "Which?"), ("assistant", BAD)]  # the last one alone is shown
    assert ".people" in third[2][1]
    receipt = response.receipt
    assert receipt is not None
    assert (receipt.attempts, receipt.provider_time) == (3, 3.0)
    assert receipt.usage == TokenUsage(input_tokens=30, output_tokens=15)
    assert response.tokens_used == 45
    assert receipt.cost_usd == pytest.approx(3 * (10 * 0.15 + 5 * 0.6) / MILLION)
    assert (stats["attempts"], stats["retries"], stats["errors"]) == (3, 2, {"invalid_answer": 2})
    assert (stats["tokens"]["total"], stats["cost_usd"]) == (45, receipt.cost_usd)
    waits = [event.wait for event in seen.events if isinstance(event, RetryScheduled)]
    assert waits == [0.0, 0.0]


async def test_an_answer_that_never_fits_ends_in_an_error_that_keeps_it_and_its_cost() -> None:
    seen = Recorder()
    provider = FakeProvider(answer=lambda _: BAD)
    async with gateway_over(provider, observers=[seen], retry={"max_attempts": 3}) as gateway:
        with pytest.raises(InvalidAnswerError, match=r"The answer does not fit City at \.people: Input") as caught:
            await gateway.request(ask("a", response_format=City))
    assert len(provider.ledger) == 3
    kept = pickle.loads(pickle.dumps(caught.value)).response  # noqa: S301 - our own error
    assert isinstance(kept, LLMResponse)
    assert (kept.content, kept.parsed) == (BAD, None)
    assert kept.receipt is not None
    assert (kept.receipt.attempts, kept.tokens_used) == (3, 45)
    [done] = [event for event in seen.events if isinstance(event, RequestDone)]
    assert (done.outcome, done.attempt, done.cost_usd) == ("invalid_answer", 3, kept.receipt.cost_usd)
    assert done.answer is None
    told = [event.message for event in seen.events if isinstance(event, AttemptFailed)]
    assert told == ["The answer does not fit the format that was asked for."] * 3  # nothing of the answer


async def test_a_failure_of_the_provider_after_a_paid_answer_keeps_that_answer() -> None:
    provider = FakeProvider(script=[BAD, unavailable(), unavailable()])
    async with gateway_over(provider, retry={"max_attempts": 3}) as gateway:
        with pytest.raises(ProviderUnavailableError) as caught:
            await gateway.request(ask("a", response_format=City))
        stats = gateway.get_stats()
    assert caught.value.response is not None
    assert caught.value.response.content == BAD
    assert stats["cost_usd"] > 0


async def test_a_deadline_and_a_caller_that_leaves_do_not_hide_what_was_paid() -> None:
    for patience in (None, 1.5):
        provider = FakeProvider(answer=lambda _: BAD)
        async with gateway_over(provider) as gateway:
            asking = gateway.request(ask("a", response_format=City, deadline=None if patience else 1.5))
            with pytest.raises(TimeoutError if patience else DeadlineExceededError) as caught:
                await (asyncio.wait_for(asking, patience) if patience else asking)
            stats = gateway.get_stats()
        assert (len(provider.ledger), stats["tokens"]["total"]) == (2, 15)
        if isinstance(caught.value, DeadlineExceededError):
            assert caught.value.response is not None


async def test_an_answer_without_text_is_shown_as_none() -> None:
    provider = FakeProvider(script=[" ", OSLO])
    async with gateway_over(provider) as gateway:
        await gateway.request(ask("a", response_format=City))
    assert messages_of(provider)[1][1] == ("assistant", "(no answer)")


async def test_a_fence_around_the_json_is_taken_off() -> None:
    async with gateway_over(FakeProvider(answer=lambda _: f"```json\n{OSLO}\n```\n")) as gateway:
        assert (await gateway.request(ask("a", response_format=SCHEMA))).parsed["name"] == "Oslo"


async def test_a_check_of_the_class_that_breaks_is_no_reason_to_pay_again() -> None:
    provider = FakeProvider(answer=lambda _: '{"name": "x"}')
    async with gateway_over(provider) as gateway:
        with pytest.raises(InvalidAnswerError, match="Moody cannot check the answer: KeyError: 'x'"):
            await gateway.request(ask("a", response_format=Moody))
    assert len(provider.ledger) == 1


@pytest.mark.parametrize("reason", ["refusal", "content_filter"])
async def test_a_refusal_is_not_asked_for_again(reason: str) -> None:
    gateway = MockLLMGateway(responses={"default": {"content": "I will not.", "finish_reason": reason}})
    with pytest.raises(InvalidAnswerError, match=f"did not answer as asked .{reason.replace('_', ' ')}"):
        await gateway.request(ask("a", response_format=City))
    gateway.assert_called(times=1)


async def test_an_answer_that_was_cut_off_is_asked_for_more_briefly() -> None:
    cut = {"content": OSLO[:20], "finish_reason": "length"}
    gateway = MockLLMGateway(responses={"rules": [{"match": {"text": "hello"}, "replies": [cut, OSLO]}]})
    assert (await gateway.request(ask("a", response_format=City))).parsed.name == "Oslo"
    assert "cut off" in str(gateway.last_call.request.messages[-1].content)
    gateway = MockLLMGateway(responses={"default": cut})
    with pytest.raises(InvalidAnswerError, match="raise max_tokens"):
        await gateway.request(ask("a", response_format=City))


async def test_a_call_of_a_tool_is_no_answer_yet() -> None:
    script = {"rules": [{"reply": {"tool_calls": [{"name": "look", "arguments": {}}]}}]}
    gateway = MockLLMGateway(responses=script)
    response = await gateway.request(ask("a", response_format=City, tools=[LOOK]))
    assert (response.parsed, [call.name for call in response.tool_calls or ()]) == (None, ["look"])


# --- in a batch, a stream, a job; shared, limited, on a budget, in another model ------------------------------------


async def test_in_a_batch_each_request_has_a_format_of_its_own() -> None:
    provider = FakeProvider(answer=lambda request: BAD if request.request_id == "b" else OSLO)
    requests = [ask("a", response_format=City), ask("b", response_format=SCHEMA), ask("c")]
    async with gateway_over(provider, retry={"max_attempts": 2}) as gateway:
        with pytest.raises(BatchError) as caught:
            await gateway.batch(requests)
    first, second, third = caught.value.outcomes
    assert isinstance(first, LLMResponse)
    assert isinstance(second, InvalidAnswerError)
    assert isinstance(third, LLMResponse)
    assert (type(first.parsed), third.parsed) == (City, None)


async def test_a_streamed_answer_is_read_at_its_end() -> None:
    async with gateway_over(FakeProvider(answer=lambda _: OSLO)) as gateway:
        *pieces, whole = [piece async for piece in gateway.stream(ask("a", response_format=City))]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == OSLO
    assert isinstance(whole, LLMResponse)
    assert whole.parsed == City(name="Oslo", people=700000)


async def test_a_stream_whose_pieces_were_seen_is_not_asked_again_but_an_empty_one_is() -> None:
    provider = FakeProvider(script=["", BAD])
    async with gateway_over(provider) as gateway:
        with pytest.raises(InvalidAnswerError, match=r"\.people") as caught:
            _ = [piece async for piece in gateway.stream(ask("a", response_format=City))]
    assert len(provider.ledger) == 2
    assert caught.value.response is not None
    assert caught.value.response.content == BAD


async def test_a_shared_call_serves_those_who_ask_for_the_same_class_and_each_has_an_answer_of_its_own() -> None:
    asked = [ask("a", response_format=City), ask("b", response_format=City), ask("c", response_format=Town)]
    provider = FakeProvider(answer=lambda _: OSLO)
    async with gateway_over(provider, coalesce=True) as gateway:
        first, second, third = await asyncio.gather(*map(gateway.request, asked))
    assert len(provider.ledger) == 2
    assert first.parsed == second.parsed
    assert first.parsed is not second.parsed
    assert type(third.parsed) is Town
    forms: list[Any] = [City, Town, None]
    assert len({fingerprint(ask("a", response_format=form)) for form in forms}) == 3


async def test_each_answer_that_does_not_fit_is_taken_from_the_budget_and_the_limits() -> None:
    config: dict[str, Any] = {
        "budgets": {"total": 40},
        "models": {
            "gpt-4o-mini": {"price": {"input": 0, "output": MILLION}, "max_tokens": 5, "limits": {"rpm": 60}},
        },
    }
    provider = FakeProvider(script=[BAD, BAD, OSLO])
    async with gateway_over(provider, **config) as gateway:
        response = await gateway.request(ask("a", response_format=City))
        budget = gateway.get_stats()["budgets"]["the gateway"]
    assert response.receipt is not None
    assert (response.receipt.cost_usd, budget["spent"], budget["reserved"]) == (15, 15, 0)
    began = [entry.began for entry in provider.ledger]
    assert began[2] - began[0] >= 2 - 0.1  # sixty a minute


async def test_what_a_retry_shows_the_model_counts_in_its_estimate() -> None:
    provider = FakeProvider(script=["word " * 2000, OSLO])
    limits = {"gpt-4o-mini": {"limits": {"tpm": 1000}, "max_tokens": 10}}
    async with gateway_over(provider, models=limits) as gateway:
        with pytest.raises(InvalidRequestError, match="may use 1,000 a minute") as caught:
            await gateway.request(ask("a", response_format=City))
    assert caught.value.response is not None  # its answer was paid for


async def test_another_model_begins_anew_where_the_attempts_of_the_first_are_used_up() -> None:
    models = {"gpt-4o-mini": {"fallbacks": {"invalid_answer": ["claude-haiku"]}}}
    provider = FakeProvider(by={"anthropic/claude-haiku-5-5": OSLO}, answer=lambda _: BAD)
    keys = {"anthropic": {"api_key": "sk-canary-1"}, "openai": {"api_key": "sk-canary-2"}}
    async with gateway_over(provider, models=models, providers=keys, retry={"max_attempts": 2}) as gateway:
        response = await gateway.request(ask("a", response_format=City))
    assert response.receipt is not None
    assert (response.model, response.receipt.attempts) == ("claude-haiku", 3)
    assert response.receipt.usage == TokenUsage(input_tokens=30, output_tokens=15)
    assert [len(each) for each in messages_of(provider)] == [1, 3, 1]


async def test_a_context_that_does_not_hold_the_retry_keeps_the_answer() -> None:
    full = ContextLengthError("full", provider="fake", model="m", status=400)
    async with gateway_over(FakeProvider(script=[BAD, full])) as gateway:
        with pytest.raises(ContextLengthError) as caught:
            await gateway.request(ask("a", response_format=City))
    assert caught.value.response is not None


async def test_a_job_pays_for_every_answer_and_counts_it() -> None:
    provider = FakeProvider(script=[BAD, OSLO], answer=lambda request: BAD if request.request_id == "b" else None)
    async with gateway_over(provider, retry={"max_attempts": 2}) as gateway, gateway.job(Path("work.job")) as job:
        outcomes = {
            each.request_id: each
            async for each in job.run([ask("a", response_format=City), ask("b", response_format=SCHEMA)])
        }
        ledger = await job.ledger()
    good, bad = outcomes["a"].response, outcomes["b"]
    assert good is not None
    assert good.parsed == {"name": "Oslo", "people": 700000}  # the job keeps the schema, not the class
    assert (bad.kind, bad.attempts) == ("invalid_answer", 2)
    assert (ledger.calls, ledger.answered, ledger.refused, ledger.in_doubt) == (4, 4, 0, 0)
    assert (ledger.input_tokens, ledger.output_tokens) == (40, 20)
    assert json.dumps(BAD)[1:-1].encode() in Path("work.job").read_bytes()


async def test_a_job_that_is_stopped_between_two_answers_knows_which_one_was_paid() -> None:
    provider = FakeProvider(answer=lambda _: BAD)
    async with gateway_over(provider) as gateway:
        job: Job = gateway.job(None)
        async with job:
            running = asyncio.ensure_future(anext(job.run([ask("a", response_format=City)])))
            await asyncio.sleep(1.5)
            job.abandon()
            with pytest.raises(StopAsyncIteration):
                await running
            ledger = await job.ledger()
    assert (ledger.answered, ledger.in_doubt, ledger.input_tokens) == (1, 1, 10)


# --- requests with a format -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (5, "5 is neither a pydantic model class nor a JSON schema"),
        ("object", "neither a pydantic model class"),
        (int, "the class int is no pydantic model"),
        (BaseModel, "the class BaseModel is no pydantic model"),
        (City(name="x", people=1), "neither a pydantic model class"),
        ({}, "does not say what the answer is"),
        ({"properties": {"a": {"type": "string"}}}, "a JSON schema has a 'type'"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "give the schema itself"),
        ({"type": "json_object"}, "give the schema itself"),
        ({"type": "object", 5: 6}, "has a key that is no text"),
    ],
)
def test_a_format_that_is_none_is_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^LLMRequest\.response_format: ") as caught:
        ask("a", response_format=given)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_without_a_schema_is_one_sentence() -> None:
    class Odd(BaseModel, arbitrary_types_allowed=True):
        thing: asyncio.Event

    with pytest.raises(InvalidRequestError, match="the class Odd has no JSON schema: Cannot generate"):
        ask("a", response_format=Odd)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "strange"}, "is not a JSON schema: 'strange' is not valid"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}, "'#/$defs/gone' is not in it"),
        ({"type": "array", "items": {"$ref": "https://example.org/x.json"}}, "is not in it"),
        ({"type": "string", "pattern": "("}, "'(' is not a 'regex'"),
        ({"type": "object", "patternProperties": {"[": {}}}, "'[' is not a 'regex'"),
        ({"type": "string", "default": {1}}, "cannot be written as JSON"),
    ],
)
async def test_a_schema_that_no_answer_can_be_held_against_costs_no_call(schema: Any, sentence: str) -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        with pytest.raises(InvalidRequestError) as caught:
            await gateway.request(ask("a", response_format=schema))
    assert sentence in str(caught.value)
    assert not provider.ledger


async def test_a_schema_needs_its_extra_and_a_class_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jsonschema", None)
    provider = FakeProvider(answer=lambda _: OSLO)
    async with gateway_over(provider) as gateway:
        with pytest.raises(MissingDependencyError, match=r"llm-gateway\[schema\]"):
            await gateway.request(ask("a", response_format={**SCHEMA, "title": "never seen before"}))
        assert (await gateway.request(ask("b", response_format=City))).parsed


def test_a_class_is_written_as_its_schema_wherever_a_request_is_written() -> None:
    request = ask("a", response_format=City)
    written = request.model_dump()["response_format"]
    assert written["required"] == ["name", "people"]
    assert json.loads(request.model_dump_json())["response_format"] == written
    assert request_of(request_json(request)[0]).response_format == written
    assert plain_request(Asked(request=request, model="m", attempt=1))["response_format"] == written
    assert LLMRequest.model_validate_json(request.model_dump_json()).response_format == written
    pickled = pickle.loads(pickle.dumps(request))  # noqa: S301 - our own request
    for kept in (request.model_copy(update={"agent": "x"}), copy.deepcopy(request), pickled):
        assert kept.response_format is City
    plain = ask("a")
    assert estimate_input(request) == estimate_input(ask("a", response_format=written)) > estimate_input(plain)
    assert most_input(request) > most_input(plain)


def test_a_response_is_written_with_its_parsed_answer() -> None:
    response = LLMResponse(request_id="a", content=OSLO, model="m", parsed=City(name="Oslo", people=1))
    assert json.loads(response_json(response))["parsed"] == {"name": "Oslo", "people": 1, "mayor": None}
    assert LLMResponse(**json.loads(response_json(response))).parsed["people"] == 1


# --- the mock -----------------------------------------------------------------------------------------------------


async def test_the_mock_scripts_an_answer_that_does_not_fit_and_one_that_does() -> None:
    rules = [
        {"match": {"contains": "Oslo", "attempt": 1}, "reply": BAD},
        {"match": {"contains": "Oslo"}, "reply": OSLO},
    ]
    for script in (rules, [{"match": {"text": "Oslo?"}, "replies": [BAD, OSLO]}]):
        gateway = MockLLMGateway(responses={"rules": script})
        response = await gateway.request(ask("a", text="Oslo?", response_format=City))
        assert response.parsed == City(name="Oslo", people=700000)
        assert [call.outcome for call in gateway.calls] == ["invalid_answer", "ok"]
        assert [call.text for call in gateway.calls] == ["Oslo?", "Oslo?"]


async def test_the_mock_makes_up_answers_that_fit() -> None:
    gateway = MockLLMGateway()
    assert isinstance((await gateway.request(ask("a", response_format=City))).parsed, City)
    assert (await gateway.request(ask("b", response_format={"type": "integer"}))).parsed == 0


async def test_after_a_tool_a_rule_fits_the_second_attempt_too() -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "1", "name": "look", "arguments": {}}]}
    turns = [{"role": "user", "content": "x"}, called, {"role": "tool", "content": "seen", "tool_call_id": "1"}]
    gateway = MockLLMGateway(responses={"rules": [{"match": {"after_tool": "look"}, "replies": [BAD, OSLO]}]})
    messages = [LLMMessage.model_validate(each) for each in turns]
    request = LLMRequest(model="gpt-4o-mini", messages=messages, response_format=City, tools=[LOOK])
    assert (await gateway.request(request)).parsed.people == 700000
