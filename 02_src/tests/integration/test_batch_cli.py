"""`llm-gateway run --lane` and what `llm-gateway jobs show` tells of provider batches, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Emulator
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway.cli.app import app

CANARY = "sk-canary-4713"
STATE = Path("out.jsonl.job")


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        Path("llm-gateway.toml").write_text(
            f'[providers.openai]\nbase_url = "{emulator.url}/v1"\napi_key = "{CANARY}"\n[models.gpt-4o-mini]\n'
        )
        rows = [json.dumps({"prompt": f"q{number}", "request_id": f"r{number}"}) for number in range(5)]
        Path("in.jsonl").write_text("\n".join(rows))
        yield emulator


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="llm-gateway", catch_exceptions=False)


def run(*more: str) -> Result:
    return command("run", "in.jsonl", "-o", "out.jsonl", "--lane", "batch", "--poll", "0.01", *more)


def test_a_file_is_answered_in_a_batch_and_jobs_show_tells_of_it(provider: Emulator) -> None:
    assert run().exit_code == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 5
    shown = command("jobs", "show", "out.jsonl").stdout
    assert "batch_1: completed, 4 rows of gpt-4o-mini at openai/gpt-4o-mini, since 20" in shown
    told = json.loads(command("jobs", "show", "out.jsonl", "--json").stdout)["batches"]
    assert [(each["batch_id"], each["state"], each["requests"], each["is_open"]) for each in told] == [
        ("batch_1", "completed", 4, False)
    ]
    assert CANARY.encode() not in STATE.read_bytes()
    assert sum(provider.batches.paid.values()) == 4


def test_what_the_provider_refuses_is_one_sentence_and_the_batch_stays_in_the_list(provider: Emulator) -> None:
    provider.batches.path = lambda _made: ("validating", "failed")
    provider.batches.code = lambda _made: "invalid_json_line"
    refused = run()
    assert refused.exit_code == 2
    assert (
        "openai/gpt-4o-mini does not take the batch of model 'gpt-4o-mini': It is invalid_json_line" in refused.stderr
    )
    assert "failed" in command("jobs", "show", "out.jsonl").stdout
    assert command("run", "in.jsonl", "-o", "out.jsonl").exit_code == 0


@pytest.mark.usefixtures("provider")
def test_a_pipe_has_no_batch_lane() -> None:
    told = command("run", "in.jsonl", "--lane", "batch")
    assert told.exit_code == 2
    assert "The batch lane needs a job whose state is a file" in " ".join(told.stderr.split())
