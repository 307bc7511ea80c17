"""No key, and no text unless asked for, in anything that stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.emulator import Emulator, Reply
from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestRejectedError

KEY = "sk-canary-7f3a9c2e"
PROMPT = "the canary prompt 5150"
ANSWER = "the canary answer 8086"


async def journal_of(emulator: Emulator, *, text: bool) -> str:
    provider = {"base_url": f"{emulator.url}/v1", "api_key": KEY}
    repeats = f"Invalid prompt: '{PROMPT}' with key {KEY}"
    emulator.script(
        Reply(text=ANSWER),
        Reply(status=500, error={"message": repeats}),
        Reply(status=400, error={"message": repeats}),
    )
    async with LLMGateway(
        {"providers": {"openai": provider}, "logs": {"text": text}, "retry": {"base_delay": 0.0}}
    ) as gateway:
        request = LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content=PROMPT)])
        assert (await gateway.request(request)).content == ANSWER
        with pytest.raises(RequestRejectedError) as caught:
            await gateway.request(request)
        assert PROMPT in str(caught.value)  # the caller may know its own prompt
        assert KEY not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {gateway.get_stats()}"
        assert KEY not in repr(vars(gateway))
        assert PROMPT not in json.dumps(gateway.get_stats())
    return "".join(path.read_text() for path in Path("04_logs/gateway").iterdir())


async def test_the_journal_holds_no_key_and_no_text_of_prompt_or_answer(emulator: Emulator) -> None:
    journal = await journal_of(emulator, text=False)
    assert journal.count('"event":"error"') == 2
    assert "rejects the request (HTTP 400)" in journal
    for planted in (KEY, PROMPT, ANSWER):
        assert planted not in journal


async def test_texts_are_written_where_they_are_asked_for_and_keys_never(emulator: Emulator) -> None:
    journal = await journal_of(emulator, text=True)
    assert PROMPT in journal
    assert ANSWER in journal
    assert KEY not in journal
