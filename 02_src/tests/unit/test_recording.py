"""Recordings, where a run of pytest would be too coarse: what is kept, what is masked, and what a drift looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fakes.deployments import said
from llm_gateway import (
    EmbeddingError,
    LLMToolCall,
    MockLLMGateway,
    ProviderUnavailableError,
    RequestRejectedError,
    TokenUsage,
)
from llm_gateway.clients.base import Completion
from llm_gateway.config import load_config
from llm_gateway.errors import ConfigurationError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.drift import LISTED, differences
from llm_gateway.integrations.recorded_gateway import RecordedGateway, mask_of
from llm_gateway.integrations.recording import load_recording, plain_request, reply_of, reply_of_error
from llm_gateway.mock_gateway.matching import Asked
from llm_gateway.mock_gateway.responses import Reply
from llm_gateway.models import LLMMessage, LLMRequest, ReasoningDelta, StreamDelta, TextDelta

KEY = "sk-canary-9b2f"


def ask(*messages: LLMMessage, **fields: Any) -> LLMRequest:
    return LLMRequest(model="claude-haiku", messages=list(messages or [said("user", "hello")]), **fields)


def gateway(folder: Path, **options: Any) -> RecordedGateway:
    return RecordedGateway(path=folder / "it.json", test="test_it", shown_path="it.json", remedy="record", **options)


# --- the differences ----------------------------------------------------------------------------------------------


def test_a_difference_names_its_path_and_both_values() -> None:
    old = {"model": "a", "messages": [{"content": "x"}, {"content": "y"}], "stop": ["."], "tools": [{"name": "t"}]}
    new = {"model": "b", "messages": [{"content": "x"}], "stop": ["."], "tools": "none"}
    assert differences(old, new) == [
        'model: recorded "a", sent "b"',
        'messages[1]: gone, was {"content": "y"}',
        'tools: recorded [{"name": "t"}], sent "none"',
    ]


def test_a_long_text_is_shown_from_shortly_before_the_place_where_it_changed() -> None:
    old = f"{'a' * 200} the old end {'z' * 200}"
    (line,) = differences({"content": old}, {"content": old.replace("old", "new")})
    assert line.startswith('content: recorded …"aaaaaaaaaa the old end zzz')
    assert 'sent …"aaaaaaaaaa the new end zzz' in line
    assert len(line) < 200
    (line,) = differences({"content": "same"}, {"content": "same and more"})
    assert line == 'content: recorded "same", sent "same and more"'


def test_of_many_differences_the_first_are_shown() -> None:
    lines = differences({str(number): 0 for number in range(20)}, {})
    assert len(lines) == LISTED + 1
    assert lines[-1] == "… and 12 more"


# --- what is kept -------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_it_was() -> None:
    call = LLMToolCall(id="c1", name="look", arguments={"at": ["x"]})
    usage = TokenUsage(input_tokens=9, output_tokens=3, cache_read_tokens=2)
    reply = reply_of(Completion(content="", tool_calls=(call,), finish_reason="tool_calls", usage=usage), "hm")
    kept = Reply.model_validate(reply)
    assert kept.tool_calls is not None
    assert kept.tool_calls[0].model_dump() == call.model_dump()
    assert kept.usage == usage
    assert kept.stream is not None
    assert kept.stream.reasoning == "hm"
    assert reply_of(Completion(content="x")) == {"content": "x", "usage": None}


def test_who_asks_and_how_urgently_is_no_part_of_a_request_and_bytes_are_told_by_a_fingerprint() -> None:
    image = said("user", "look").model_copy(update={"content": [{"type": "image", "data": b"\x00\xff"}]})
    asked = [
        Asked(request=ask(image, agent=agent, metadata={"a": agent}), model="claude-haiku", attempt=1)
        for agent in ("one", "two")
    ]
    assert plain_request(asked[0]) == plain_request(asked[1])
    assert plain_request(asked[0])["messages"][0]["content"][0]["data"].startswith("bytes ")


@pytest.mark.parametrize(("retryable", "kept"), [(True, False), (False, True)])
def test_only_a_failure_that_would_come_again_is_kept(retryable: bool, kept: bool) -> None:  # noqa: FBT001
    error = RequestRejectedError(f"no: {KEY}", provider="p", model="m", status=400, retryable=retryable)
    told = reply_of_error(error)
    assert told == ({"error": {"kind": "rejected", "status": 400, "message": "as recorded"}} if kept else None)
    assert reply_of_error(ProviderUnavailableError("gone", provider="p", model="m")) is None


def test_every_key_that_the_gateway_could_know_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-the-environment")
    monkeypatch.setenv("OPENAI_API_KEY", "test")  # too short to be one, and a word
    mask = mask_of(load_config({"providers": {"mine": {"kind": "openai", "api_key": "canary-of-mine"}}}))
    text = "test from-the-environment, canary-of-mine, AKIAIOSFODNN7EXAMPLE and eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln"
    assert mask(text) == "test [key], [key], [key] and [key]"
    assert mask("a risk-averse, ***bold*** task-force") == "a risk-averse, ***bold*** task-force"


def test_a_recording_that_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^The recording .* cannot be read: Is a directory\.$"):
        load_recording(tmp_path)


# --- the gateway --------------------------------------------------------------------------------------------------


class Talker:
    """A real model, as far as a test can have one: speaks endlessly, or as a script says."""

    def __init__(self, *pieces: StreamDelta | Completion) -> None:
        self.pieces = pieces
        self.calls = 0

    def connect(self, _: object, /) -> Talker:
        return self

    def check(self, request: LLMRequest, /) -> None:
        """Refuse nothing."""

    async def generate(self, _: LLMRequest, /) -> Completion:
        self.calls += 1
        await asyncio.sleep(3600)
        raise AssertionError

    async def stream(self, _: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        self.calls += 1
        for piece in self.pieces:
            yield piece
            await asyncio.sleep(1)
        await asyncio.sleep(3600)

    async def aclose(self) -> None:
        """Nothing is open."""

    def abandon(self) -> None:
        """Nothing is open."""


def speaking(monkeypatch: pytest.MonkeyPatch, *pieces: StreamDelta | Completion) -> Talker:
    talker = Talker(*pieces)
    monkeypatch.setattr(LLMGateway, "_connect", lambda _: talker)
    return talker


async def test_a_stream_that_its_reader_leaves_is_kept_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaking(monkeypatch, ReasoningDelta("hm"), TextDelta("one "), TextDelta("two"))
    async with gateway(tmp_path, record=True) as recording:
        async with aclosing(recording.stream(ask())) as pieces:
            assert [await anext(pieces) for _ in range(2)] == [ReasoningDelta("hm"), TextDelta("one ")]
        recording.tape.save()
    async with gateway(tmp_path) as replaying:
        pieces = replaying.stream(ask())
        heard = [piece async for piece in pieces][:2]
    assert heard == [ReasoningDelta("hm"), TextDelta("one")]


async def test_a_call_that_was_cancelled_before_it_said_anything_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker = speaking(monkeypatch)
    async with gateway(tmp_path, record=True) as recording:
        for work in (recording.request(ask()), anext(recording.stream(ask()))):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 1.0)
        recording.tape.save()
    assert talker.calls == 2
    assert not (tmp_path / "it.json").exists()


async def test_replaying_waits_for_no_limit_and_asks_no_shared_store(tmp_path: Path) -> None:
    request = {"model": "claude-haiku", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.0}
    call = {"deployment": "anthropic/claude-haiku-5-5", "request": request, "reply": "there"}
    (tmp_path / "it.json").write_text(json.dumps({"test": "test_it", "calls": [call] * 5}))
    config = {
        "models": {"claude-haiku": {"limits": {"rpm": 1}}},
        "limits": {"redis_url": "redis://127.0.0.1:9/0"},
    }
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with gateway(tmp_path, config=config) as replaying:
        contents = [(await replaying.request(ask())).content for _ in range(5)]
        assert replaying.calls[-1].at > 200  # as the limit would have had it
        replaying.reset()
        assert (await replaying.request(ask())).content == "there"
        assert not replaying.tape.unused
    assert contents == ["there"] * 5
    assert loop.time() == began


class Town(BaseModel):
    """What a test asks for."""

    name: str


async def test_an_answer_that_did_not_fit_and_the_one_that_mended_it_are_replayed_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talker = speaking(monkeypatch)
    answers = ["Oslo!", '{"name": "Oslo"}']

    async def answer(_: LLMRequest, /) -> Completion:
        return Completion(content=answers.pop(0), finish_reason="stop")

    monkeypatch.setattr(talker, "generate", answer)
    async with gateway(tmp_path, record=True) as recording:
        first = await recording.request(ask(response_format=Town))
        recording.tape.save()
    assert json.loads((tmp_path / "it.json").read_text())["calls"][0]["request"]["response_format"]["title"] == "Town"
    async with gateway(tmp_path) as replaying:
        second = await replaying.request(ask(response_format=Town))
    assert first.parsed == second.parsed == Town(name="Oslo")
    assert not replaying.tape.unused


async def test_an_empty_recording_says_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"test": "test_it"}')
    async with gateway(tmp_path) as replaying:
        with pytest.raises(Exception, match=r'^it\.json has no answer at all, and "hello" to claude-haiku was asked'):
            await replaying.request(ask())


# --- assertions on what was sent ----------------------------------------------------------------------------------


async def test_assertions_tell_the_order_and_the_fields_of_what_was_sent() -> None:
    async with MockLLMGateway() as mock:
        with pytest.raises(AssertionError, match=r"with temperature=0\.5, got none\. No model was called\."):
            mock.assert_sent(temperature=0.5)
        for text in ("plan", "search", "write"):
            await mock.request(ask(said("user", text), max_tokens=len(text)))
        mock.assert_called_in_order("plan", "write")
        mock.assert_called_in_order()
        mock.assert_sent(max_tokens=6, temperature=0.0)
        with pytest.raises(AssertionError, match=r'a call containing "plan" after the one containing "search", got'):
            mock.assert_called_in_order("search", "plan")
        with pytest.raises(AssertionError, match=r'^Expected a call containing "read", got none\. All calls:'):
            mock.assert_called_in_order("read")
        with pytest.raises(AssertionError, match=r"These were sent:\n  1\. max_tokens=4\n  2\. max_tokens=6\n  3\. "):
            mock.assert_sent(max_tokens=7)
        with pytest.raises(AttributeError, match="max_token"):
            mock.assert_sent(max_token=7)


# --- vectors ------------------------------------------------------------------------------------------------------

EMBEDDING = {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}
REJECTED = RequestRejectedError("no", provider="openai", model="e", status=400)


class Embedder(Talker):
    """Stands in for a real embedding model: a text becomes its length and a third."""

    async def generate(self, request: LLMRequest, /) -> Completion:
        self.calls += 1
        texts = [str(each.content) for each in request.messages]
        if "refused" in texts:
            raise REJECTED
        vectors = [[float(len(text)), 1 / 3] for text in texts]
        return Completion(content="", vectors=vectors, usage=TokenUsage(input_tokens=10 * len(texts)))


def embedding(folder: Path, *, record: bool = False, **changed: Any) -> RecordedGateway:
    return gateway(folder, config={"models": {"e": EMBEDDING | changed}}, record=record)


@pytest.fixture
async def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """A model that has been asked for the vectors of three texts, in one call; they are on the tape."""
    talker = Embedder()
    monkeypatch.setattr(LLMGateway, "_connect", lambda _: talker)
    async with embedding(tmp_path, record=True) as recording:
        await recording.embed(["one", f"three {KEY}0123", "seven"], model="e")
        recording.tape.save()
    return talker


async def test_a_text_has_its_recorded_vector_in_whatever_company_and_order(tmp_path: Path, embedder: Embedder) -> None:
    async with embedding(tmp_path) as replaying:
        seven, one = await asyncio.gather(
            replaying.embed(["seven", "one"], model="e"), replaying.embed([f"three {KEY}0123", "one"], model="e")
        )
        again = await replaying.embed(["one"], model="e")
    assert seven.vectors == [[5.0, 1 / 3], [3.0, 1 / 3]]
    assert one.vectors == [[len(f"three {KEY}0123"), 1 / 3], [3.0, 1 / 3]]
    assert again.vectors == [[3.0, 1 / 3]]
    assert again.tokens_used is not None
    assert again.tokens_used > 0
    assert not replaying.tape.unused
    assert embedder.calls == 1
    assert "canary" not in (tmp_path / "it.json").read_text()


@pytest.mark.parametrize(
    ("texts", "changed", "told"),
    [
        (["sevens"], {}, 'has no vector of "sevens" by e. The nearest recorded text is "seven". If that is meant, rec'),
        (["one"], {"model": "new"}, "by e as it is configured now. deployment: recorded openai/text-embedding-3-small"),
        (["one"], {"options": {"dimensions": 3}}, "by e as it is configured now. options.dimensions: recorded 2, ask"),
    ],
    ids=["another-text", "another-model", "another-size"],
)
async def test_a_text_that_drifted_fails_with_what_is_nearest(
    tmp_path: Path, embedder: Embedder, texts: list[str], changed: dict[str, Any], told: str
) -> None:
    async with embedding(tmp_path, **changed) as replaying:
        with pytest.raises(Exception, match=r"^it\.json has no vector of") as caught:
            await replaying.embed(texts, model="e")
    assert told in str(caught.value)
    assert replaying.tape.missed == [str(caught.value)]
    assert embedder.calls == 1


async def test_recording_anew_asks_for_the_texts_that_are_new_and_drops_those_that_are_not_asked_for(
    tmp_path: Path, embedder: Embedder
) -> None:
    async with embedding(tmp_path, record=True) as recording:
        response = await recording.embed(["seven", "eleven"], model="e")
        assert (await recording.embed(["one"], model="e")).vectors == [[3.0, 1 / 3]]
        recording.tape.save()
    assert response.vectors == [[5.0, 1 / 3], [6.0, 1 / 3]]
    assert response.tokens_used == 10
    assert embedder.calls == 2
    kept = load_recording(tmp_path / "it.json")
    assert kept is not None
    assert [each.text for each in kept.vectors] == ["eleven", "one", "seven"]


async def test_a_text_that_was_refused_is_refused_again_and_its_neighbours_are_not(
    tmp_path: Path, embedder: Embedder
) -> None:
    async with embedding(tmp_path, record=True) as recording:
        with pytest.raises(EmbeddingError):
            await recording.embed(["one", "refused", "two"], model="e")
        recording.tape.save()
    calls = embedder.calls
    async with embedding(tmp_path) as replaying:
        with pytest.raises(EmbeddingError) as caught:
            await replaying.embed(["one", "refused", "two"], model="e")
    assert [each is None for each in caught.value.vectors] == [False, True, False]
    assert embedder.calls == calls


async def test_without_a_recording_a_text_has_no_vector(tmp_path: Path) -> None:
    async with embedding(tmp_path) as replaying:
        with pytest.raises(
            Exception, match=r'^There is no recording it\.json to answer "one" to e; ask the real model'
        ):
            await replaying.embed(["one"], model="e")


@pytest.mark.parametrize("fields", [{}, {"vector": ""}, {"vector": "AAA="}, {"vector": "?"}], ids=str)
def test_a_vector_that_cannot_be_read_is_told(tmp_path: Path, fields: dict[str, str]) -> None:
    kept = {"deployment": "p/m", "model": "e", "text": "one", **fields}
    (tmp_path / "it.json").write_text(json.dumps({"test": "test_it", "vectors": [kept]}))
    with pytest.raises(ConfigurationError, match=r"^The recording .*: vectors\[0\].*Delete the file to record anew\.$"):
        load_recording(tmp_path / "it.json")
