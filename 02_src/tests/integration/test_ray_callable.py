"""AskGateway on the batches that Ray passes, without Ray; `make test-ray` runs it in the real one."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from docs.pages import ROOT, blocks_of, provider

from fakes.emulator import Call, Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway import ConfigurationError
from llm_gateway.integrations.ray import AskGateway

CANARY = "sk-canary-ray"
PAGE = ROOT / "00_docs/how-to/ray.md"
JOURNAL = Path("journal")


def answered(call: Call) -> Reply:
    return Reply(status=400) if "Refuse" in json.dumps(call.body) else provider(call)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with emulator_in_a_thread() as serving:
        serving.answer = answered
        yield serving


@pytest.fixture
def config(emulator: Emulator) -> dict[str, Any]:
    return {
        "logs": {"dir": str(JOURNAL)},
        "providers": {"openai": {"base_url": f"{emulator.url}/v1", "api_key": CANARY}},
        "models": {"free": {"provider": "openai", "model": "no-price-is-known"}},
    }


def objects(values: list[Any]) -> Any:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def test_each_row_of_a_batch_has_its_answer_or_its_error_and_no_cell_is_null(
    config: dict[str, Any], emulator: Emulator
) -> None:
    ask = AskGateway(config, model="gpt-4o-mini", prompt="What is a {thing}?", system="Be short.", prefix="llm_")
    batch = {"id": np.arange(3), "thing": objects(["queue", "Refuse", "stack"])}
    told = ask(batch)
    assert list(told) == ["id", "thing", "llm_answer", "llm_error", "llm_cost", "llm_tokens"]
    assert told["id"] is batch["id"]
    assert [text[:7] for text in told["llm_answer"]] == ["A line ", "", "A pile "]
    assert [text.partition(":")[0] for text in told["llm_error"]] == ["", "rejected", ""]
    assert [cost > 0 for cost in told["llm_cost"]] == [count > 0 for count in told["llm_tokens"]] == [True, False, True]
    assert {call.body["messages"][0]["content"] for call in emulator.ledger} == {"Be short."}
    assert ask({"id": np.arange(0), "thing": objects([])})["llm_answer"] == []
    ask.close()
    ask.close()
    lines = "".join(file.read_text() for file in JOURNAL.rglob("*.jsonl"))
    assert lines.count('"event":"shutdown"') == 1
    assert set(re.findall('"priority":"([a-z]+)"', lines)) == {"low"}
    assert CANARY not in lines
    assert CANARY not in str(told)


def test_conversations_and_whole_requests_come_as_lists_and_dicts_or_as_json(config: dict[str, Any]) -> None:
    talk = [{"role": "user", "content": "What is a queue?", "tool_calls": None}]  # Arrow fills what a row lacks
    ask = AskGateway(config, model="free", messages="talk")
    told = ask({"talk": objects([objects(talk), json.dumps(talk), "nonsense", 5])})
    assert [text[:6] for text in told["answer"]] == ["A line", "A line", "", ""]
    assert told["error"][2:] == [
        "invalid_request: talk: not JSON: invalid literal, expected 'null' at character 1.",
        "invalid_request: talk: expected a list of messages, found int.",
    ]
    assert math.isnan(told["cost"][0])
    ask.close()
    ask = AskGateway(config, request="asked", max_tokens=9)
    plain = {"model": "free", "messages": talk[:1], "temperature": 0.5, "max_tokens": None}
    told = ask({"asked": [plain, json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "a"}]}), {}]})
    assert told["answer"][0].startswith("A line")
    assert [text.partition(":")[0] for text in told["error"]] == ["", "unknown_model", "invalid_request"]
    ask.close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": "{a}", "messages": "a", "model": "free"}, "exactly one of 'prompt', 'messages' and 'request'"),
        ({"prompt": "{a}"}, "needs a 'model'"),
        ({"messages": "a", "system": "b", "model": "free"}, "'system' goes with 'prompt'"),
        ({"prompt": "{a}", "model": "nobody"}, "AskGateway: .*nobody"),
        ({"prompt": "{a", "model": "free"}, "The prompt template cannot be used"),
        ({"config": "missing.toml", "prompt": "{a}", "model": "free"}, "missing.toml cannot be read"),
    ],
    ids=["both", "no-model", "system", "unknown-model", "template", "file"],
)
def test_options_that_are_at_fault_are_one_sentence(
    config: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        AskGateway(**{"config": config, **options})


def test_what_is_wrong_with_all_rows_fails_the_dataset(config: dict[str, Any]) -> None:
    ask = AskGateway(config, model="free", messages="talk")
    for batch, sentence in [
        ({"other": ["a"]}, "The batch has no column 'talk'; it has other"),
        ({"talk": [], "answer": []}, "has a column 'answer' already; give AskGateway a prefix"),
        ([1, 2], "not a list"),
    ]:
        with pytest.raises(ConfigurationError, match=sentence):
            ask(batch)
    del config["providers"]
    Path("keyless.toml").write_text("logs = { dir = false }", encoding="utf-8")
    keyless = AskGateway("keyless.toml", model="gpt-4o-mini", prompt="{a}")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        keyless({"a": ["b"]})


def test_the_example_of_the_page_does_what_it_says_on_a_dataset_of_one_block(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{emulator.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)

    class Data(ModuleType):
        ActorPoolStrategy = dict

        def from_items(self, rows: list[dict[str, Any]]) -> Data:
            self.columns: dict[str, Any] = {name: objects([row[name] for row in rows]) for name in rows[0]}
            return self

        def map_batches(self, kind: Any, *, fn_constructor_kwargs: dict[str, Any], **_more: Any) -> Data:
            ask = kind(**fn_constructor_kwargs)
            self.columns = ask(self.columns)
            ask.close()
            return self

        def take_all(self) -> list[dict[str, Any]]:
            return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]

    ray = ModuleType("ray")
    vars(ray)["data"] = Data("ray.data")
    monkeypatch.setitem(sys.modules, "ray", ray)
    blocks = list(blocks_of(PAGE))
    example = next(block.text for block in blocks if block.title == "ask_with_ray.py")
    exec(compile(example, "ask_with_ray.py", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out == next(block.text for block in blocks if block.language == "text")
