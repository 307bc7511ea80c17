"""From results to an output: places are noted, a full disk is waited for, and what a run says meanwhile."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llm_gateway import LLMMessage, LLMRequest
from llm_gateway.cli import writing
from llm_gateway.cli.output import KeptOutput
from llm_gateway.cli.voice import Voice
from llm_gateway.cli.writing import KeptWriter
from llm_gateway.errors import JobError, JobStoreBusyError, MissingDependencyError
from llm_gateway.jobs import AnswerSchema, SqliteJobStore
from llm_gateway.jobs.encoding import from_json, request_json, request_of, to_json
from llm_gateway.jobs.lock import JobLock, is_locked
from llm_gateway.jobs.records import Lease, StoredResult
from llm_gateway.jobs.tables import polars


def result(number: int) -> StoredResult:
    return StoredResult(
        id=number,
        number=number,
        key=f"r{number}",
        form="gateway",
        kind=None,
        body=b'{"content":"x"}',
        asked=True,
        attempts=1,
        input_tokens=0,
        output_tokens=0,
        cost_usd=0.0,
        unpriced=0,
    )


async def test_the_state_knows_how_far_an_output_is_written() -> None:
    store = SqliteJobStore.temporary()
    path = Path("out")
    path.write_bytes(b"kept\ntorn")
    writer = KeptWriter(KeptOutput(path, place=5), store, complain=lambda _: None)
    await writer.write([result(3), result(4)])
    assert (await store.facts())["output"] == {"id": 2, "place": 5, "clean": False}
    await writer.end()
    writer.close()
    text = path.read_bytes()
    assert text.startswith(b'kept\n{"request_id":"r3","line":3,"status":"ok","response":{"content":"x"}}\n')
    assert (await store.facts())["output"] == {"id": 4, "place": len(text), "clean": True}
    await store.close()


async def test_an_output_whose_disk_is_full_waits_for_room_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteJobStore.temporary()
    told: list[str] = []
    failures = 3
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        nonlocal failures
        if failures:
            failures -= 1
            pwrite(file, data[:10], place)
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, place)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(writing, "FULL_PAUSE", 0.0)
    writer = KeptWriter(KeptOutput(Path("out"), place=0), store, complain=told.append)
    await writer.write([result(1)])
    writer.close()
    assert told == ["The output out cannot grow: its disk is full. Waiting for room."]
    assert Path("out").read_bytes().count(b"\n") == 1
    await store.close()


def test_a_run_says_when_it_pauses_goes_on_and_meets_a_bug() -> None:
    console = Console(file=io.StringIO(), width=300)
    voice = Voice(console)
    voice.paused(JobStoreBusyError("The disk is full."))
    voice.resumed()
    voice.bug(Lease(number=4, turn=1, key="a", request=b"", invalid=0), "Traceback")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "Paused: The disk is full. Nothing is sent until it can; answers under way are kept in memory.",
        "The job's state can be written again; going on.",
        "line 4 met a bug:",
        "Traceback",
    ]


def test_half_a_character_goes_into_a_state_and_comes_back() -> None:
    request = LLMRequest(
        model="gpt-4o-mini", messages=[LLMMessage(role="user", content="cut \ud83d")], request_id="a", max_tokens=5
    )
    text, fingerprint = request_json(request)
    assert request_of(text) == request
    assert len(fingerprint) == 16
    assert from_json(to_json({"a": "\ud83d"})) == {"a": "\ud83d"}


def test_a_lock_is_free_once_its_holder_is_gone() -> None:
    state = Path("out.job")
    assert not is_locked(state)
    with JobLock(state) as lock:
        assert is_locked(state)
        with pytest.raises(JobError, match=f"id {os.getpid()}"):
            JobLock(state)
    lock.release()  # a second time
    assert not is_locked(state)
    Path("out.job.lock").write_text("12345")  # what a killed process leaves
    assert not is_locked(state)
    JobLock(state).release()
    with pytest.raises(JobError, match="cannot be made: No such file or directory"):
        JobLock(Path("nowhere/out.job"))


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match=r"llm-gateway\[tables\]"):
        polars()
    with pytest.raises(MissingDependencyError, match=r"llm-gateway\[schema\]"):
        AnswerSchema({})


async def test_a_state_of_another_version_is_left_to_that_version() -> None:
    path = Path("out.job")
    store = SqliteJobStore.open(path)
    await store._commits.run(lambda connection: connection.execute("PRAGMA user_version = 99"))
    await store.close()
    with pytest.raises(JobError, match="has format 99, and this version of llm-gateway knows 1"):
        SqliteJobStore.open(path)
    with pytest.raises(JobError, match="is closed"):
        await store.ledger()
