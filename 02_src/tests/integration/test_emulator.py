import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fakes.emulator import Call, Emulator, Limits, Reply, ToolCall, Usage
from fakes.emulator.script import Fault

TESTS = Path(__file__).resolve().parent.parent
QUESTION = [{"role": "user", "content": "Hello?"}]
CHATS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": QUESTION}),
    "anthropic": ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": QUESTION}),
    "ollama": ("/api/chat", {"model": "llama3.2", "messages": QUESTION}),
}
MODES = [(api, stream) for api in CHATS for stream in (False, True)]
TOOL = ToolCall(name="look", args={"place": "Oslo"})
USAGE = Usage(input=100, output=20, cache_read=40, cache_write=10, cache_write_1h=5, reasoning=7)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Answer:
    """What came back: status, headers and the body in several readings."""

    def __init__(self, response: aiohttp.ClientResponse, raw: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.raw = raw

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.raw.splitlines()]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, the closing [DONE] left out."""
        data = [line.removeprefix(b"data: ") for line in self.raw.splitlines() if line.startswith(b"data: ")]
        return [json.loads(line) for line in data if line != b"[DONE]"]


class Client:
    """Calls the emulator as a program would that knows only HTTP."""

    def __init__(self, emulator: Emulator, session: aiohttp.ClientSession) -> None:
        self._emulator = emulator
        self._session = session

    async def ask(
        self, api: str = "openai", *, stream: bool = False, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        path, body = CHATS[api]
        async with self._session.post(
            self._emulator.url + path, json=body | {"stream": stream} | more, headers=headers
        ) as response:
            return Answer(response, await response.read())

    @asynccontextmanager
    async def start(self, api: str, *, stream: bool) -> AsyncIterator[aiohttp.ClientResponse]:
        """Enter as soon as the headers are there, the body unread."""
        path, body = CHATS[api]
        async with self._session.post(self._emulator.url + path, json=body | {"stream": stream}) as response:
            yield response

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        async with self._session.get(self._emulator.url + path, headers=headers) as response:
            return Answer(response, await response.read())


@pytest.fixture
def client(emulator: Emulator, session: aiohttp.ClientSession) -> Client:
    return Client(emulator, session)


# What is answered


async def test_openai_answers_a_completion_with_its_usage(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="Hi.", usage=USAGE))
    answer = await client.ask("openai")
    choice = answer.body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hi.", "stop")
    usage = answer.body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (100, 20, 120)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 40
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 7
    assert answer.headers["x-request-id"].startswith("req_")


async def test_anthropic_answers_a_message_whose_cached_tokens_are_no_input_tokens(
    emulator: Emulator, client: Client
) -> None:
    emulator.script(Reply(text="Hi.", usage=USAGE))
    answer = await client.ask("anthropic")
    assert answer.body["content"] == [{"type": "text", "text": "Hi."}]
    assert answer.body["stop_reason"] == "end_turn"
    usage = answer.body["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (45, 20)
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (40, 15)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 5}
    assert answer.headers["request-id"].startswith("req_")


async def test_ollama_answers_in_one_object_with_its_counts(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="Hi.", usage=USAGE))
    body = (await client.ask("ollama")).body
    assert body["message"] == {"role": "assistant", "content": "Hi."}
    assert (body["done"], body["done_reason"]) == (True, "stop")
    assert (body["prompt_eval_count"], body["eval_count"]) == (100, 20)


async def test_usage_is_estimated_from_the_lengths_of_the_texts(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="four" * 10), Reply(text="four" * 10, usage={"input": 7}))
    estimated = (await client.ask()).body["usage"]
    partly = (await client.ask()).body["usage"]
    assert estimated["completion_tokens"] == partly["completion_tokens"] == 10
    assert estimated["prompt_tokens"] > 1
    assert partly["prompt_tokens"] == 7


async def test_openai_streams_chunks_and_usage_only_where_it_was_asked_for(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="one two three", usage=USAGE), Reply(text="one two three", usage=USAGE))
    bare = await client.ask("openai", stream=True)
    full = await client.ask("openai", stream=True, stream_options={"include_usage": True})
    assert bare.headers["content-type"].startswith("text/event-stream")
    assert bare.raw.endswith(b"data: [DONE]\n\n")
    texts = [event["choices"][0]["delta"].get("content", "") for event in bare.events]
    assert texts == ["", "one", " two", " three", ""]
    assert bare.events[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in event for event in bare.events)
    assert full.events[-1]["choices"] == []
    assert full.events[-1]["usage"]["total_tokens"] == 120


async def test_anthropic_streams_from_message_start_to_message_stop(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="one two", tool_calls=(TOOL,), usage=USAGE))
    events = (await client.ask("anthropic", stream=True)).events
    start, *middle, delta, stop = events
    assert (start["type"], stop["type"]) == ("message_start", "message_stop")
    assert start["message"]["usage"]["cache_creation"]["ephemeral_1h_input_tokens"] == 5
    assert delta["delta"]["stop_reason"] == "tool_use"
    assert delta["usage"]["output_tokens"] == 20
    deltas = [event["delta"] for event in middle if event["type"] == "content_block_delta"]
    assert "".join(item.get("text", "") for item in deltas) == "one two"
    assert json.loads("".join(item.get("partial_json", "") for item in deltas)) == {"place": "Oslo"}


async def test_ollama_streams_lines_and_does_so_unless_told_otherwise(
    emulator: Emulator, session: aiohttp.ClientSession
) -> None:
    emulator.script(Reply(text="one two", usage=USAGE))
    path, body = CHATS["ollama"]
    async with session.post(emulator.url + path, json=body) as response:
        answer = Answer(response, await response.read())
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [line["message"]["content"] for line in answer.lines] == ["one", " two", ""]
    assert [line["done"] for line in answer.lines] == [False, False, True]
    assert answer.lines[-1]["eval_count"] == 20


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_in_the_form_of_each_api(emulator: Emulator, client: Client, *, stream: bool) -> None:
    emulator.default = Reply(text="", tool_calls=(TOOL | {"id": "call_1"},))
    openai = await client.ask("openai", stream=stream)
    anthropic = await client.ask("anthropic", stream=stream)
    ollama = await client.ask("ollama", stream=stream)
    if stream:
        first, second = (event["choices"][0]["delta"]["tool_calls"][0] for event in openai.events[1:3])
        called = first | {"function": first["function"] | second["function"]}
        block = anthropic.events[1]["content_block"]
    else:
        called = openai.body["choices"][0]["message"]["tool_calls"][0]
        block = anthropic.body["content"][0]
    assert (called["id"], called["type"]) == ("call_1", "function")
    assert called["function"] == {"name": "look", "arguments": '{"place":"Oslo"}'}
    assert (block["type"], block["id"], block["name"]) == ("tool_use", "call_1", "look")
    message = ollama.lines[0]["message"]
    assert message["tool_calls"][0]["function"] == {"index": 0, "name": "look", "arguments": {"place": "Oslo"}}


async def test_broken_tool_arguments_are_sent_as_they_stand(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(text="", tool_calls=(ToolCall(name="look", args='{"place": '),)))
    message = (await client.ask()).body["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["arguments"] == '{"place": '


@pytest.mark.parametrize(("api", "where"), [("openai", "choices"), ("anthropic", "stop_reason")])
async def test_a_finish_reason_is_the_word_that_was_given(
    emulator: Emulator, client: Client, api: str, where: str
) -> None:
    emulator.script(Reply(finish_reason="cut_short"))
    said = (await client.ask(api)).body[where]
    assert (said[0]["finish_reason"] if api == "openai" else said) == "cut_short"


async def test_models_are_listed_for_each_api(emulator: Emulator, client: Client) -> None:
    openai = (await client.get("/v1/models")).body
    anthropic = (await client.get("/v1/models", {"anthropic-version": "2023-06-01"})).body
    ollama = (await client.get("/api/tags")).body
    assert openai["object"] == "list"
    assert anthropic["has_more"] is False
    assert {row["id"] for row in openai["data"]} == {row["name"] for row in ollama["models"]}
    assert [call.api for call in emulator.ledger] == ["openai", "anthropic", "ollama"]


# Who decides what is answered


async def test_scripted_replies_come_in_order_and_then_the_default(emulator: Emulator, client: Client) -> None:
    emulator.default = Reply(text="default")
    emulator.script(Reply(text="first"))
    emulator.script(Reply(text="second"))
    texts = [(await client.ask()).body["choices"][0]["message"]["content"] for _ in range(3)]
    assert texts == ["first", "second", "default"]


async def test_a_callable_is_asked_before_the_script_and_may_pass(emulator: Emulator, client: Client) -> None:
    emulator.answer = lambda call: Reply(text="for claude") if call.model.startswith("claude") else None
    emulator.script(Reply(text="scripted"))
    anthropic = (await client.ask("anthropic")).body["content"][0]["text"]
    openai = (await client.ask("openai")).body["choices"][0]["message"]["content"]
    assert (anthropic, openai) == ("for claude", "scripted")


async def test_the_ledger_tells_what_was_asked_and_what_was_sent(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(), Reply(status=503))
    await client.ask("openai", headers={"X-Trace": "t1"}, temperature=0.5)
    await client.ask("anthropic")
    await emulator.settled()
    first, second = emulator.ledger
    assert (first.number, first.api, first.path, first.status) == (1, "openai", "/v1/chat/completions", 200)
    assert first.headers["x-trace"] == "t1"
    assert first.body["temperature"] == 0.5
    assert (first.finished, first.disconnected) == (True, False)
    assert (second.api, second.status, second.finished) == ("anthropic", 503, True)
    assert second.at >= first.at


async def test_a_reply_with_headers_adds_and_replaces(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(headers={"x-request-id": "mine", "x-extra": "1"}))
    headers = (await client.ask()).headers
    assert (headers["x-request-id"], headers["x-extra"]) == ("mine", "1")


async def test_a_key_that_is_not_the_checked_one_is_refused(emulator: Emulator, client: Client) -> None:
    emulator.check_key("sk-right")
    wrong = await client.ask("openai", headers={"authorization": "Bearer sk-wrong"})
    none = await client.ask("anthropic")
    bearer = await client.ask("ollama", headers={"authorization": "Bearer sk-right"})
    header = await client.ask("anthropic", headers={"x-api-key": "sk-right"})
    assert (wrong.status, none.status, bearer.status, header.status) == (401, 401, 200, 200)
    assert wrong.body["error"]["code"] == "invalid_api_key"
    assert none.body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("api", CHATS)
async def test_a_call_without_its_model_is_told_which_field_is_missing(
    emulator: Emulator, session: aiohttp.ClientSession, api: str
) -> None:
    path, body = CHATS[api]
    rest = {name: value for name, value in body.items() if name != "model"}
    async with session.post(emulator.url + path, json=rest) as response:
        assert response.status == 400
        assert "model: Field required" in await response.text()


async def test_broken_json_and_unknown_paths_are_refused(emulator: Emulator, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{emulator.url}/v1/messages", data=b'{"model":') as response:
        assert response.status == 400
    async with session.post(f"{emulator.url}/v1/responses", json={}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["message"] == "Invalid URL (POST /v1/responses)"
    async with session.post(f"{emulator.url}/api/generate", json={}) as response:
        assert (await response.json())["error"] == "Invalid URL (POST /api/generate)"
    assert [call.body for call in emulator.ledger] == [None, {}, {}]


# Errors and faults


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "invalid_request_error", "authentication_error"),
        (403, "request_forbidden", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (409, "invalid_request_error", "invalid_request_error"),
        (429, "requests", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (529, "server_error", "overloaded_error"),
    ],
)
async def test_an_error_status_has_the_body_that_the_provider_sends(
    emulator: Emulator, client: Client, status: int, openai: str, anthropic: str
) -> None:
    emulator.default = Reply(status=status)
    answers = [await client.ask(api) for api in CHATS]
    assert [answer.status for answer in answers] == [status] * 3
    assert answers[0].body["error"]["type"] == openai
    assert answers[1].body["error"]["type"] == anthropic
    assert answers[1].body["request_id"] == answers[1].headers["request-id"]
    assert isinstance(answers[2].body["error"], str)


async def test_an_error_body_of_ones_own_is_sent_as_it_stands(emulator: Emulator, client: Client) -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    emulator.script(Reply(status=429, error=body, headers={"retry-after": "20"}))
    answer = await client.ask(stream=True)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, body, "20")


def test_a_reply_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an error status"):
        Reply(error={"error": "x"})
    with pytest.raises(ValueError, match="comes with status 200"):
        Reply(status=500, fault="html")


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_reset_sends_a_rst_and_not_one_byte(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(fault="reset"))
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await client.ask(api, stream=stream)
    await emulator.settled()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert (emulator.ledger[0].status, emulator.ledger[0].finished) == (0, False)


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_cut_body_sends_the_headers_and_half_of_the_rest(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(text="one two three four", fault="cut_body"))
    async with client.start(api, stream=stream) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await emulator.settled()
    assert response.status == 200
    assert not emulator.ledger[0].finished


@pytest.mark.parametrize("api", CHATS)
async def test_a_stream_that_stalls_has_carried_some_text(emulator: Emulator, client: Client, api: str) -> None:
    emulator.script(Reply(text="one two three four", fault="stall"))
    seen = b""
    async with client.start(api, stream=True) as response:
        while b"two" not in seen:
            seen += await response.content.readany()
        response.close()
    assert b"four" not in seen


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_stall_sends_a_part_and_then_nothing_until_the_client_leaves(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(fault="stall"))
    async with client.start(api, stream=stream) as response:
        assert await response.content.readany()
        assert not emulator.ledger[0].ended
        response.close()
    await emulator.settled()
    assert (emulator.ledger[0].finished, emulator.ledger[0].disconnected) == (False, True)


@pytest.mark.parametrize("latency", [0.0, 600.0])
async def test_leaving_the_block_ends_a_call_that_is_still_held(session: aiohttp.ClientSession, latency: float) -> None:
    async with Emulator.serve() as emulator:
        emulator.default = Reply(latency=latency, fault=None if latency else "stall")
        task = asyncio.create_task(Client(emulator, session).ask())
        await emulator.arrived(1)
    with pytest.raises(aiohttp.ClientError):
        await task
    assert emulator.ledger[0].ended
    assert not emulator.ledger[0].disconnected


async def test_a_client_that_leaves_during_the_latency_is_in_the_ledger(emulator: Emulator, client: Client) -> None:
    emulator.script(Reply(latency=600.0))
    task = asyncio.create_task(client.ask())
    await emulator.arrived(1)
    task.cancel()
    await emulator.settled()
    assert emulator.ledger[0].disconnected
    assert emulator.ledger[0].status == 0


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_html_and_an_empty_object_come_with_status_200(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(fault="html"), Reply(fault="empty_object"))
    page = await client.ask(api, stream=stream)
    empty = await client.ask(api, stream=stream)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.raw.startswith(b"<!DOCTYPE html>")
    assert (empty.status, empty.body) == (200, {})


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_bad_json_arrives_whole_and_does_not_parse(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(fault="bad_json"))
    answer = await client.ask(api, stream=stream)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        assert (answer.events if b"data: " in answer.raw else answer.lines) is None


@pytest.mark.parametrize(("api", "stream"), MODES)
async def test_no_finish_sends_the_whole_text_without_a_reason_to_end(
    emulator: Emulator, client: Client, api: str, *, stream: bool
) -> None:
    emulator.script(Reply(text="alpha beta", fault="no_finish"))
    answer = await client.ask(api, stream=stream)
    assert b"alpha" in answer.raw
    assert b"beta" in answer.raw
    for word in (b'"stop"', b'"end_turn"', b"message_stop", b"[DONE]", b'"done":true', b"done_reason"):
        assert word not in answer.raw


@pytest.mark.parametrize("api", CHATS)
async def test_error_event_ends_a_stream_that_had_begun(emulator: Emulator, client: Client, api: str) -> None:
    emulator.script(Reply(text="alpha beta", fault="error_event"))
    answer = await client.ask(api, stream=True)
    assert answer.status == 200
    assert b"alpha" in answer.raw
    last = (answer.lines if api == "ollama" else answer.events)[-1]
    assert "error" in last


async def test_an_error_event_can_carry_a_body_of_ones_own(emulator: Emulator, client: Client) -> None:
    overloaded = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    emulator.script(Reply(fault="error_event", error=overloaded), Reply(fault="error_event", error=overloaded))
    stream = await client.ask("anthropic", stream=True)
    unary = await client.ask("anthropic")
    assert stream.raw.split(b"event: ")[-1].startswith(b"error\n")
    assert stream.events[-1] == overloaded
    assert (unary.status, unary.body) == (200, overloaded)


@pytest.mark.parametrize("fault", ["cut_body", "stall"])
async def test_an_error_answer_can_break_off_too(emulator: Emulator, client: Client, fault: Fault) -> None:
    emulator.script(Reply(status=500, fault=fault))
    async with client.start("openai", stream=False) as response:
        assert response.status == 500
        response.close()
    await emulator.settled()
    assert not emulator.ledger[0].finished


# Limits


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


async def test_requests_beyond_the_burst_get_429_with_the_hint_that_holds(session: aiohttp.ClientSession) -> None:
    clock = Clock()
    async with Emulator.serve(limits=Limits(rpm=120), clock=clock) as emulator:  # 2 at once, one each half second
        client = Client(emulator, session)
        statuses = [(await client.ask()).status for _ in range(2)]
        refused = await client.ask()
        clock.seconds += 0.49
        early = await client.ask()
        clock.seconds += 0.02
        after = await client.ask()
    assert statuses == [200, 200]
    assert (refused.status, early.status, after.status) == (429, 429, 200)
    assert (refused.headers["retry-after-ms"], refused.headers["retry-after"]) == ("500", "1")
    assert refused.headers["x-ratelimit-limit-requests"] == "120"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "1s"
    assert refused.body["error"]["code"] == "rate_limit_exceeded"
    assert "Please try again in 500ms." in refused.body["error"]["message"]
    assert [call.status for call in emulator.ledger] == [200, 200, 429, 429, 200]


async def test_a_minute_of_hammering_admits_the_burst_and_the_rate(session: aiohttp.ClientSession) -> None:
    clock = Clock()
    async with Emulator.serve(limits=Limits(rpm=60, burst_seconds=5.0), clock=clock) as emulator:
        client = Client(emulator, session)
        for _ in range(300):
            await client.ask()
            clock.seconds += 0.2
    admitted = sum(call.status == 200 for call in emulator.ledger)
    assert 64 <= admitted <= 65


async def test_each_api_has_a_quota_of_its_own(session: aiohttp.ClientSession) -> None:
    async with Emulator.serve(limits=Limits(rpm=60), clock=Clock()) as emulator:
        client = Client(emulator, session)
        first = [(await client.ask(api)).status for api in CHATS]
        second = [(await client.ask(api)).status for api in CHATS]
    assert (first, second) == ([200, 200, 200], [429, 429, 429])


async def test_openai_charges_max_tokens_at_admission(session: aiohttp.ClientSession) -> None:
    clock = Clock()
    async with Emulator.serve(limits=Limits(tpm=60_000), clock=clock) as emulator:  # 1000 at once
        client = Client(emulator, session)
        await client.ask(max_tokens=700)
        refused = await client.ask(max_completion_tokens=700)
        clock.seconds += 0.5
        admitted = await client.ask(max_tokens=700)
    assert refused.status == 429
    assert refused.body["error"]["type"] == "tokens"
    assert refused.headers["retry-after-ms"] == "400"
    assert admitted.status == 200
    assert admitted.headers["x-ratelimit-remaining-tokens"] == "100"
    assert admitted.headers["x-ratelimit-reset-tokens"] == "900ms"


@pytest.mark.parametrize("api", CHATS)
async def test_a_request_larger_than_the_quota_is_refused_without_a_hint(
    session: aiohttp.ClientSession, api: str
) -> None:
    async with Emulator.serve(limits=Limits(tpm=50), clock=Clock()) as emulator:
        answer = await Client(emulator, session).ask(api, messages=[{"role": "user", "content": "x" * 1000}])
    assert answer.status == 429
    assert "retry-after" not in answer.headers
    assert any(words in answer.raw for words in (b"Request too large", b"This request alone", b"larger than"))


async def test_anthropic_charges_output_as_it_was_produced(session: aiohttp.ClientSession) -> None:
    clock = Clock()
    async with Emulator.serve(limits=Limits(output_tpm=60_000, rpm=6000), clock=clock) as emulator:
        client = Client(emulator, session)
        emulator.script(Reply(usage={"output": 3000}))  # three seconds' worth out of a bucket that holds one
        first = await client.ask("anthropic", max_tokens=100_000)
        clock.seconds += 1.9
        refused = await client.ask("anthropic")
        clock.seconds += 0.2
        admitted = await client.ask("anthropic")
    assert (first.status, refused.status, admitted.status) == (200, 429, 200)
    assert first.headers["anthropic-ratelimit-output-tokens-remaining"] == "0"


async def test_anthropic_gives_back_cached_input(session: aiohttp.ClientSession) -> None:
    async with Emulator.serve(limits=Limits(input_tpm=600_000), clock=Clock()) as emulator:
        emulator.script(Reply(usage={"input": 5000, "cache_read": 5000}))
        answer = await Client(emulator, session).ask("anthropic")
    assert answer.headers["anthropic-ratelimit-input-tokens-limit"] == "600000"
    assert answer.headers["anthropic-ratelimit-input-tokens-remaining"] == "10000"


async def test_anthropic_tells_its_limits_as_instants_and_rounded_tokens(session: aiohttp.ClientSession) -> None:
    async with Emulator.serve(limits=Limits(rpm=60, tpm=120_000, burst_seconds=30), clock=Clock()) as emulator:
        client = Client(emulator, session)
        emulator.script(Reply(usage={"input": 500, "output": 9500}))
        before = datetime.now(UTC).replace(microsecond=0)
        headers = (await client.ask("anthropic")).headers
        after = datetime.now(UTC)
        for _ in range(29):
            await client.ask("anthropic")
        refused = await client.ask("anthropic")
    assert headers["anthropic-ratelimit-tokens-remaining"] == "50000"
    assert headers["anthropic-ratelimit-requests-remaining"] == "29"
    reset = datetime.fromisoformat(headers["anthropic-ratelimit-tokens-reset"])
    assert before + timedelta(seconds=5) <= reset <= after + timedelta(seconds=5)  # 10 000 at 2000 a second
    assert refused.status == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert "60 requests per minute" in refused.body["error"]["message"]


async def test_a_failed_call_costs_its_admission_and_no_more(session: aiohttp.ClientSession) -> None:
    async with Emulator.serve(limits=Limits(rpm=60, output_tpm=6000), clock=Clock()) as emulator:
        emulator.script(Reply(status=500, usage={"output": 50}))
        client = Client(emulator, session)
        failed, second = await client.ask("anthropic"), await client.ask("anthropic")
    assert (failed.status, second.status) == (500, 429)
    assert failed.headers["anthropic-ratelimit-output-tokens-remaining"] == "0"


# The process


async def test_without_a_record_plain_answers_follow_the_default(session: aiohttp.ClientSession) -> None:
    async with Emulator.serve(record=False) as emulator:
        client = Client(emulator, session)
        emulator.default = Reply(text="one")
        first = await client.ask()
        again = await client.ask(model="another")
        stream = await client.ask("ollama", stream=True)
        emulator.default = Reply(text="two")
        changed = await client.ask()
        emulator.script(Reply(status=500))
        scripted = await client.ask()
        missing = await client.get("/nowhere")
    assert first.body["choices"][0]["message"]["content"] == "one"
    assert again.body["model"] == "another"
    assert stream.lines[0]["message"]["content"] == "one"
    assert changed.body["choices"][0]["message"]["content"] == "two"
    assert (scripted.status, missing.status) == (500, 404)
    assert emulator.ledger == []


async def test_the_process_says_where_it_listens_and_ends_well_on_sigterm(session: aiohttp.ClientSession) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fakes.emulator", "--port", "0", "--latency", "0.01"),
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http://127.0.0.1:")
        path, body = CHATS["openai"]
        async with session.post(line.split()[-1] + path, json=body) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_call_reads_its_key_from_either_header() -> None:
    call = Call(number=1, api="openai", path="/", headers={"authorization": "Bearer sk-a"}, body=None, at=math.inf)
    assert (call.key, call.model, call.streams) == ("sk-a", "", False)
