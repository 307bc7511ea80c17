"""The journal across processes: ends without a shutdown, kills, forks, real disks that are full, many at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import llm_gateway
from llm_gateway.report import read_journal

SOURCES = Path(llm_gateway.__file__).parent.parent
BEGIN = """
    import os, sys, time
    from pathlib import Path
    from llm_gateway.config import LogSettings
    from llm_gateway.events import RequestDone
    from llm_gateway.journal import Journal
    from llm_gateway.models import RequestPriority

    journal = Journal(LogSettings(dir=Path("logs")))

    def note(request_id):
        journal.observe(
            RequestDone(
                request_id=request_id, batch_id="b", model="m", deployment="p/m", priority=RequestPriority.LOW,
                outcome="ok", attempt=1, queue_wait=0.0, provider_time=0.1, agent="x" * 200,
            )
        )
"""


def start(body: str, folder: Path) -> subprocess.Popen[str]:
    script = textwrap.dedent(BEGIN) + textwrap.dedent(body)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(body: str, folder: Path) -> str:
    process = start(body, folder)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


def ids(folder: Path) -> list[str]:
    """The ids of all lines in all files; every line must be whole."""
    return [line["request_id"] for path in sorted((folder / "logs").iterdir()) for line in lines_of(path)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_process_that_ends_without_shutdown_leaves_every_line(tmp_path: Path) -> None:
    run("for n in range(3000): note(str(n))", tmp_path)
    assert sorted(ids(tmp_path), key=int) == [str(n) for n in range(3000)]


def test_a_process_that_dies_of_an_exception_leaves_every_line(tmp_path: Path) -> None:
    process = start("note('a')\nraise SystemExit(3)", tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert ids(tmp_path) == ["a"]


def test_events_of_other_exit_handlers_are_written_too(tmp_path: Path) -> None:
    body = """
        import atexit
        atexit.register(note, "last")       # registered before the journal's own, so called after it
        note("first")
    """
    assert run(body, tmp_path) == ""
    assert sorted(ids(tmp_path)) == ["first", "last"]


def test_lines_outlive_a_kill_and_a_torn_one_spoils_nothing(tmp_path: Path) -> None:
    body = """
        print("ready", flush=True)
        n = 0
        while True:
            note(str(n))
            n += 1
            if n % 500 == 0:
                journal.flush()
                print(n, flush=True)
    """
    process = start(body, tmp_path)
    assert process.stdout is not None
    flushed = 0
    for line in process.stdout:
        flushed = int(line) if line.strip().isdigit() else 0
        if flushed >= 5000:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (path,) = (tmp_path / "logs").iterdir()
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    assert [json.loads(line)["request_id"] for line in whole[:flushed]] == [str(n) for n in range(flushed)]

    with path.open("ab") as file:  # what a kill in the middle of a write leaves behind
        file.write(b'{"ts":"2026-11-22T12:00:00.0')
    data = read_journal(tmp_path / "logs")
    assert data.unread == 1
    assert data.total.requests >= flushed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_its_own_file_and_no_line_twice(tmp_path: Path) -> None:
    body = """
        note("parent-before")
        child = os.fork()
        if child == 0:
            note("child")
            sys.exit(0)
        os.waitpid(child, 0)
        note("parent-after")
    """
    run(body, tmp_path)
    assert sorted(ids(tmp_path)) == ["child", "parent-after", "parent-before"]
    assert len(list((tmp_path / "logs").iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_of_multiprocessing_leaves_every_line(tmp_path: Path) -> None:
    body = """
        import multiprocessing
        note("parent")
        workers = [multiprocessing.get_context("fork").Process(target=note, args=(f"w{n}",)) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    """
    run(body, tmp_path)
    assert sorted(ids(tmp_path)) == ["parent", "w0", "w1"]


def test_two_processes_that_write_at_once_mix_no_lines(tmp_path: Path) -> None:
    body = "for n in range(5000): note(f'{os.getpid()}-{n}'); n % 100 or journal.flush()"
    processes = [start(body, tmp_path) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(set(ids(tmp_path))) == 10_000
    assert read_journal(tmp_path / "logs").total.requests == 10_000


def test_a_disk_that_the_kernel_calls_full_tears_no_line_and_is_told_once(tmp_path: Path) -> None:
    body = """
        import resource
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        note("before")
        journal.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        for n in range(100):
            note(str(n))
        journal.flush()
        size = journal.log_path.stat().st_size
        whole = journal.log_path.read_bytes().endswith(b"\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert whole and 0 < size < 4096, size
    """
    errors = run(body, tmp_path)
    assert ids(tmp_path) == ["before", *map(str, range(100))]
    assert errors.count("cannot be written") == 1
