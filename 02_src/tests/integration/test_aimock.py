from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fakes.aimock import Aimock, AimockError

FIXTURES: list[dict[str, Any]] = [
    {
        "match": {"userMessage": "capital"},
        "response": {
            "content": "Paris, of course.",
            "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
        },
    },
    {
        "match": {"userMessage": "weather", "hasToolResult": False},
        "response": {"toolCalls": [{"name": "look", "arguments": {"place": "Oslo"}}]},
    },
]
QUESTION = [{"role": "user", "content": "Name the capital of France."}]
OPENAI = {"model": "gpt-4o-mini", "messages": QUESTION}
ANTHROPIC = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": QUESTION}
OLLAMA = {"model": "llama3.2", "messages": QUESTION, "stream": False}


async def ask(aimock: Aimock, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(aimock.url + path, json=body) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_one_fixture_answers_on_all_three_apis_and_the_journal_has_each_request() -> None:
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        _, openai = await ask(aimock, "/v1/chat/completions", OPENAI)
        _, anthropic = await ask(aimock, "/v1/messages", ANTHROPIC)
        _, ollama = await ask(aimock, "/api/chat", OLLAMA)
        journal = await aimock.journal()
    assert openai["choices"][0]["message"]["content"] == "Paris, of course."
    assert openai["usage"]["total_tokens"] == 15
    assert anthropic["content"] == [{"type": "text", "text": "Paris, of course."}]
    assert anthropic["usage"] == {"input_tokens": 11, "output_tokens": 4}
    assert ollama["message"]["content"] == "Paris, of course."
    assert ollama["done_reason"] == "stop"
    assert [entry["path"] for entry in journal] == ["/v1/chat/completions", "/v1/messages", "/api/chat"]


async def test_a_fixture_can_ask_for_a_tool() -> None:
    body = OPENAI | {"messages": [{"role": "user", "content": "How is the weather?"}]}
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        _, answer = await ask(aimock, "/v1/chat/completions", body)
    function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert function == {"name": "look", "arguments": '{"place":"Oslo"}'}


async def test_a_request_that_no_fixture_matches_is_an_error() -> None:
    body = OPENAI | {"messages": [{"role": "user", "content": "Something else."}]}
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        status, answer = await ask(aimock, "/v1/chat/completions", body)
    assert status >= 400
    assert answer["error"]["code"] == "no_fixture_match"


async def test_chaos_comes_and_goes_while_the_server_runs() -> None:
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        await aimock.chaos(rate_limit=1.0)
        limited, _ = await ask(aimock, "/v1/chat/completions", OPENAI)
        await aimock.chaos(drop=1.0)
        dropped, _ = await ask(aimock, "/v1/chat/completions", OPENAI)
        await aimock.chaos(malformed=1.0)
        with pytest.raises(ValueError, match="Expecting property name"):
            await ask(aimock, "/v1/chat/completions", OPENAI)
        await aimock.chaos(disconnect=1.0)
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(aimock, "/v1/chat/completions", OPENAI)
        await aimock.chaos()
        healthy, _ = await ask(aimock, "/v1/chat/completions", OPENAI)
    assert (limited, dropped, healthy) == (429, 500, 200)


async def test_only_the_next_request_fails_after_fail_next() -> None:
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        await aimock.fail_next(503, "Try again later.", "overloaded")
        first, body = await ask(aimock, "/v1/chat/completions", OPENAI)
        second, _ = await ask(aimock, "/v1/chat/completions", OPENAI)
    assert (first, second) == (503, 200)
    assert body["error"]["message"] == "Try again later."


async def test_the_server_is_gone_when_the_block_is_left() -> None:
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        pass
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(aimock, "/v1/chat/completions", OPENAI)


async def test_a_missing_package_is_one_sentence_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(AimockError, match="@copilotkit/aimock is missing: run `npm ci` in"):
        async with Aimock.serve(fixtures=FIXTURES, home=tmp_path):
            pass


async def test_a_missing_node_is_one_sentence_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AimockError, match=r"need Node\.js 20\.15 or later"):
        async with Aimock.serve(fixtures=FIXTURES):
            pass


async def test_a_fixture_that_is_no_fixture_is_named_at_the_start() -> None:
    with pytest.raises(AimockError, match="ended before it listened"):
        async with Aimock.serve(fixtures=[{"match": {"userMessage": "x"}, "response": {"nonsense": 1}}]):
            pass
