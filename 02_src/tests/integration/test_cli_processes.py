"""The command as a process: pipes, signals, and what its start costs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.emulator import Emulator, Reply

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def configured(emulator: Emulator) -> None:
    Path("llm-gateway.toml").write_text(
        f"""
        [providers.openai]
        base_url = "{emulator.url}/v1"
        api_key = "sk-canary-4711"
        [models.gpt-4o-mini]
        max_concurrency = 4
        """
    )
    Path("in.jsonl").write_text("".join(f'{{"prompt": "row {number}"}}\n' for number in range(200)))


@pytest.fixture
def start(warm: Path) -> Start:
    async def started(*arguments: str, **pipes: Any) -> asyncio.subprocess.Process:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
        return await asyncio.create_subprocess_exec(warm / "llm-gateway", *arguments, **options)

    return started


def answers(text: bytes) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("configured")
async def test_rows_through_a_pipe_are_answered_as_they_come(start: Start) -> None:
    process = await start("run", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"prompt": "first"}\n')
    first = json.loads(await process.stdout.readline())  # while the input is still open
    process.stdin.write(b'{"prompt": "second"}')
    process.stdin.close()
    rest, told = await process.communicate()
    assert (first["line"], first["status"]) == (1, "ok")
    assert [each["line"] for each in answers(rest)] == [2]
    assert process.returncode == 0
    assert b"answered  2" in told
    assert b"output    standard output" in told


@pytest.mark.usefixtures("configured")
async def test_a_reader_that_leaves_ends_the_run_without_a_traceback(start: Start) -> None:
    process = await start("run", "in.jsonl")
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head -1` does
    told = await process.stderr.read()
    assert await process.wait() == 1
    assert b"Nobody reads standard output any more. " in told
    assert b"Traceback" not in told


@pytest.mark.usefixtures("configured")
async def test_a_second_ctrl_c_does_not_wait_and_keeps_what_is_known(emulator: Emulator, start: Start) -> None:
    emulator.answer = lambda call: Reply(latency=0.0 if call.number <= 8 else 3600.0)
    process = await start("run", "in.jsonl", "-o", "out.jsonl")
    assert process.stderr is not None
    await emulator.arrived(12)  # eight were answered, four hang
    process.send_signal(signal.SIGINT)
    first = (await process.stderr.readline()).decode()
    process.send_signal(signal.SIGINT)
    told = (await process.stderr.read()).decode()
    assert await process.wait() == 130
    assert [each["status"] for each in answers(Path("out.jsonl").read_bytes())] == ["ok"] * 8
    assert re.fullmatch(r"Stopping once \d+ rows under way have an answer; Ctrl-C again does not wait\.\n", first)
    last = r"llm-gateway: Interrupted\. (\d+) rows of the input were not sent; (\d+) rows under way have no result\."
    found = re.search(last, told)
    assert found is not None, told
    assert 8 + int(found[1]) + int(found[2]) == 200
    assert "Traceback" not in told


@pytest.mark.usefixtures("configured")
async def test_a_first_ctrl_c_waits_for_what_is_under_way(emulator: Emulator, start: Start) -> None:
    emulator.default = Reply(latency=0.2)
    process = await start("run", "in.jsonl", "-o", "out.jsonl")
    assert process.stderr is not None
    await emulator.arrived(4)
    process.send_signal(signal.SIGTERM)
    told = (await process.stderr.read()).decode()
    assert await process.wait() == 143
    known = answers(Path("out.jsonl").read_bytes())
    assert len(known) == len(emulator.ledger)
    assert all(call.finished for call in emulator.ledger)
    assert f"{200 - len(known)} rows of the input were not sent." in told


@pytest.mark.usefixtures("configured")
async def test_a_job_is_cancelled_from_another_process(emulator: Emulator, start: Start) -> None:
    emulator.default = Reply(latency=0.5)
    process = await start("run", "in.jsonl", "-o", "out.jsonl")
    await emulator.arrived(4)
    other = await start("jobs", "cancel", "out.jsonl")
    _, said = await other.communicate()
    assert said == b"The job out.jsonl.job is cancelled; what is under way still gets its answer.\n"
    _, told = await process.communicate()
    assert process.returncode == 1
    assert b"llm-gateway: The job was cancelled. " in told
    assert len(answers(Path("out.jsonl").read_bytes())) == len(emulator.ledger) < 200


async def test_ctrl_c_while_standard_input_is_silent_ends_at_once(start: Start) -> None:
    process = await start("run", "-", "-o", "out.jsonl", stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stdin is not None
    process.stdin.write(b"nonsense\n")
    assert b"line 1: not JSON" in await process.stderr.readline()  # it reads, and waits for more
    process.send_signal(signal.SIGINT)
    told = (await process.stderr.read()).decode()
    assert await process.wait() == 130
    assert told.endswith("llm-gateway: Interrupted.\n")


def test_a_closed_pipe_is_no_traceback_in_any_command(warm: Path) -> None:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [warm / "llm-gateway", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, told = process.communicate()
    assert (process.returncode, told) == (1, b"")


def test_help_imports_nothing_that_only_work_needs() -> None:
    code = "import sys, llm_gateway.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"langchain_core", "openai", "anthropic", "ollama", "aiohttp", "httpx", "httpx2", "genai_prices", "plotly"}
    assert loaded & heavy == set()
