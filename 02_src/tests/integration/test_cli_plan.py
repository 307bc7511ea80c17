"""`llm-gateway plan`, in this process; its samples ask a provider on loopback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Call, Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway.cli.app import app

CANARY = "sk-canary-4712"


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        emulator.answer = answer
        Path("llm-gateway.toml").write_text(
            f"""
            [providers.openai]
            base_url = "{emulator.url}/v1"
            api_key = "{CANARY}"
            [models.gpt-4o-mini]
            max_concurrency = 4
            max_tokens = 60
            [retry]
            max_attempts = 1
            """
        )
        yield emulator


def answer(call: Call) -> Reply:
    """Answer with a length that depends on the row, 10 to 49 tokens."""
    row = int(call.body["messages"][-1]["content"].rpartition(" ")[2])
    return Reply(usage={"input": 20, "output": 10 + row * 7 % 40})


def command(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments, prog_name="llm-gateway", catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def planned(*arguments: str, code: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(command("plan", *arguments, "--json", code=code).stdout)
    return told


def write_rows(count: int, name: str = "in.jsonl", **fields: Any) -> None:
    rows = [{"prompt": f"row {number}", **fields} for number in range(1, count + 1)]
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_without_a_sample_nothing_is_sent_and_no_key_is_needed() -> None:
    write_rows(3, model="claude-haiku")
    done = command("plan", "in.jsonl")
    assert "Rows      3: 3 to ask" in done.stdout
    assert "Answers   none known: lengths from max_tokens and a prior" in done.stdout
    assert "batch" in done.stdout
    assert "not there for claude-haiku" in done.stdout
    assert "\x1b" not in done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl"]


def test_a_sample_is_asked_once_and_the_run_asks_the_rest(provider: Emulator) -> None:
    write_rows(60)
    told = planned("in.jsonl", "-o", "out.jsonl", "--sample", "20")
    assert len(provider.ledger) == 20
    assert told["sample"] == {**told["sample"], "asked": 20, "answered": 20, "kept": True}
    assert (told["ended"], told["to_ask"], told["basis"]) == (20, 40, "sample")
    again = planned("in.jsonl", "-o", "out.jsonl", "--sample", "20")
    assert (len(provider.ledger), again["basis"], again["answers"]) == (20, "job", 20)
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert len(provider.ledger) == 60
    assert len({call.body["messages"][-1]["content"] for call in provider.ledger}) == 60
    assert "answered  60" in done.stderr
    assert len({json.loads(line)["line"] for line in Path("out.jsonl").read_text().splitlines()}) == 60
    over = planned("in.jsonl", "-o", "out.jsonl")
    assert (over["ended"], over["to_ask"]) == (60, 0)
    assert CANARY not in done.output + json.dumps(told)


def test_a_run_costs_what_its_plan_said(provider: Emulator) -> None:
    write_rows(120)
    told = planned("in.jsonl", "-o", "out.jsonl", "--sample", "40")
    cost = told["lanes"][0]["cost_usd"]
    command("run", "in.jsonl", "-o", "out.jsonl")
    results = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    whole = sum(each["response"]["receipt"]["cost_usd"] for each in results)
    assert cost["p5"] <= whole - told["sample"]["cost_usd"] <= cost["p95"]
    assert len(provider.ledger) == 120


def test_a_sample_without_an_output_is_told_and_not_kept(provider: Emulator) -> None:
    write_rows(10)
    done = command("plan", "in.jsonl", "--sample", "5", "--budget", "0.00001")
    assert "lengths from 5 answers of a sample (5 of 5 now" in done.stdout
    assert "kept" not in done.stdout
    assert "Budget    $0.0000100 reaches" in done.stdout
    assert len(provider.ledger) == 5
    assert not list(Path().glob("*.job"))


def test_what_a_sample_met_is_told_and_left_to_the_run(provider: Emulator) -> None:
    write_rows(8)
    provider.answer = lambda _call: Reply(status=400)
    done = command("plan", "in.jsonl", "-o", "out.jsonl", "--sample", "4", code=1)
    assert "The sample met rejected:" in done.stderr
    provider.answer = answer
    told = planned("in.jsonl", "-o", "out.jsonl", "--sample", "4")
    assert any("the job has begun" in note for note in told["notes"])
    command("run", "in.jsonl", "-o", "out.jsonl")
    assert len(provider.ledger) == 4 + 8


def test_a_plan_for_another_input_than_the_jobs_is_refused(provider: Emulator) -> None:
    write_rows(4)
    planned("in.jsonl", "-o", "out.jsonl", "--sample", "1")
    write_rows(5)
    done = command("plan", "in.jsonl", "-o", "out.jsonl", code=2)
    assert "is not what it was when the job out.jsonl.job began" in done.stderr
    assert len(provider.ledger) == 1


def test_every_input_of_a_run_can_be_planned() -> None:
    write_rows(3)
    Path("in.jsonl.gz").write_bytes(gzip.compress(Path("in.jsonl").read_bytes()))
    Path("in.csv").write_text("text\none\ntwo\n")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    Path("batch.jsonl").write_text(json.dumps(line))
    assert planned("in.jsonl.gz", "-m", "gpt-4o-mini")["rows"] == 3
    assert planned("in.csv", "-m", "gpt-4o-mini", "--prompt-template", "Sort: {text}")["rows"] == 2
    assert planned("batch.jsonl")["rows"] == 1


def test_malformed_lines_are_told_by_their_number_and_the_rest_is_planned() -> None:
    lines = ['{"prompt": "a", "request_id": "x"}', "rubbish", '{"prompt": 3}', '{"prompt": "b", "request_id": "x"}']
    Path("in.jsonl").write_text("\n".join([*lines, *["{}"] * 12]))
    done = command("plan", "in.jsonl", "-m", "gpt-4o-mini", code=1)
    assert "line 2: not JSON" in done.stderr
    assert "line 3: " in done.stderr
    assert "line 4: the id 'x' stands on an earlier line too; give each line its own." in done.stderr
    assert "More lines are malformed" in done.stderr
    assert "Rows      16: 1 to ask, 15 malformed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.jsonl"], "The input nothing.jsonl cannot be read"),
        (["in.jsonl", "-m", "gpt-4o-mni"], "--model: 'gpt-4o-mni' is not configured; did you mean 'gpt-4o-mini'?"),
        (["in.jsonl", "-m", "gpt-4o-mini", "--sample", "1"], "OPENAI_API_KEY"),
        (["in.jsonl", "--system", "x"], "--system goes with --prompt-template"),
        (["in.jsonl", "-o", "in.jsonl"], "The output in.jsonl is the input"),
    ],
    ids=["input", "model", "key", "system", "output"],
)
def test_what_is_at_fault_is_one_sentence_before_anything_is_sent(arguments: list[str], sentence: str) -> None:
    write_rows(2)
    assert sentence in command("plan", *arguments, code=2).stderr


def test_an_empty_input_has_an_empty_plan() -> None:
    Path("in.jsonl").write_text("\n\n")
    assert "nothing: there is nothing to ask" in command("plan", "in.jsonl").stdout


# --- the answer cache -------------------------------------------------------------------------------------------------


def with_cache(**settings: Any) -> None:
    file = Path("llm-gateway.toml")
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"path": "kept.sqlite", **settings}.items()]
    file.write_text("\n".join([file.read_text(), "[cache]", *lines]))


def test_rows_that_the_cache_answers_are_counted_and_cost_nothing(provider: Emulator) -> None:
    with_cache()
    write_rows(3)
    told = planned("in.jsonl")
    assert (told["to_ask"], told["cached"], told["cached_repeats"]) == (3, 0, 0)
    assert not Path("kept.sqlite").exists()
    command("run", "in.jsonl", "-o", "before.jsonl")
    rows: list[dict[str, Any]] = [{"prompt": f"row {number}"} for number in (1, 2, 3, 4, 4, 5)]
    rows += [{"prompt": "row 1", "temperature": 1}] * 2 + [{"prompt": "row 1", "cache": False}]
    Path("more.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = planned("more.jsonl", "-o", "out.jsonl")
    assert told["adds_up"]
    assert (told["rows"], told["to_ask"], told["cached"], told["cached_repeats"]) == (9, 5, 3, 1)
    assert told["models"][0]["rows"] == 5
    table = command("plan", "more.jsonl", "-o", "out.jsonl").stdout
    assert "Rows      9: 5 to ask, 4 answered by the cache" in table
    assert "Cache     3 are there, 1 will be, once an earlier row is answered; none is paid" in table
    assert len(provider.ledger) == 3
    command("run", "more.jsonl", "-o", "out.jsonl")
    assert len(provider.ledger) == 3 + 5


def test_an_answer_that_is_too_old_or_has_another_form_is_asked_for_again(provider: Emulator) -> None:
    with_cache(ttl=1e-6)
    write_rows(2)
    command("run", "in.jsonl", "-o", "before.jsonl")
    assert planned("in.jsonl")["cached"] == 0
    assert len(provider.ledger) == 2


def test_a_cache_that_cannot_be_read_is_told_and_the_plan_goes_on_without_it(provider: Emulator) -> None:
    with_cache()
    Path("kept.sqlite").write_bytes(b"no database at all" * 100)
    write_rows(2)
    told = planned("in.jsonl")
    assert (told["to_ask"], told["cached"]) == (2, 0)
    assert any(note.startswith("The cache kept.sqlite cannot be read: file is not") for note in told["notes"])
    assert not provider.ledger
