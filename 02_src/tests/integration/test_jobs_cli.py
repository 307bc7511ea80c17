"""`llm-gateway run` as a job, and `llm-gateway jobs`, in this process, against a provider on loopback."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Call, Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway.cli.app import app
from llm_gateway.jobs.lock import JobLock

CANARY = "sk-canary-4712"
OUTPUT, STATE = Path("out.jsonl"), Path("out.jsonl.job")
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "score": {"type": "number"}, "tags": {"type": "array"}},
    "required": ["label"],
}


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def configured(provider: Emulator) -> None:
    write_config(provider)


def write_config(provider: Emulator, more: str = "", *, max_tokens: int = 9) -> None:
    Path("llm-gateway.toml").write_text(
        f"""
        [providers.openai]
        base_url = "{provider.url}/v1"
        api_key = "{CANARY}"
        [models.gpt-4o-mini]
        max_concurrency = 4
        max_tokens = {max_tokens}
        [retry]
        max_attempts = 2
        base_delay = 0
        {more}
        """
    )


def command(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=text, prog_name="llm-gateway", catch_exceptions=False)


def run(*more: str, output: str = "out.jsonl", code: int = 0) -> Result:
    done = command("run", "in.jsonl", "-o", output, *more)
    assert done.exit_code == code, done.stderr
    return done


def write_rows(count: int, **fields: Any) -> None:
    rows = [{"prompt": f"row {number}", **fields} for number in range(1, count + 1)]
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def results(path: Path = OUTPUT) -> dict[int, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_number = {line["line"]: line for line in lines}
    assert len(by_number) == len(lines)
    return by_number


def failing(*numbers: int) -> Callable[[Call], Reply | None]:
    wrong = {f"row {number}" for number in numbers}
    return lambda call: Reply(status=400) if call.body["messages"][-1]["content"] in wrong else None


# --- going on ----------------------------------------------------------------------------------------------------


def test_the_same_command_again_asks_nothing_again(provider: Emulator) -> None:
    write_rows(20)
    first = run()
    written = OUTPUT.read_bytes()
    again = run()
    assert OUTPUT.read_bytes() == written
    assert len(provider.ledger) == 20
    assert "answered  20" in first.stderr
    assert "answered  20" in again.stderr
    assert "state     out.jsonl.job" in again.stderr
    assert sorted(path.name for path in Path().glob("out*")) == ["out.jsonl", "out.jsonl.job"]


def test_an_output_that_was_removed_is_written_anew_and_nothing_is_asked(provider: Emulator) -> None:
    write_rows(5)
    run()
    before = results()
    OUTPUT.unlink()
    run()
    assert results() == before
    assert len(provider.ledger) == 5


def test_an_output_that_somebody_added_to_is_left_alone() -> None:
    write_rows(2)
    run()
    with OUTPUT.open("a") as file:
        file.write("mine\n")
    told = run(code=2).stderr
    assert told.startswith("llm-gateway: The output out.jsonl was changed after the job wrote it; move it away")
    assert OUTPUT.read_text().endswith("mine\n")


def test_a_changed_input_is_told_before_anything_is_sent(provider: Emulator) -> None:
    write_rows(3)
    run()
    write_rows(4)
    told = run(code=2).stderr
    assert told.startswith("llm-gateway: The input in.jsonl is not what it was when the job out.jsonl.job began;")
    assert len(provider.ledger) == 3
    run("--force")
    assert sorted(results()) == [1, 2, 3, 4]
    assert len(provider.ledger) == 7


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "local-llama"], "began without --model, and this run is with --model local-llama;"),
        (["--prompt-template", "{prompt}!"], "began without --prompt-template, and this run is with"),
    ],
    ids=["model", "template"],
)
def test_other_options_are_told_before_anything_is_sent(provider: Emulator, options: list[str], sentence: str) -> None:
    write_rows(3)
    run()
    assert sentence in run(*options, code=2).stderr
    assert len(provider.ledger) == 3


def test_sampling_parameters_of_the_configuration_are_watched_too(provider: Emulator) -> None:
    write_rows(3)
    run()
    write_config(provider, max_tokens=99)
    told = run(code=2).stderr
    assert "Model 'gpt-4o-mini' was openai/gpt-4o-mini (max_tokens=9) when the job out.jsonl.job began" in told
    assert len(provider.ledger) == 3


def test_failed_rows_are_asked_again_where_that_is_wished(provider: Emulator) -> None:
    write_rows(6)
    provider.answer = failing(2, 5)
    assert "failed    rejected 2: " in run(code=1).stderr
    provider.answer = lambda _: None
    assert run(code=1).stderr.count("rejected 2") == 1  # not by itself
    unknown = run("--retry-failed", "timeout", code=2).stderr
    assert unknown == "llm-gateway: --retry-failed: no row failed with 'timeout'; there are: rejected 2.\n"
    told = run("--retry-failed", "rejected").stderr
    assert "2 failed rows will be asked again." in told
    assert "calls     8 (2 retries): 6 paid, 2 failed" in told
    assert {number: line["status"] for number, line in results().items()} == dict.fromkeys(range(1, 7), "ok")
    assert len(provider.ledger) == 8
    assert "0 failed rows will be asked again." in run("--retry-failed", "all").stderr


def test_the_state_holds_no_key_and_no_answered_prompt() -> None:
    write_rows(3, system="a system message that is nobody's business")
    run()
    told = command("jobs", "show", "out.jsonl").output + command("jobs", "show", "out.jsonl", "--json").output
    assert CANARY not in STATE.read_bytes().decode("latin-1") + told


def test_an_id_that_stands_twice_fails_its_second_line() -> None:
    lines = [{"prompt": "x", "request_id": "a"}, {"prompt": "y", "request_id": "a"}]
    Path("in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    told = run(code=1).stderr
    assert "line 2: the id 'a' stands on an earlier line too; give each line its own." in told
    assert "malformed  1" in told
    assert (results()[1]["status"], results()[2]["request_id"]) == ("ok", None)


def test_a_compressed_input_goes_on_as_well(provider: Emulator) -> None:
    import gzip

    write_rows(5)
    Path("in.jsonl.gz").write_bytes(gzip.compress(Path("in.jsonl").read_bytes(), mtime=0))
    for _ in range(2):
        done = command("run", "in.jsonl.gz", "-o", "out.jsonl")
        assert done.exit_code == 0, done.stderr
    assert sorted(results()) == [1, 2, 3, 4, 5]
    assert len(provider.ledger) == 5


def test_what_goes_through_a_pipe_says_that_it_keeps_no_state() -> None:
    done = command("run", "-", "-o", "out.jsonl", text='{"prompt": "x"}\n')
    assert done.exit_code == 0, done.stderr
    assert "state     none: what was read or written through a pipe cannot be resumed" in done.stderr
    assert not STATE.exists()
    refused = command("run", "-", "-o", "out.csv", text='{"prompt": "x"}\n')
    assert refused.exit_code == 2
    assert "need a job's state" in refused.stderr


def test_a_job_that_somebody_works_on_is_not_touched() -> None:
    write_rows(2)
    with JobLock(STATE):
        told = run(code=2).stderr
        assert "works on the job out.jsonl.job; wait for it or stop it." in told
    assert not OUTPUT.exists()


# --- money and schemas --------------------------------------------------------------------------------------------


def test_a_budget_stops_a_run_and_a_larger_one_goes_on(provider: Emulator) -> None:
    write_rows(30)
    stopped = run("--budget", "0.00006", code=1)
    assert "and of the budget of the job, " in stopped.stderr
    assert "or raise it with --budget." in stopped.stderr
    assert "rows of the input were not sent" in stopped.stderr
    known = len(results())
    assert 0 < known < 30
    assert "--budget: the job has spent" in run("--budget", "0.000001", code=2).stderr
    run("--budget", "1")
    assert len(results()) == 30
    assert len(provider.ledger) == 30


def test_answers_follow_a_schema_or_fail(provider: Emulator) -> None:
    write_rows(2)
    Path("schema.json").write_text(json.dumps(SCHEMA))
    provider.answer = lambda call: Reply(text='{"label": "x"}' if "row 1" in str(call.body["messages"]) else "{}")
    told = run("--schema", "schema.json", code=1).stderr
    assert "failed    invalid_answer 1: The answer does not fit the schema: 'label' is a required property." in told
    assert results()[2]["error"]["attempts"] == 2
    assert provider.ledger[0].body["response_format"]["type"] == "json_schema"
    assert len(provider.ledger) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read: No such"),
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"type": 5}', "is n"),
    ],
    ids=["missing", "cut", "list", "wrong"],
)
def test_a_schema_that_is_none_is_one_sentence(text: str | None, reason: str) -> None:
    write_rows(1)
    if text is not None:
        Path("schema.json").write_text(text)
    told = run("--schema", "schema.json", code=2).stderr
    assert told.startswith("llm-gateway: The schema schema.json")
    assert reason in told


# --- tables ------------------------------------------------------------------------------------------------------


def write_csv(rows: int = 4) -> None:
    with Path("in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((number, f"row {number}") for number in range(1, rows + 1))])


def test_a_csv_file_becomes_one_with_answers_in_its_order(provider: Emulator) -> None:
    write_csv()
    provider.answer = failing(3)
    done = command("run", "in.csv", "-o", "out.csv", "--prompt-template", "{text}")
    assert done.exit_code == 1, done.stderr
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok"]
    assert [row["answer"] for row in rows] == ["ok", "ok", "", "ok"]
    assert rows[2]["error"].startswith("rejected: ")
    assert not list(Path().glob(".out*"))


def test_a_csv_file_becomes_a_parquet_file_with_a_column_for_each_property(provider: Emulator) -> None:
    write_csv()
    Path("schema.json").write_text(json.dumps(SCHEMA))
    provider.answer = lambda _: Reply(text='{"label": "good", "score": 0.5, "tags": ["a"]}')
    template = Path("prompt.txt")
    template.write_text("Sort this: {text}")
    arguments = ("run", "in.csv", "-o", "out.parquet", "--prompt-template", "@prompt.txt", "--schema", "schema.json")
    for _ in range(2):
        done = command(*arguments, "--system", "Be brief.")
        assert done.exit_code == 0, done.stderr
    table = pl.read_parquet("out.parquet")
    assert table.columns[:3] == ["id", "text", "answer"]
    assert table["label"].to_list() == ["good"] * 4
    assert table.schema["score"] == pl.Float64
    assert table["tags"][0] == '["a"]'
    assert provider.ledger[0].body["messages"][0]["content"] == "Be brief."
    assert len(provider.ledger) == 4


def test_a_parquet_file_keeps_the_types_of_its_columns() -> None:
    pl.DataFrame({"answer": [1, 2], "day": ["a", None]}).write_parquet("in.parquet")
    done = command("run", "in.parquet", "-o", "out.parquet", "--prompt-template", "{answer}: {day}")
    assert done.exit_code == 0, done.stderr
    table = pl.read_parquet("out.parquet")
    assert table["answer"].to_list() == [1, 2]
    assert table["llm_answer"].to_list() == ["ok", "ok"]
    assert table["llm_status"].to_list() == ["ok", "ok"]


@pytest.mark.parametrize(
    ("content", "template", "reason"),
    [
        (b"id,text\n1,x\n", "{txt}", "names a column 'txt', and in.csv has none; it has id, text."),
        (b"id,id\n1,x\n", "{id}", "has two columns 'id'"),
        (b"id\n\xff\xfe\n", "{id}", "is not UTF-8"),
        (b"id\n1\n", "{id!r}", "between braces stands the name of a column and nothing else"),
        (b"id\n1\n", "{id", "The prompt template cannot be used"),
        (b"id\n1\n", "@none.txt", "The prompt template @none.txt cannot be read: No such file or directory."),
        (b"id\n1\n", None, "The input in.csv is a table; give --prompt-template"),
        (b"", "{id}", "The input in.csv has no header; give its columns names in the first line."),
        (b'id,text\n1,x\n2,"y\nz\n', "{text}", "The input in.csv ends within quotes that begin in line 3; close them."),
    ],
    ids=["column", "twice", "encoding", "conversion", "brace", "file", "none", "empty", "quotes"],
)
def test_a_table_that_cannot_be_asked_is_one_sentence(content: bytes, template: str | None, reason: str) -> None:
    Path("in.csv").write_bytes(content)
    given = [] if template is None else ["--prompt-template", template]
    done = command("run", "in.csv", "-o", "out.csv", *given)
    assert done.exit_code == 2
    assert reason in done.stderr


def test_rows_of_a_csv_file_with_too_few_or_too_many_cells_are_told_and_not_paid(provider: Emulator) -> None:
    text = 'id,text,more\n1,fine,x\n2\n3,cut, in two,x\n4,short\n\n5,"two\nlines","x ""y"""\n6" wide,fine,x\n'
    Path("in.csv").write_text(text)
    done = command("run", "in.csv", "-o", "out.csv", "--prompt-template", "{text}")
    assert done.exit_code == 1
    assert "line 2: the row has no 'text', which the prompt template names." in done.stderr
    assert "line 3: the row has more cells than the header (1 too many); put quotes around" in done.stderr
    asked = [call.body["messages"][-1]["content"] for call in provider.ledger]
    assert sorted(asked) == ["fine", "fine", "short", "two\nlines"]
    with Path("out.csv").open(newline="") as file:
        rows = [(row["id"], row["status"], row["more"]) for row in csv.DictReader(file)]
    assert rows[1:4] == [("2", "error", ""), ("3", "error", " in two"), ("4", "ok", "")]


