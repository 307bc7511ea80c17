"""The exact cache as callers meet it: what is found, what is kept, and what it costs."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from fakes.provider import Broken, FakeProvider, Recorder, ask, gateway_over, refused_key, unavailable
from llm_gateway import (
    BatchError,
    BudgetExceededError,
    ConfigurationError,
    DeadlineExceededError,
    GatewayClosedError,
    InvalidAnswerError,
    LLMGateway,
    LLMRequest,
    LLMResponse,
    LLMToolCall,
    MockLLMGateway,
    ProviderUnavailableError,
    RequestPriority,
    StreamInterruptedError,
)
from llm_gateway.cache.answers import PAUSE
from llm_gateway.cache.caching import NOT_OF_THE_ENDPOINT, NOT_OF_THE_MODEL, OF_THE_ENDPOINT, OF_THE_MODEL
from llm_gateway.cache.store import CacheStoreError
from llm_gateway.clients.base import Completion
from llm_gateway.coalescing import NOT_OF_THE_ANSWER, OF_THE_ANSWER
from llm_gateway.config import Endpoint, ModelSettings, load_config
from llm_gateway.events import RequestDone
from llm_gateway.integrations.prometheus import GatewayMetrics
from llm_gateway.models import Receipt, TextDelta, ToolCallDelta

MEMORY = {"store": "memory"}
HIGH, NORMAL, LOW = RequestPriority
ONE_SLOT = {"gpt-4o-mini": {"max_concurrency": 1}}
CANARY = "sk-canary-cache-0123456789"


def caching(provider: FakeProvider, cache: dict[str, Any] | None = None, **options: Any) -> LLMGateway:
    return gateway_over(provider, cache={**MEMORY, **(cache or {})}, **options)


def receipt_of(response: object) -> Receipt:
    assert isinstance(response, LLMResponse)
    assert response.receipt is not None
    return response.receipt


# --- what is identical ------------------------------------------------------------------------------------------------


def test_every_field_of_a_request_is_in_the_key_or_known_to_change_nothing() -> None:
    assert not OF_THE_ANSWER & NOT_OF_THE_ANSWER
    assert set(LLMRequest.model_fields) == OF_THE_ANSWER | NOT_OF_THE_ANSWER, (
        "name the new field in coalescing.py, in one of the two sets"
    )


@pytest.mark.parametrize(
    ("of", "not_of", "cls"),
    [(OF_THE_MODEL, NOT_OF_THE_MODEL, ModelSettings), (OF_THE_ENDPOINT, NOT_OF_THE_ENDPOINT, Endpoint)],
    ids=["model", "endpoint"],
)
def test_every_setting_of_a_deployment_is_in_the_key_or_known_to_change_nothing(
    of: tuple[str, ...], not_of: tuple[str, ...], cls: type[ModelSettings | Endpoint]
) -> None:
    assert sorted(of + not_of) == sorted(cls.model_fields), "name the new setting in cache/caching.py"


@pytest.mark.parametrize(
    "models",
    [
        {"provider": "ollama"},
        {"model": "gpt-4o-mini-2024-07-18"},
        {"max_tokens": 7},
        {"options": {"top_p": 0.5}},
        {"context": 1000},
        {"deployments": [{"provider": "ollama"}]},
    ],
    ids=lambda each: next(iter(each)),
)
async def test_another_deployment_of_the_model_is_another_question(models: dict[str, Any], tmp_path: Path) -> None:
    provider = FakeProvider()
    shared = {"path": str(tmp_path / "c.sqlite")}
    for settings in ({}, models, {"max_concurrency": 3}):
        async with gateway_over(provider, cache=shared, models={"gpt-4o-mini": settings}) as gateway:
            await gateway.request(ask("r"))
    assert len(provider.ledger) == 2


async def test_options_that_are_no_json_are_never_cached() -> None:
    provider = FakeProvider()
    async with caching(provider, models={"gpt-4o-mini": {"options": {"hook": print}}}) as gateway:
        for name in "ab":
            await gateway.request(ask(name))
    assert provider.sent == ["a", "b"]


async def test_tenants_and_where_asked_agents_share_nothing(tmp_path: Path) -> None:
    provider = FakeProvider()
    shared = {"path": str(tmp_path / "c.sqlite"), "each_agent": True}
    for tenant in ("red", "blue", "red"):
        async with gateway_over(provider, cache={**shared, "tenant": tenant}) as gateway:
            await gateway.request(ask(f"{tenant} x", agent="x"))
            await gateway.request(ask(f"{tenant} y", agent="y"))
            with gateway.on_behalf_of(ask("parent", agent="x")):
                assert receipt_of(await gateway.request(ask("inherits"))).cached
    assert provider.sent == ["red x", "red y", "blue x", "blue y"]


# --- hits -------------------------------------------------------------------------------------------------------------


async def test_a_hit_costs_nothing_and_says_what_it_would_have_cost() -> None:
    provider, recorder = FakeProvider(), Recorder()
    async with caching(provider, observers=[recorder]) as gateway:
        first = await gateway.request(ask("a", text="hi"))
        hit = await gateway.request(ask("b", HIGH, text="hi", agent="me", metadata={"k": 1}, deadline=1.0))
    stats = gateway.get_stats()
    assert (hit.content, hit.request_id, hit.finish_reason, hit.model) == ("ok", "b", "stop", "gpt-4o-mini")
    assert hit.tokens_used == 15
    receipt, paid = receipt_of(hit), receipt_of(first)
    assert paid.cost_usd
    assert (receipt.cached, receipt.cost_usd, receipt.attempts, receipt.provider_time) == (True, 0.0, 0, 0.0)
    assert receipt.saved_usd == paid.cost_usd
    assert (receipt.deployment, receipt.usage) == (paid.deployment, paid.usage)
    assert (paid.cached, paid.saved_usd) == (False, None)
    assert (stats["submitted"], stats["completed"], stats["cached"], stats["attempts"]) == (2, 2, 1, 1)
    assert stats["tokens"]["total"] == 15
    assert stats["cost_usd"] == paid.cost_usd == stats["saved_usd"]
    figures = {"hits": 1, "misses": 1, "unavailable": 0, "kept": 1, "not_kept": 0, "damaged": 0}
    assert stats["cache"] == figures
    done = [each for each in recorder.events if isinstance(each, RequestDone)]
    assert [(each.cached, each.saved_usd, each.cost_usd, each.agent, each.priority) for each in done] == [
        (None, None, paid.cost_usd, None, NORMAL),
        (True, paid.cost_usd, 0.0, "me", HIGH),
    ]


async def test_a_hit_needs_no_room_no_slot_no_permit_and_no_money() -> None:
    provider = FakeProvider(latency=lambda request: 100.0 if request.request_id != "a" else 0.0)
    model = {"max_concurrency": 1, "max_tokens": 10, "price": {"input": 1, "output": 1}, "limits": {"rpm": 1}}
    budget = {"total": 0.00021}
    async with caching(
        provider, models={"gpt-4o-mini": model}, batching={"max_queue_size": 1}, budgets=budget
    ) as gateway:
        await gateway.request(ask("a", text="x"))
        fillers = [asyncio.create_task(gateway.request(ask(f"f{n}", text=f"f{n}"))) for n in range(2)]
        await asyncio.sleep(0.5)
        with pytest.raises(BudgetExceededError):
            await gateway.request(ask("c", text="x" * 200))
        before = asyncio.get_running_loop().time()
        assert receipt_of(await gateway.request(ask("b", text="x"))).cached
        assert asyncio.get_running_loop().time() == before
        for task in fillers:
            task.cancel()
        await asyncio.gather(*fillers, return_exceptions=True)


async def test_the_journal_and_prometheus_tell_of_hits(tmp_path: Path) -> None:
    metrics = GatewayMetrics()
    logs = {"dir": str(tmp_path / "logs"), "text": True}
    async with caching(FakeProvider(), observers=[metrics], logs=logs) as gateway:
        metrics.watch(gateway)
        for name in "ab":
            await gateway.request(ask(name, text="hi"))
        told = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in metrics.registry.collect()
            for sample in metric.samples
        }
    assert told["llm_gateway_cached_requests_total", "gpt-4o-mini"] == 1
    assert told["llm_gateway_saved_dollars_total", "gpt-4o-mini", ""] == pytest.approx(4.5e-6)
    assert told["llm_gateway_cache_total", "hits"] == told["llm_gateway_cache_total", "misses"] == 1
    (path,) = (tmp_path / "logs").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    miss, hit = [line for line in lines if line["event"] == "item_done"]
    assert "cached" not in miss
    assert (hit["cached"], hit["saved_usd"], hit["cost_usd"]) == (True, miss["cost_usd"], 0.0)
    assert (hit["answer"], hit["prompt"]) == ("ok", [{"role": "user", "content": "hi"}])


async def test_tool_calls_come_back_whole_also_from_a_stream() -> None:
    class Calling(FakeProvider):
        def _completion(self, request: LLMRequest, content: str) -> Completion:
            calls = (LLMToolCall(id="1", name="t", arguments={"é": [1, None, 2.5]}),)
            return Completion(content=content, tool_calls=calls, finish_reason="tool_calls", usage=self.usage(request))

    async with caching(Calling()) as gateway:
        first = await gateway.request(ask("a"))
        again = await gateway.request(ask("b"))
        pieces = [piece async for piece in gateway.stream(ask("c"))]
    assert again.tool_calls == first.tool_calls is not None
    assert pieces[:-1] == [TextDelta("ok"), ToolCallDelta(index=0, id="1", name="t", arguments='{"é": [1, null, 2.5]}')]
    assert isinstance(pieces[-1], LLMResponse)
    assert pieces[-1].tool_calls == first.tool_calls


# --- streams and batches ----------------------------------------------------------------------------------------------


async def test_a_streamed_answer_is_kept_and_a_kept_answer_is_streamed() -> None:
    provider = FakeProvider(answer=lambda _: "one two three")
    async with caching(provider) as gateway:
        first = [piece async for piece in gateway.stream(ask("a"))]
        second = [piece async for piece in gateway.stream(ask("b"))]
        assert receipt_of(await gateway.request(ask("c"))).cached
    assert len(first) == 4
    assert second[0] == TextDelta("one two three")
    assert receipt_of(second[1]).cached
    assert provider.sent == ["a"]


async def test_a_stream_that_breaks_off_or_is_left_keeps_nothing() -> None:
    provider = FakeProvider(script=[Broken("one two", unavailable()), "three four", "whole"])
    async with caching(provider) as gateway:
        with pytest.raises(StreamInterruptedError):
            [piece async for piece in gateway.stream(ask("a"))]
        stream = gateway.stream(ask("b"))
        await anext(stream)
        await stream.aclose()
        assert (await gateway.request(ask("c"))).content == "whole"
    assert provider.sent == ["a", "b", "c"]


async def test_a_batch_takes_hits_shares_calls_and_keeps_its_order_and_errors() -> None:
    provider = FakeProvider(answer=lambda request: refused_key() if request.request_id == "bad" else None)
    async with caching(provider, batching={"max_queue_size": 2}) as gateway:
        await gateway.request(ask("first", text="0"))
        asked = [ask(f"r{n}", text=str(n % 4)) for n in range(12)] + [ask("hot", temperature=1.0), ask("bad", text="b")]
        unknown = ask("unknown", model="nobody")
        answers = await gateway.batch([*asked, unknown], return_exceptions=True)
        with pytest.raises(BatchError):
            await gateway.batch([ask("bad", text="b")])
    names = [each.request_id if isinstance(each, LLMResponse) else type(each).__name__ for each in answers]
    assert names == [*(f"r{n}" for n in range(12)), "hot", "AuthenticationError", "UnknownModelError"]
    assert sorted(provider.sent) == ["bad", "bad", "first", "hot", "r1", "r2", "r3"]
    costs = [bool(receipt_of(each).cost_usd) for each in answers if isinstance(each, LLMResponse)]
    assert sum(costs) == 4


async def test_a_batch_that_is_left_leaves_nothing_under_way() -> None:
    provider = FakeProvider(latency=lambda _: 50.0)
    async with caching(provider) as gateway:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gateway.batch([ask(str(n), text=str(n % 3)) for n in range(6)]), 1.0)
        await asyncio.sleep(0)
        assert provider.under_way == 0
        assert gateway.get_stats()["queued"]["total"] == 0


async def test_who_waits_for_room_and_finds_the_call_of_another_passes_the_room_on() -> None:
    provider = FakeProvider()
    async with caching(provider, models=ONE_SLOT, batching={"max_queue_size": 1}) as gateway:
        asked = [ask(f"{name}{n}", text=name) for name in "abcd" for n in range(3)]
        answers = await asyncio.gather(gateway.batch(asked[::2]), gateway.batch(asked[1::2]))
    assert sum(len(each) for each in answers) == 12
    assert len(provider.ledger) == 4


# --- single flight ----------------------------------------------------------------------------------------------------


async def test_identical_requests_that_come_together_share_one_call() -> None:
    provider = FakeProvider()
    async with caching(provider) as gateway:
        responses = await asyncio.gather(*(gateway.request(ask(f"r{n}")) for n in range(20)))
        assert receipt_of(await gateway.request(ask("later"))).cached
    assert len(provider.ledger) == 1
    assert sum(not receipt_of(each).coalesced for each in responses) == 1
    assert len({each.request_id for each in responses}) == 20


async def test_a_caller_that_leaves_takes_nothing_from_the_others_nor_from_the_cache() -> None:
    provider = FakeProvider(latency=lambda _: 2.0)
    async with caching(provider) as gateway:
        tasks = [asyncio.create_task(gateway.request(ask(name))) for name in "ab"]
        await asyncio.sleep(1.0)
        tasks[0].cancel()
        assert (await tasks[1]).content == "ok"
        assert receipt_of(await gateway.request(ask("c"))).cached
    assert provider.sent == ["a"]


async def test_a_deadline_counts_from_the_question() -> None:
    async with caching(FakeProvider(latency=lambda _: 9.0)) as gateway:
        with pytest.raises(DeadlineExceededError, match="deadline of 2 s"):
            await gateway.request(ask("a", deadline=2.0))
        assert asyncio.get_running_loop().time() == 2.0
    stats = gateway.get_stats()
    assert (stats["failures"], stats["cancelled"]) == ({"deadline": 1}, 0)


async def test_shutdown_keeps_what_was_answered_last_and_turns_the_rest_away(tmp_path: Path) -> None:
    provider, shared = FakeProvider(), {"path": str(tmp_path / "c.sqlite")}
    gateway = gateway_over(provider, cache=shared)
    task = asyncio.create_task(gateway.request(ask("a")))
    await asyncio.sleep(0.5)
    await gateway.shutdown()
    assert (await task).content == "ok"
    with pytest.raises(GatewayClosedError):
        await gateway.request(ask("b"))
    async with gateway_over(provider, cache=shared) as other:
        assert receipt_of(await other.request(ask("c"))).cached


# --- what is never kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "content_filter", "refusal", "pause_turn", None])
async def test_an_answer_that_did_not_come_to_its_own_end_is_not_kept(reason: str | None) -> None:
    class Cut(FakeProvider):
        def _completion(self, _: LLMRequest, content: str) -> Completion:
            return Completion(content=content, finish_reason=reason)

    provider = Cut()
    async with caching(provider) as gateway:
        for name in "ab":
            await gateway.request(ask(name))
    assert provider.sent == ["a", "b"]


async def test_errors_empty_answers_and_those_of_fallbacks_are_not_kept() -> None:
    provider = FakeProvider(script=[unavailable(), "", "whole"])
    async with caching(provider, retry={"max_attempts": 1}) as gateway:
        with pytest.raises(ProviderUnavailableError):
            await gateway.request(ask("a"))
        assert (await gateway.request(ask("b"))).content == ""
        assert (await gateway.request(ask("c"))).content == "whole"
    provider = FakeProvider(by={"openai/gpt-4o-mini": refused_key()})
    async with caching(provider, models={"gpt-4o-mini": {"fallbacks": ["claude-haiku"]}}) as gateway:
        for name in "ab":
            assert (await gateway.request(ask(name))).model == "claude-haiku"
    assert len(provider.ledger) == 4


async def test_half_a_surrogate_pair_in_an_answer_or_a_prompt_is_no_error() -> None:
    provider = FakeProvider(answer=lambda _: "cut \ud83d")
    async with caching(provider) as gateway:
        for name in "ab":
            assert (await gateway.request(ask(name))).content == "cut \ud83d"
    assert provider.sent == ["a", "b"]
    blocks = {"type": "text", "text": "x", "odd": float("nan")}
    request = ask("n").model_copy(update={"messages": [{"role": "user", "content": [blocks]}]})
    async with caching(FakeProvider(), coalesce=True) as gateway:
        assert not receipt_of(await gateway.request(request)).cached
        assert not receipt_of(await gateway.request(request)).cached


@pytest.mark.parametrize(
    ("settings", "model", "fields", "calls"),
    [
        ({}, {}, {"temperature": 0.1}, 2),
        ({"any_temperature": True}, {}, {"temperature": 0.1}, 1),
        ({}, {}, {"temperature": 0.1, "cache": True}, 1),
        ({}, {}, {"cache": False}, 2),
        ({}, {"cache": False}, {}, 2),
        ({}, {"cache": False}, {"cache": True}, 1),
    ],
    ids=["warm", "warm allowed", "warm asked", "request out", "model out", "model out, request in"],
)
async def test_temperature_model_and_request_decide_whether_an_answer_is_kept(
    settings: dict[str, Any], model: dict[str, Any], fields: dict[str, Any], calls: int
) -> None:
    provider = FakeProvider()
    async with caching(provider, settings, models={"gpt-4o-mini": model}) as gateway:
        for name in "ab":
            await gateway.request(ask(name, **fields))
        assert len(provider.ledger) == calls
        assert gateway.get_stats()["cached"] == 2 - calls


async def test_a_request_that_wants_a_fresh_answer_leaves_the_kept_one_alone() -> None:
    provider = FakeProvider(script=["old", "fresh"])
    async with caching(provider) as gateway:
        answers = [
            (await gateway.request(ask(str(n), cache=cache))).content for n, cache in enumerate([None, False, None])
        ]
    assert answers == ["old", "fresh", "old"]


# --- a store that fails -----------------------------------------------------------------------------------------------


class Failing:
    """A store that fails as told, and keeps nothing."""

    def __init__(self, *, reads: bool = False, writes: bool = False, hangs: bool = False) -> None:
        self.reads, self.writes, self.hangs = reads, writes, hangs
        self.asked = 0

    async def get(self, _: bytes, /) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(1e9)
        if self.reads:
            raise CacheStoreError("no luck")

    async def put(self, _key: bytes, _body: bytes, /) -> None:
        self.asked += 1
        if self.writes:
            raise CacheStoreError("its disk is full")

    async def aclose(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def over_store(store: Any, monkeypatch: pytest.MonkeyPatch, provider: FakeProvider) -> LLMGateway:
    monkeypatch.setattr("llm_gateway.serving.store_of", lambda *_: (store, "here"))
    return caching(provider)


@pytest.mark.parametrize("trouble", ["reads", "writes", "hangs"])
async def test_a_store_that_fails_costs_no_request_and_one_warning(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider, store = FakeProvider(), Failing(**{trouble: True})
    async with over_store(store, monkeypatch, provider) as gateway:
        for n in range(3):
            assert (await gateway.request(ask(str(n)))).content == "ok"
        asked = store.asked
        await asyncio.sleep(PAUSE)
        assert (await gateway.request(ask("later"))).content == "ok"
        figures = gateway.get_stats()["cache"]
    assert len(provider.ledger) == 4
    assert len(caplog.records) == 1
    assert "the answer cache here cannot be " in caplog.text
    assert figures["hits"] == 0
    assert store.asked > asked  # it is tried again
    assert figures["not_kept"] + figures["unavailable"] >= 3


async def test_a_store_that_comes_back_is_used_again_and_warned_of_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Failing(reads=True)
    async with over_store(store, monkeypatch, FakeProvider()) as gateway:
        await gateway.request(ask("a"))
        store.reads = False
        await asyncio.sleep(PAUSE)
        await gateway.request(ask("b"))
        assert gateway.get_stats()["cache"]["misses"] == 1
        store.reads = True
        await gateway.request(ask("c"))
    assert len(caplog.records) == 2


async def test_more_answers_than_the_store_can_take_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Failing):
        async def put(self, _key: bytes, _body: bytes, /) -> None:
            await asyncio.sleep(0.5)

    monkeypatch.setattr("llm_gateway.cache.answers.MOST_UNDER_WAY", 2)
    async with over_store(Slow(), monkeypatch, FakeProvider()) as gateway:
        asked = [ask(str(n), text=str(n)) for n in range(5)]
        await gateway.batch(asked)
        assert gateway.get_stats()["cache"]["not_kept"] == 3
        on_their_way = await gateway.batch(asked)
        assert sum(receipt_of(each).cached for each in on_their_way) == 2
    assert gateway.get_stats()["cache"]["kept"] == 4


async def test_a_store_that_answers_others_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneByOne(Failing):
        def __init__(self) -> None:
            super().__init__()
            self.turn = asyncio.Lock()

        async def get(self, _: bytes, /) -> None:
            async with self.turn:
                await asyncio.sleep(0.6)

    async with over_store(OneByOne(), monkeypatch, FakeProvider()) as gateway:
        await gateway.batch([ask(str(n), text=str(n)) for n in range(5)])
        figures = gateway.get_stats()["cache"]
    assert (figures["misses"], figures["unavailable"]) == (5, 0)


async def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    provider = FakeProvider(answer=lambda _: "x" * 5000)
    async with caching(provider, {"max_bytes": 4096}) as gateway:
        for name in "ab":
            await gateway.request(ask(name))
    assert len(provider.ledger) == 2


# --- around it --------------------------------------------------------------------------------------------------------


def test_one_gateway_in_one_loop_after_the_other_finds_its_answers(tmp_path: Path) -> None:
    provider = FakeProvider(latency=lambda _: 0.0)
    gateway = gateway_over(provider, cache={"path": str(tmp_path / "c.sqlite")})
    for name in "ab":
        asyncio.run(gateway.request(ask(name)))  # no shutdown: the store closes with the loop
    loop = asyncio.new_event_loop()
    loop.run_until_complete(gateway.request(ask("c")))
    loop.close()
    asyncio.run(gateway.shutdown())
    assert provider.sent == ["a"]
    assert gateway.get_stats()["cache"]["hits"] == 2


async def test_the_mock_caches_in_memory_and_leaves_no_file(tmp_path: Path) -> None:
    config = {"cache": {"path": str(tmp_path / "c.sqlite")}}
    async with MockLLMGateway(config, skip_waits=True) as gateway:
        for name in "ab":
            last = await gateway.request(ask(name, deadline=5.0))
        gateway.assert_called(times=1)
    assert last.receipt is not None
    assert last.receipt.cached
    assert not list(tmp_path.iterdir())


async def test_a_job_counts_a_hit_as_no_call_and_no_token(tmp_path: Path) -> None:
    provider = FakeProvider()
    async with caching(provider) as gateway:
        await gateway.request(ask("before"))
        async with gateway.job(tmp_path / "j.job") as job:
            outcomes = [each async for each in job.run([ask("a"), ask("b", text="other")])]
            ledger = await job.ledger()
    assert all(each.ok for each in outcomes)
    assert (ledger.done, ledger.calls - ledger.unsent, ledger.answered, ledger.input_tokens) == (2, 1, 1, 10)
    assert ledger.adds_up
    assert ledger.cost_usd == pytest.approx(4.5e-6)


async def test_no_key_of_an_account_and_no_prompt_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    providers = {"openai": {"api_key": CANARY, "base_url": f"http://user:{CANARY}@localhost/v1"}}
    options = {"default_headers": {"x": CANARY}}
    async with gateway_over(
        FakeProvider(), cache={"path": str(path)}, providers=providers, models={"gpt-4o-mini": {"options": options}}
    ) as gateway:
        await gateway.request(ask("a", text="a secret prompt"))
    content = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert CANARY.encode() not in content
    assert b"secret prompt" not in content
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("cache", "sentence"),
    [
        ({"store": "redis"}, "cache.store: 'redis' needs an address; give cache.redis_url or limits.redis_url."),
        ({"store": "memory", "path": "x"}, "cache.path: the store 'memory' has no use for it; leave one of them out."),
        ({"path": "x", "redis_url": "redis://h"}, "cache.path: cache.redis_url is given, too; leave one of them out."),
        ({"redis_url": "http://h"}, "cache.redis_url: the value is wrong|no address of a Redis"),
        ({"ttl": 0}, "cache.ttl: 0 is wrong"),
        ({"max_bytes": 5}, "cache.max_bytes: 5 is wrong"),
        ({"tll": 5}, "cache.tll: unknown; did you mean 'ttl'?"),
        (True, "cache: True is wrong"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_sentence(cache: object, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence.replace("?", r"\?")):
        load_config({"cache": cache})


async def test_the_log_tells_of_a_damaged_answer_once_and_asks_anew(caplog: pytest.LogCaptureFixture) -> None:
    class Damaged(Failing):
        async def get(self, _: bytes, /) -> Any:
            return b"\0" * 40, 1e12

    provider = FakeProvider()
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        async with over_store(Damaged(), patch, provider) as gateway:
            for n in range(3):
                await gateway.request(ask(str(n)))
            assert gateway.get_stats()["cache"]["damaged"] == 3
    assert len(provider.ledger) == 3
    assert len(caplog.records) == 1


class Verdict(BaseModel):
    """What an answer is held against."""

    verdict: str


class Praise(BaseModel):
    """The same to the model, and more to whoever reads the answer."""

    model_config = ConfigDict(title="Verdict")
    verdict: str

    @field_validator("verdict")
    @classmethod
    def _is_good(cls, verdict: str) -> str:
        if verdict != "good":
            raise ValueError("is no praise")
        return verdict


async def test_a_kept_answer_is_read_by_the_class_of_whoever_asks() -> None:
    Praise.__doc__ = Verdict.__doc__
    provider = FakeProvider(answer=lambda _: '{"verdict": "bad"}')
    async with caching(provider) as gateway:
        first = await gateway.request(ask("a", response_format=Verdict))
        second = await gateway.request(ask("b", response_format=Verdict))
        as_schema = await gateway.request(ask("c", response_format=Verdict.model_json_schema()))
        with pytest.raises(InvalidAnswerError):
            await gateway.request(ask("d", response_format=Praise))
    assert first.parsed == second.parsed == Verdict(verdict="bad")
    assert receipt_of(second).cached
    assert receipt_of(as_schema).cached
    assert as_schema.parsed == {"verdict": "bad"}
    assert provider.sent[0] == "a"
    assert set(provider.sent[1:]) == {"d"}
