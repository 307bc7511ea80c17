"""`llm-gateway run --job`, `worker` and `jobs` on a job in PostgreSQL, in this process, over a provider on loopback."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from fakes.postgres_server import PostgresServer
from llm_gateway.cli.app import app

CANARY = "sk-canary-4712"
NAMES = (f"cli-{number}" for number in itertools.count())
OUTPUT = Path("out.jsonl")


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        Path("llm-gateway.toml").write_text(
            f'[logs]\ndir = false\n[providers.openai]\nbase_url = "{emulator.url}/v1"\napi_key = "{CANARY}"\n'
            "[models.gpt-4o-mini]\nmax_concurrency = 4\n[retry]\nmax_attempts = 2\nbase_delay = 0\n"
        )
        yield emulator


@pytest.fixture
def url(provider: Emulator, postgres_server: PostgresServer) -> str:
    """The address of a job that nobody has begun, with a password in it."""
    del provider
    lines = [json.dumps({"prompt": f"row {number}"}) for number in range(1, 6)]
    Path("in.jsonl").write_text("\n".join([*lines, "nonsense"]))
    return f"{postgres_server.url.replace('gateway@', f'gateway:{CANARY}@')}?job={next(NAMES)}"


def command(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments, prog_name="llm-gateway", catch_exceptions=False)
    assert done.exit_code == code, done.output
    assert CANARY not in done.output
    return done


def numbers(path: Path) -> list[int]:
    return sorted(json.loads(line)["line"] for line in path.read_text().splitlines())


def test_a_job_is_loaded_answered_by_a_worker_and_exported(url: str, provider: Emulator) -> None:
    told = command("run", "in.jsonl", "--job", url, "--load-only").stderr
    assert "pending    5" in told
    assert "output     none: `llm-gateway jobs export` writes one" in told
    assert not provider.ledger
    assert command("jobs", "show", url).stdout.count("stopped") == 1
    told = command("worker", "--job", url, "--lease-seconds", "60").stderr
    assert "5 rows by this worker, 0 errors." in told
    assert len(provider.ledger) == 5
    assert "0 rows by this worker" in command("worker", "--job", url).stderr
    plain = json.loads(command("jobs", "show", url, "--json").stdout)
    assert (plain["state"], plain["done"], plain["malformed"]) == ("ended", 5, 1)
    assert plain["workers"] == plain["batches"] == []
    name = url.partition("job=")[2]
    listed = command("jobs", "--dir", url.partition("?")[0]).stdout
    assert any(line.split()[:3] == [name, "ended", "6"] for line in listed.splitlines())
    command("jobs", "export", url, "-o", "lines.jsonl")
    assert numbers(Path("lines.jsonl")) == [1, 2, 3, 4, 5, 6]
    command("jobs", "export", url, "-o", "table.csv")
    with Path("table.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 5 + ["error"]


def test_a_run_writes_what_others_answered_and_goes_on_in_its_output(
    url: str, provider: Emulator, capfd: pytest.CaptureFixture[str]
) -> None:
    command("run", "in.jsonl", "--job", url, "--load-only")
    command("worker", "--job", url)
    for _ in range(2):
        command("run", "in.jsonl", "--job", url, "-o", "out.jsonl", code=1)  # one line is malformed
        assert numbers(OUTPUT) == [1, 2, 3, 4, 5, 6]
    command("run", "in.jsonl", "--job", url, "-o", "table.csv", code=1)
    assert len(provider.ledger) == 5
    capfd.readouterr()
    command("run", "in.jsonl", "--job", url, "-o", "-", code=1)
    assert len(capfd.readouterr().out.splitlines()) == 6
    Path("mine.jsonl").write_text("mine")
    told = command("run", "in.jsonl", "--job", url, "-o", "mine.jsonl", code=2).stderr
    assert "The output mine.jsonl exists" in told


def test_failed_rows_are_taken_back_and_their_lines_written_anew(url: str, provider: Emulator) -> None:
    provider.answer = lambda call: Reply(status=400) if "row 2" in str(call.body["messages"]) else None
    command("run", "in.jsonl", "--job", url, "-o", "out.jsonl", code=1)
    provider.answer = lambda _: None
    told = command("run", "in.jsonl", "--job", url, "-o", "out.jsonl", "--retry-failed", "all", code=1).stderr
    assert "1 failed row will be asked again." in told
    lines = [json.loads(line) for line in OUTPUT.read_text().splitlines()]
    assert sorted(line["line"] for line in lines if line["status"] == "ok") == [1, 2, 3, 4, 5]
    assert len(lines) == 6


def test_a_cancelled_job_has_no_workers_until_that_is_undone(url: str) -> None:
    command("run", "in.jsonl", "--job", url, "--load-only")
    assert "is cancelled." in command("jobs", "cancel", url).stderr
    assert (
        "was cancelled; `llm-gateway jobs cancel 'postgresql://gateway@"
        in command("worker", "--job", url, code=2).stderr
    )
    assert "was cancelled" in command("run", "in.jsonl", "--job", url, code=2).stderr
    assert "can go on." in command("jobs", "cancel", url, "--undo").stderr
    assert "5 rows by this worker" in command("worker", "--job", url).stderr


def test_a_worker_holds_answers_against_the_schema_of_the_job(url: str, provider: Emulator) -> None:
    Path("schema.json").write_text('{"type": "object", "required": ["label"]}')
    provider.answer = lambda _: Reply(text="{}")
    command("run", "in.jsonl", "--job", url, "--schema", "schema.json", "--load-only")
    assert "failed     invalid_answer 5" in command("worker", "--job", url).stderr


def test_a_table_whose_source_is_on_another_host_is_exported_without_its_columns(url: str) -> None:
    Path("in.csv").write_text("text\nrow 1\nrow 2\n")
    command("run", "in.csv", "--job", url, "--prompt-template", "{text}")
    Path("in.csv").unlink()
    told = command("jobs", "export", url, "-o", "out.csv").stderr
    assert "in.csv is not here: its columns are left out." in told
    with Path("out.csv").open(newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "in.jsonl", "--load-only"), "--load-only goes with --job"),
        (("run", "in.jsonl", "--job", "URL", "-o", "x", "--load-only"), "run without --output"),
        (("run", "in.jsonl", "--job", "URL", "--lane", "flex", "--load-only"), "set the lane of the model where the"),
        (("run", "in.jsonl", "--job", "URL", "--lane", "batch"), "without a path and in PostgreSQL use the lane"),
        (("run", "-", "--job", "URL"), "--job needs an INPUT that is a file"),
        (("worker", "--job", "out.jsonl"), "reads postgresql://user@host/database?job=NAME"),
        (("worker", "--job", "URL"), "There is no job postgresql://gateway@"),
        (("jobs", "show", "URL"), "There is no job postgresql://gateway@"),
        (
            ("worker", "--job", f"postgresql://u:{CANARY}@127.0.0.1:1/d?job=a"),
            "postgresql://u@127.0.0.1:1/d?job=a cannot",
        ),
    ],
    ids=["load", "output", "lane", "batch", "pipe", "file", "worker", "show", "refused"],
)
def test_what_a_shared_job_cannot_do_is_one_sentence(url: str, arguments: tuple[str, ...], sentence: str) -> None:
    told = command(*(url if each == "URL" else each for each in arguments), code=2).stderr.splitlines()
    sentences = [line for line in told if line.startswith("llm-gateway: ")]
    assert len(sentences) == 1
    assert sentence in sentences[0]


def test_help_of_a_worker_explains_itself() -> None:
    told = command("worker", "--help").stdout
    assert "llm-gateway worker --job" in told.split("Examples:")[1]