def test_a_broken_parquet_file_is_one_sentence() -> None:
    Path("in.parquet").write_bytes(b"PAR1 and no more")
    done = command("run", "in.parquet", "-o", "out.csv", "--prompt-template", "x")
    assert done.exit_code == 2
    assert done.stderr.startswith("llm-gateway: The input in.parquet cannot be read: ")
    assert "Traceback" not in done.stderr


def test_a_system_message_needs_a_template() -> None:
    write_rows(1)
    assert "--system goes with --prompt-template" in run("--system", "x", code=2).stderr


# --- jobs --------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_with_how_they_stand(provider: Emulator) -> None:
    assert "No jobs in ." in command("jobs").stdout
    write_rows(3)
    provider.answer = failing(2)
    run(code=1)
    Path("other.job").write_text("no job")
    listed = command("jobs", "--dir", ".")
    assert re.search(r"out\.jsonl\.job +ended +3 +2 +1 +0 +0 +\$", listed.stdout)
    assert "other.job is not the state of a job" in listed.stderr
    with JobLock(STATE):
        assert "running" in command("jobs").stdout
    assert command("jobs", "--dir", "nowhere").exit_code == 2


def test_show_tells_progress_and_the_ledger(provider: Emulator) -> None:
    write_rows(3)
    provider.answer = failing(2)
    run(code=1)
    told = command("jobs", "show", "out.jsonl").stdout
    for words in ("state     ended", "input     ", "model     gpt-4o-mini: openai/gpt-4o-mini"):
        assert words in told
    assert "calls     3 (0 retries): 2 paid, 1 failed" in told
    plain = json.loads(command("jobs", "show", "out.jsonl.job", "--json").stdout)
    assert (plain["rows"], plain["done"], plain["failed"], plain["adds_up"]) == (3, 2, {"rejected": 1}, True)
    missing = command("jobs", "show", "none.jsonl")
    assert missing.stderr == (
        "llm-gateway: There is no job none.jsonl.job; `llm-gateway jobs` lists those of a folder.\n"
    )


