"""The commands, in this process, against a provider on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fakes.emulator import Emulator, Reply
from fakes.emulator_thread import emulator_in_a_thread
from llm_gateway import LLMGateway, LLMRequest, LLMResponse, __version__, local_model
from llm_gateway.cli.app import app
from llm_gateway.cli.models import LOCAL_CONTEXT
from llm_gateway.clients.llamacpp import CONTEXT

CANARY = "sk-canary-4711"


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        yield emulator


@pytest.fixture
def configured(provider: Emulator) -> Path:
    """A configuration of one model in the file that is read where none is named."""
    path = Path("llm-gateway.toml")
    path.write_text(
        f"""
        [providers.openai]
        base_url = "{provider.url}/v1"
        api_key = "{CANARY}"
        [models.gpt-4o-mini]
        max_concurrency = 4
        [retry]
        max_attempts = 2
        base_delay = 0
        """
    )
    return path


def command(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=text, prog_name="llm-gateway", catch_exceptions=False)


def write_rows(*rows: object) -> None:
    Path("in.jsonl").write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows))


def results(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


# --- run --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("configured")
def test_a_file_of_prompts_becomes_a_file_of_answers() -> None:
    write_rows(*({"prompt": f"row {number}"} for number in range(30)), "\n", "  \n")
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 0, done.stderr
    assert sorted(each["line"] for each in results()) == list(range(1, 31))
    assert {each["request_id"] for each in results()} == {f"line-{number}" for number in range(1, 31)}
    assert all(LLMResponse(**each["response"]).content == "ok" for each in results())
    assert "answered  30" in done.stderr
    journal = next(Path("04_logs/gateway").glob("*.jsonl"))
    assert str(journal) in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("configured")
def test_what_is_wrong_with_some_rows_does_not_stop_the_others(provider: Emulator) -> None:
    write_rows(
        {"prompt": "one"},
        "nonsense\n",
        {"prompt": "fails", "request_id": "bad"},
        {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "hi"}]}},
        {"custom_id": "c", "body": {"messages": [], "top_p": 1}},
    )
    provider.answer = lambda call: Reply(status=400) if call.body["messages"][0]["content"] == "fails" else None
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 1
    told = {each.get("line", each.get("id")): each for each in results()}
    assert told[1]["status"] == "ok"
    assert (told[2]["request_id"], told[2]["error"]["kind"]) == (None, "invalid_request")
    assert (told[3]["request_id"], told[3]["error"]["kind"], told[3]["error"]["attempts"]) == ("bad", "rejected", 1)
    assert told["batch_req_4"]["response"]["body"]["choices"][0]["message"]["content"] == "ok"
    assert told["batch_req_5"]["error"]["message"].startswith("body.top_p: not supported")
    for words in ("line 2: not JSON", "line 5: body.top_p", "failed     rejected 1: ", "malformed  2", "answered   2"):
        assert words in done.stderr
    assert len(provider.ledger) == 3


@pytest.mark.usefixtures("configured")
def test_retries_are_counted_in_the_summary(provider: Emulator) -> None:
    write_rows({"prompt": "one"})
    provider.script(Reply(status=500))
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 0
    assert "calls     2 (1 retry)" in done.stderr


@pytest.mark.usefixtures("configured")
def test_only_the_first_malformed_lines_are_told_one_by_one() -> None:
    write_rows(*(["nonsense\n"] * 15))
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 1
    assert done.stderr.count(": not JSON") == 10
    assert done.stderr.count("More lines are malformed; the output names them all.") == 1
    assert len(results()) == 15


@pytest.mark.usefixtures("configured")
def test_no_key_gets_into_output_journal_or_words(provider: Emulator) -> None:
    provider.check_key("another")
    write_rows({"prompt": "one"})
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    written = "".join(path.read_text() for path in [Path("out.jsonl"), *Path("04_logs").rglob("*.jsonl")])
    assert done.exit_code == 1
    assert "authentication" in written
    assert CANARY not in written + done.output + command("models").output + command("models", "--json").output


@pytest.mark.usefixtures("configured")
def test_an_output_that_exists_needs_force() -> None:
    write_rows({"prompt": "one"})
    Path("out.jsonl").write_text("precious")
    refused = command("run", "in.jsonl", "-o", "out.jsonl")
    assert (refused.exit_code, Path("out.jsonl").read_text()) == (2, "precious")
    assert (
        refused.stderr == "llm-gateway: The output out.jsonl exists; give another file, or --force to write over it.\n"
    )
    assert command("run", "in.jsonl", "-o", "out.jsonl", "--force").exit_code == 0
    assert len(results()) == 1


@pytest.mark.usefixtures("configured")
def test_a_full_disk_ends_the_run_with_a_sentence() -> None:
    write_rows(*({"prompt": f"row {number}"} for number in range(200)))
    done = command("run", "in.jsonl", "-o", "/dev/full")
    assert done.exit_code == 2
    assert "llm-gateway: The output /dev/full cannot be written: No space left on device. " in done.stderr
    assert "of the input were not sent" in done.stderr


def test_a_run_without_a_key_ends_before_anything_is_written() -> None:
    write_rows(*({"prompt": f"row {number}", "model": "gpt-4o-mini"} for number in range(20)))
    by_row = command("run", "in.jsonl", "-o", "out.jsonl")
    by_option = command("run", "in.jsonl", "-o", "other.jsonl", "--model", "claude-haiku")
    assert (by_row.exit_code, by_option.exit_code) == (2, 2)
    assert "OPENAI_API_KEY" in by_row.stderr
    assert "ANTHROPIC_API_KEY" in by_option.stderr
    assert Path("out.jsonl").read_text() == ""
    assert not Path("other.jsonl").exists()


@pytest.mark.usefixtures("configured")
def test_a_model_without_a_key_fails_its_own_rows_where_others_are_answered(provider: Emulator) -> None:
    # The first row is answered before the second is read: one slot and one place in the queue.
    Path("llm-gateway.toml").write_text(Path("llm-gateway.toml").read_text() + "[batching]\nmax_queue_size = 1\n")
    write_rows(*({"prompt": "x", "model": "gpt-4o-mini"} for _ in range(3)), {"prompt": "x", "model": "claude-haiku"})
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 1
    assert "failed    missing_api_key 1: " in done.stderr
    assert len(provider.ledger) == 3


def test_a_bug_costs_its_own_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(LLMGateway):
        async def request(self, request: LLMRequest) -> LLMResponse:
            if request.request_id == "line-1":
                raise KeyError("a bug")
            return LLMResponse(request_id=request.request_id, content="fine", model="m")

    monkeypatch.setattr("llm_gateway.cli.run.LLMGateway", Broken)
    write_rows(*({"prompt": "x", "model": "gpt-4o-mini"} for _ in range(3)))
    done = command("run", "in.jsonl", "-o", "out.jsonl")
    assert done.exit_code == 1
    assert "line 1 met a bug:\nTraceback" in done.stderr
    assert sorted((each["line"], each["status"]) for each in results()) == [(1, "error"), (2, "ok"), (3, "ok")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["in.jsonl", "--config", "none.toml"],
            "The configuration none.toml cannot be read: No such file or directory.",
        ),
        (["in.jsonl", "-o", "o", "--model", "gpt-4o-minni"], "--model: 'gpt-4o-minni' is not configured; did you mean"),
        (["none.jsonl"], "The input none.jsonl cannot be read: No such file or directory."),
        (["in.jsonl", "-o", "in.jsonl", "--force"], "The output in.jsonl is the input; give another file."),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments: list[str], sentence: str) -> None:
    write_rows({"prompt": "one"})
    done = command("run", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"llm-gateway: {sentence}")
    assert done.stderr.count("\n") == 1


# --- ask --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("configured")
def test_ask_prints_the_answer_and_on_the_side_what_it_took(provider: Emulator) -> None:
    provider.script(Reply(text="Paris", usage={"input": 10, "output": 2}))
    done = command("ask", "Where?", "--system", "Be brief.", "--max-tokens", "5", "--temperature", "0.5")
    assert (done.exit_code, done.stdout) == (0, "Paris\n")
    assert done.stderr.startswith("openai/gpt-4o-mini · 10 tokens in, 2 out · cost $0.00000270 · ")
    body = provider.ledger[0].body
    assert [each["content"] for each in body["messages"]] == ["Be brief.", "Where?"]
    assert body["temperature"] == 0.5


@pytest.mark.usefixtures("configured")
def test_ask_reads_a_prompt_from_standard_input_and_tells_of_trouble(provider: Emulator) -> None:
    provider.script(Reply(status=500), Reply(text="cut", finish_reason="length"))
    done = command("ask", "-", "--json", text="Where?\n")
    assert LLMResponse(**json.loads(done.stdout)).content == "cut"
    assert done.stderr.rstrip().endswith("· 2 attempts · ended by: length")
    assert provider.ledger[0].body["messages"][0]["content"] == "Where?\n"


@pytest.mark.usefixtures("configured")
def test_ask_fails_with_one_sentence(provider: Emulator) -> None:
    provider.default = Reply(status=400)
    failed = command("ask", "hi")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.startswith("llm-gateway: openai rejects the request (HTTP 400)")
    empty = command("ask", "-", text=" \n")
    assert (empty.exit_code, empty.stderr[:40]) == (2, "llm-gateway: The prompt is empty; give a")


def test_ask_takes_the_model_of_this_machine_where_none_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GATEWAY_CACHE", str(Path.cwd()))
    done = command("ask", "hi")
    assert done.exit_code == 2
    assert "llm-gateway pull smollm2-135m" in done.stderr


def test_ctrl_c_in_a_command_needs_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_name: str, _progress: Callable[[str], None]) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_gateway.cli.pull.pull", interrupted)
    done = command("pull")
    assert (done.exit_code, done.output) == (130, "")


# --- models, pull, report ---------------------------------------------------------------------------------------


def test_models_are_listed_with_key_price_and_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GATEWAY_CACHE", str(Path.cwd()))
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    Path("other.toml").write_text(
        """
        [models.mine]
        provider = "ollama"
        model = "mine"
        context = 9000
        price = { input = 1.5, output = 2 }
        [models.strange]
        provider = "nobody_knows_this"
        model = "x"
        """
    )
    listed = {each["name"]: each for each in json.loads(command("models", "-c", "other.toml", "--json").stdout)}
    assert listed["claude-haiku"]["key"] == "present"
    assert (listed["gpt-4o-mini"]["key"], listed["gpt-4o-mini"]["key_variable"]) == ("missing", "OPENAI_API_KEY")
    assert (listed["gpt-4o-mini"]["input_price"], listed["gpt-4o-mini"]["context"]) == (0.15, 128_000)
    assert (listed["smollm2-135m"]["key"], listed["smollm2-135m"]["pulled"]) == ("not needed", False)
    assert (listed["mine"]["output_price"], listed["mine"]["context"], listed["mine"]["pulled"]) == (2.0, 9000, None)
    assert listed["strange"]["context"] is None
    table = command("models", "--config", "other.toml").stdout
    for words in ("mine", "ollama/mine", "no need", "1.5", "128k", "Set OPENAI_API_KEY for gpt-4o-mini."):
        assert words in table
    assert "Run `llm-gateway pull smollm2-135m` for smollm2-135m." in table
    assert "Configuration: other.toml." in table


def test_contexts_are_those_of_the_packages() -> None:
    import langchain_anthropic
    from langchain_openai.data._profiles import _PROFILES as OPENAI

    listed = {each["model"]: each["context"] for each in json.loads(command("models", "--json").stdout)}
    claude = langchain_anthropic.ChatAnthropic(model_name="claude-opus-5-5", api_key=CANARY)  # type: ignore[call-arg]  # the rest has defaults
    assert claude.profile is not None
    assert listed["claude-opus-5-5"] == claude.profile["max_input_tokens"]
    assert listed["gpt-4o-mini"] == OPENAI["gpt-4o-mini"]["max_input_tokens"]
    assert LOCAL_CONTEXT == CONTEXT


def test_a_model_that_was_pulled_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GATEWAY_CACHE", str(Path.cwd()))
    place = Path("models") / local_model.KNOWN["smollm2-135m"].file
    place.parent.mkdir()
    place.touch()
    listed = {each["name"]: each for each in json.loads(command("models", "--json").stdout)}
    assert listed["smollm2-135m"]["pulled"] is True
    assert "llm-gateway pull" not in command("models").stdout


def test_pull_tells_its_steps_and_knows_its_names() -> None:
    done = command("pull", "llama-405b")
    assert done.exit_code == 2
    assert done.stderr.startswith("llm-gateway: No local model is known as 'llama-405b'; known are smollm2-135m")


@pytest.mark.usefixtures("configured")
def test_report_reads_the_configured_journal() -> None:
    assert command("ask", "hi").exit_code == 0
    shown = command("report")
    assert shown.exit_code == 0, shown.stderr
    assert "gpt-4o-mini" in shown.stdout
    assert command("report", "04_logs/gateway").stdout == shown.stdout


def test_report_says_where_there_is_nothing_to_report() -> None:
    Path("off.toml").write_text("[logs]\ndir = false\n")
    assert "turns the journal off" in command("report", "--config", "off.toml").stderr
    missing = command("report", "none")
    assert missing.exit_code == 2
    assert missing.stderr.startswith("llm-gateway: ")


# --- the front ----------------------------------------------------------------------------------------------------


def test_the_version_is_told() -> None:
    assert command("--version").stdout == f"llm-gateway {__version__}\n"


@pytest.mark.parametrize("name", ["", "run", "ask", "models", "pull", "report"])
def test_every_command_explains_itself_with_examples(name: str) -> None:
    told = command(*name.split(), "--help")
    assert told.exit_code == 0
    assert "Examples:" in told.stdout
    assert f"llm-gateway {name}".strip() in told.stdout.split("Examples:")[1]
    assert "`" not in told.stdout


def test_a_misspelt_option_is_a_usage_error() -> None:
    told = command("run", "in.jsonl", "--modle", "x")
    assert told.exit_code == 2
    assert "No such option" in told.stderr
