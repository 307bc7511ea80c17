"""`llm-gateway simulate`, in this process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llm_gateway import LLMMessage, LLMRequest, MockLLMGateway
from llm_gateway.cli.app import app

CANARY = "sk-canary-4712"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments], prog_name="llm-gateway", catch_exceptions=False)


def write(*lines: object, name: str = "t.jsonl") -> None:
    Path(name).write_text("".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines))


def every(seconds: float, number: int, **given: Any) -> list[dict[str, Any]]:
    sizes = {"model": "gpt-4o-mini", "input_tokens": 100, "output_tokens": 20, "max_tokens": 50}
    return [{"at": seconds * place, **sizes, **given} for place in range(number)]


def test_a_trace_under_a_limit_is_told_in_tables() -> None:
    write(*every(0.5, 100))
    done = command("t.jsonl", "--limits", "rpm=60,tpm=1_000_000")
    assert done.exit_code == 0, done.stderr
    assert "100 requests in 49.5 s" in done.stdout
    assert "rpm of model 'gpt-4o-mini'" in done.stdout
    assert done.stderr.startswith("simulated 1 min ")


def test_figures_for_programs_are_json_and_nothing_else() -> None:
    write(*every(0.5, 100))
    done = command("t.jsonl", "-l", "rpm=60", "--json", "--load", "2", "--seed", "3")
    told = json.loads(done.stdout)
    assert told["binding"] == {"owner": "model 'gpt-4o-mini'", "key": "rpm"}
    assert told["trace_duration"] == 24.75


def test_the_limits_of_a_configuration_hold_and_its_key_is_told_nowhere() -> None:
    Path("c.toml").write_text(
        f'[providers.openai]\napi_key = "{CANARY}"\n[models.gpt-4o-mini]\nlimits = {{ rpm = 30 }}\n'
    )
    write(*({**line, "model": None} for line in every(0.5, 60)))
    done = command("t.jsonl", "-c", "c.toml", "--html", "page.html")
    assert done.exit_code == 0, done.stderr
    assert "30 a minute" in done.stdout
    assert "Page: page.html" in done.stdout
    assert CANARY not in done.output + Path("page.html").read_text()


def test_malformed_lines_are_told_by_number_and_the_rest_is_simulated() -> None:
    write({"at": 0, "model": "gpt-5000"}, "nonsense\n", *every(1.0, 5), *(["{}\n"] * 12))
    done = command("t.jsonl")
    assert done.exit_code == 1
    assert "t.jsonl, line 1: model: 'gpt-5000' is not configured; " in done.stderr
    assert "t.jsonl, line 2: not JSON: " in done.stderr
    assert "4 more lines are malformed." in done.stderr
    assert "5 requests" in done.stdout


def test_a_journal_serves_as_a_trace_by_its_folder_and_by_its_file() -> None:
    async def fill() -> None:
        async with MockLLMGateway({"logs": {"dir": "journal"}}) as gateway:
            question = [LLMMessage(role="user", content="What is a queue?")]
            await gateway.batch([LLMRequest(model="claude-haiku", messages=question) for _ in range(7)])

    asyncio.run(fill())
    by_folder = command("journal", "--json")
    assert json.loads(by_folder.stdout)["answered"] == 7
    file = str(next(Path("journal").glob("*.jsonl")))
    assert json.loads(command(file, file, "--json", "-m", "gpt-4o-mini").stdout)["requests"] == 14


def test_the_input_of_run_serves_as_a_trace_that_comes_all_at_once() -> None:
    rows = [{"prompt": "What is a queue?", "max_tokens": 20} for _ in range(30)]
    row = {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}}
    write(*rows, row, {"prompt": 5})
    done = command("t.jsonl", "-m", "gpt-4o-mini", "-l", "rpm=60", "--json")
    told = json.loads(done.stdout)
    assert told["answered"] == 31
    assert told["trace_duration"] == 0.0
    assert set(told["wait"]) == {"low"}
    assert "line 32: prompt: expected a text" in done.stderr


def test_standard_input_is_a_trace_too(warm: Path) -> None:
    words = [str(warm / "llm-gateway"), "simulate", "-", "--latency", "1,2", "--speed", "100", "--json"]
    trace = '{"at": 0, "model": "claude-haiku"}\n'
    printed = subprocess.run(words, input=trace, capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert json.loads(printed)["answered"] == 1


def test_a_trouble_shows_in_the_errors() -> None:
    write(*every(1.0, 20))
    done = command("t.jsonl", "--trouble", "overloaded:5-10:1", "--trouble", "slow:0-3", "--latency", "0.2")
    assert done.exit_code == 0
    assert "overloaded" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--limits", "rpm"), "--limits: 'rpm' is no limit; write them as rpm=500,tpm=200000."),
        (("--limits", "rps=5"), "--limits: rps: unknown; did you mean 'rp"),
        (("--limits", "rpm=0"), "--limits: rpm: "),
        (("--latency", "fast"), "--latency: 'fast' is no latency; give seconds as 0.8, or "),
        (("--latency", "2,1"), "--latency: '2,1' is no latency; "),
        (("--trouble", "slow"), "--trouble: 'slow' is no trouble; write KIND:START-END"),
        (("--trouble", "flood:1-2"), "--trouble: 'flood' is no trouble; known are rate_limit, "),
        (("--model", "gpt-5000"), "--model: 'gpt-5000' is not configured; "),
        (("--html", "none/page.html"), "The page none/page.html cannot be written: No such file or directory."),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else None,
)
def test_what_is_wrong_with_an_option_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    write(*every(1.0, 2))
    done = command("t.jsonl", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"llm-gateway: {sentence}")
    assert done.stdout == ""


def test_files_that_hold_no_traffic_are_one_sentence_each() -> None:
    Path("empty").mkdir()
    write("\n")
    for name, words in (
        ("none.jsonl", "The input none.jsonl cannot be read: No such file or directory."),
        ("empty", "There is no journal in empty; give a trace, or a journal's file or folder."),
        ("t.jsonl", "There is no request in t.jsonl; give a trace or a journal."),
    ):
        done = command(name)
        assert (done.exit_code, done.stderr) == (2, f"llm-gateway: {words}\n")


def test_importing_the_simulation_costs_no_langchain_and_no_plotly() -> None:
    heavy = "langchain_core openai anthropic plotly rich"
    code = f"import llm_gateway.simulation, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert printed.strip() == "[]"