def test_a_cancelled_job_goes_on_only_when_that_is_undone(provider: Emulator) -> None:
    write_rows(3)
    run()
    assert "is cancelled." in command("jobs", "cancel", "out.jsonl").stderr
    assert "cancelled" in command("jobs").stdout
    assert "was cancelled; `llm-gateway jobs cancel out.jsonl --undo` lets it go on" in run(code=2).stderr
    assert "can go on." in command("jobs", "cancel", "out.jsonl", "--undo").stderr
    run()
    assert len(provider.ledger) == 3


def test_a_state_in_a_folder_that_nobody_may_write_to_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(3)
    run()
    readable = {os.R_OK}
    monkeypatch.setattr(os, "access", lambda _path, mode: mode in readable)
    assert "answered  3" in command("jobs", "show", "out.jsonl").stdout
    assert not Path("out.jsonl.job-shm").exists()
    readable.clear()
    told = "llm-gateway: The job's state out.jsonl.job cannot be read: it belongs to another user.\n"
    assert command("jobs", "show", "out.jsonl").stderr == told
    assert "belongs to another user" in command("jobs").stderr


def test_results_are_exported_as_lines_and_as_tables() -> None:
    write_rows(3)
    run()
    for name in ("lines.jsonl", "table.csv", "table.parquet"):
        done = command("jobs", "export", "out.jsonl", "-o", name)
        assert (done.exit_code, done.stderr) == (0, f"3 rows in {name}.\n")
    assert results(Path("lines.jsonl")) == results()
    assert pl.read_parquet("table.parquet")["line"].to_list() == [1, 2, 3]
    assert pl.read_csv("table.csv")["request_id"].to_list() == ["line-1", "line-2", "line-3"]
    again = command("jobs", "export", "out.jsonl", "-o", "table.csv")
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    assert command("jobs", "export", "out.jsonl", "-o", "none/table.csv").exit_code == 2


@pytest.mark.parametrize("name", ["jobs", "jobs show", "jobs cancel", "jobs export"])
def test_every_command_about_jobs_explains_itself_with_examples(name: str) -> None:
    told = command(*name.split(), "--help")
    assert told.exit_code == 0
    assert f"llm-gateway {name}" in told.stdout.split("Examples:")[1]
