"""The journal: which lines stand in which file, and what happens when the disk does not take them."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

from llm_gateway.config import LogSettings
from llm_gateway.events import (
    AttemptFailed,
    BatchClosed,
    BatchOpened,
    Event,
    RequestDone,
    RequestQueued,
    RetryScheduled,
    ShutdownBegan,
    ShutdownEnded,
)
from llm_gateway.journal import Journal
from llm_gateway.journal import writer as writing
from llm_gateway.journal.files import JournalFiles
from llm_gateway.journal.writer import Writer
from llm_gateway.models import RequestPriority, TokenUsage

NOON = datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)
HIGH, NORMAL, LOW = RequestPriority


class Wall:
    """Wall time that a test sets."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def logs(folder: Path, **given: Any) -> LogSettings:
    return LogSettings.model_validate({"dir": folder, **given})


def done(request_id: str = "r1", **given: Any) -> RequestDone:
    return RequestDone(
        **{
            "request_id": request_id,
            "batch_id": "b1",
            "model": "gpt-4o-mini",
            "deployment": "openai/gpt-4o-mini",
            "priority": HIGH,
            "outcome": "ok",
            "attempt": 1,
            "queue_wait": 0.5,
            "provider_time": 1.0,
            **given,
        }
    )


def written(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file, file by file."""
    return [line for path in sorted(folder.iterdir()) for line in lines_of(path)]


def lines_of(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def journal_of(folder: Path, *events: Event, wall: Callable[[], datetime] = NOON.replace, **given: Any) -> Journal:
    """A journal that has written `events` and is closed."""
    journal = Journal(logs(folder, **given), wall=wall)
    for event in events:
        journal.observe(event)
    journal.close()
    return journal


Threads = Callable[[], list[threading.Thread]]


@pytest.fixture
def our_threads() -> Threads:
    """The journals' threads that this test started and that still run."""
    before = set(threading.enumerate())
    return lambda: [each for each in threading.enumerate() if each.name == "llm-gateway-journal" and each not in before]


# --- lines ----------------------------------------------------------------------------------------------------


def test_an_item_is_one_flat_line_without_what_is_unknown(tmp_path: Path) -> None:
    usage = TokenUsage(input_tokens=7, output_tokens=5, cache_read_tokens=3)
    event = done(queue_wait=0.123456789, provider_time=1 / 3, usage=usage, cost_usd=0.25, finish_reason="stop")
    journal = journal_of(tmp_path, event)
    assert lines_of(journal.log_path) == [
        {
            "ts": "2026-11-22T12:00:00.250000Z",
            "event": "item_done",
            "request_id": "r1",
            "batch_id": "b1",
            "model": "gpt-4o-mini",
            "deployment": "openai/gpt-4o-mini",
            "priority": "high",
            "outcome": "ok",
            "attempt": 1,
            "queue_wait": 0.123457,
            "provider_time": 0.333333,
            "input_tokens": 7,
            "output_tokens": 5,
            "cache_read_tokens": 3,
            "cache_write_tokens": 0,
            "reasoning_tokens": 0,
            "cache_write_1h_tokens": 0,
            "cost_usd": 0.25,
            "finish_reason": "stop",
        }
    ]


def test_each_event_has_its_line_in_the_order_of_events(tmp_path: Path) -> None:
    where = {"model": "m", "deployment": "p/m"}
    journal = journal_of(
        tmp_path,
        RequestQueued(request_id="r", model="m", priority=LOW),
        BatchOpened(batch_id="b", **where),
        BatchClosed(batch_id="b", size=3, why="size", classes={HIGH: 1, LOW: 2}, **where),
        AttemptFailed(
            request_id="r",
            batch_id="b",
            attempt=1,
            kind="timeout",
            status=None,
            message="late",
            provider_time=2,
            **where,
        ),
        RetryScheduled(request_id="r", model="m", attempt=1, wait=0.1, kind="timeout"),
        done(),
        ShutdownBegan(queued=1, in_flight=2),
        ShutdownEnded(cancelled=1, drained=2),
    )
    lines = lines_of(journal.log_path)
    names = ["batch_opened", "batch_closed", "error", "retry_scheduled", "item_done", "shutdown_began", "shutdown"]
    assert [line["event"] for line in lines] == names
    assert lines[1]["classes"] == {"high": 1, "low": 2}
    assert "status" not in lines[2]
    assert {line["ts"] for line in lines} == {"2026-11-22T12:00:00.250000Z"}


def test_a_line_bears_the_time_of_its_event_and_always_six_decimals(tmp_path: Path) -> None:
    wall = Wall(NOON.replace(microsecond=0))
    journal = Journal(logs(tmp_path), wall=wall)
    journal.observe(done())
    wall.now += timedelta(hours=1)
    journal.close()
    assert lines_of(journal.log_path)[0]["ts"] == "2026-11-22T12:00:00.000000Z"


def test_half_a_surrogate_pair_and_huge_integers_are_written_all_the_same(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, done(agent="a\ud800b"), done(metadata={"n": 2**70}))
    first, second = lines_of(journal.log_path)
    assert first["agent"] == "a?b"
    assert second["metadata"] == {"n": 2**70}


def test_metadata_that_is_no_json_costs_its_own_line_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = journal_of(tmp_path, done("a"), done("b", metadata={"x": object()}), done("c"))
    lines = lines_of(journal.log_path)
    assert [line.get("request_id") for line in lines] == ["a", "c", None]
    assert (lines[2]["event"], lines[2]["lines"], journal.lost) == ("lines_lost", 1, 1)
    assert "cannot be written" in caplog.text


# --- files ----------------------------------------------------------------------------------------------------


def test_nothing_touches_the_disk_before_the_first_line(tmp_path: Path, our_threads: Threads) -> None:
    journal = Journal(logs(tmp_path / "logs"))
    journal.observe(RequestQueued(request_id="r", model="m", priority=LOW))
    assert journal.log_path is None
    journal.flush()
    journal.close()
    assert list(tmp_path.iterdir()) == []
    assert our_threads() == []


def test_a_journal_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a folder"):
        Journal(LogSettings(dir=False))


def test_the_folder_is_that_of_the_start_also_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(LogSettings(dir=Path("a/b")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    journal.observe(done())
    journal.close()
    assert journal.log_path is not None
    assert journal.log_path.parent == tmp_path / "a/b"


def test_the_file_is_named_by_day_and_process(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, done())
    assert journal.log_path is not None
    assert journal.log_path.name.startswith("2026-11-22-")
    assert journal.log_path.name.endswith(f"-{os.getpid()}.jsonl")


def test_two_journals_of_one_process_never_share_a_file(tmp_path: Path) -> None:
    journals = [journal_of(tmp_path, done(str(n))) for n in range(3)]
    assert len({journal.log_path for journal in journals}) == 3
    assert sorted(line["request_id"] for line in written(tmp_path)) == ["0", "1", "2"]


def test_closing_twice_is_safe_and_an_event_after_it_is_still_written(tmp_path: Path, our_threads: Threads) -> None:
    journal = journal_of(tmp_path, done("a"))
    first = journal.log_path
    journal.close()
    assert journal.log_path == first
    journal.observe(done("late"))
    assert lines_of(journal.log_path)[-1]["request_id"] == "late"
    journal.close()
    assert our_threads() == []


def test_midnight_in_utc_begins_a_file_and_a_clock_set_back_begins_none(tmp_path: Path) -> None:
    wall = Wall(datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC))
    journal = Journal(logs(tmp_path), wall=wall)
    for shift in (0, 2, -2, 2):
        wall.now += timedelta(seconds=shift)
        journal.observe(done())
    journal.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name[:10] for path in files] == ["2026-11-22", "2026-11-23"]
    assert [len(lines_of(path)) for path in files] == [1, 3]


def test_a_file_goes_on_in_parts_that_keep_the_limit_and_every_line(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, *(done(f"r{n:04}") for n in range(200)), max_file_bytes=4096)
    files = list(tmp_path.iterdir())
    assert max(path.stat().st_size for path in files) <= 4096
    assert journal.log_path is not None
    assert journal.log_path.name.endswith(f"{os.getpid()}.{len(files) - 1}.jsonl")
    assert sorted(line["request_id"] for line in written(tmp_path)) == [f"r{n:04}" for n in range(200)]


def test_a_line_longer_than_a_file_gets_a_file_of_its_own(tmp_path: Path) -> None:
    journal_of(tmp_path, done("a"), done("b", agent="x" * 9000), done("c"), max_file_bytes=4096)
    assert sorted(len(lines_of(path)) for path in tmp_path.iterdir()) == [1, 1, 1]


def test_a_file_that_somebody_removed_is_followed_by_another(tmp_path: Path) -> None:
    journal = Journal(logs(tmp_path), wall=Wall())
    journal.observe(done("a"))
    journal.flush()
    assert journal.log_path is not None
    journal.log_path.unlink()
    journal.observe(done("b"))
    journal.close()
    assert [line["request_id"] for line in written(tmp_path)] == ["b"]


def test_text_is_for_the_owner_alone(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, done(prompt=[{"role": "user", "content": "q"}], answer="a"), text=True)
    assert journal.log_path is not None
    assert journal.log_path.stat().st_mode & 0o077 == 0


# --- retention ------------------------------------------------------------------------------------------------


def old_file(folder: Path, name: str, size: int = 100) -> Path:
    path = folder / name
    path.write_bytes(b'{"ts":"' + b"x" * (size - 7))
    return path


def test_files_older_than_keep_days_go_when_a_file_is_opened(tmp_path: Path) -> None:
    gone = old_file(tmp_path, "2026-11-19-host-1.jsonl")
    kept = old_file(tmp_path, "2026-11-20-host-1.3.jsonl")
    journal_of(tmp_path, done(), keep_days=2)
    assert not gone.exists()
    assert kept.exists()


def test_the_oldest_files_go_until_keep_bytes_is_kept(tmp_path: Path) -> None:
    files = [old_file(tmp_path, f"2026-11-{day}-host-7-2.jsonl", 2000) for day in (18, 19, 20, 21)]
    journal_of(tmp_path, done(), keep_bytes=4096)
    assert [path.exists() for path in files] == [False, False, True, True]


def test_what_is_no_journal_file_is_never_removed(tmp_path: Path) -> None:
    aim = tmp_path / "aim"
    aim.mkdir()
    others = [
        old_file(tmp_path, "2020-01-01.jsonl"),
        old_file(tmp_path, "2020-01-01-host-1.jsonl.gz"),
        old_file(tmp_path, "2020-01-99-host-1.jsonl"),
        old_file(tmp_path, "notes.jsonl"),
        tmp_path / "2020-01-01-results-1.jsonl",
        tmp_path / "2020-01-01-link-1.jsonl",
        tmp_path / "2020-01-01-folder-1.jsonl",
    ]
    others[4].write_text('{"prompt": "mine"}\n')
    others[5].symlink_to(old_file(aim, "2020-01-01-host-1.jsonl"))
    others[6].mkdir()
    journal_of(tmp_path, done(), keep_days=1, keep_bytes=4096)
    assert all(path.exists() for path in others)


# --- a disk that fails ----------------------------------------------------------------------------------------


class Disk:
    """os.write of a disk that can be full, in the midst of a line."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if not self.full:
            return os.write(descriptor, data)
        if len(data) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[: len(data) // 2])


def writer_on(folder: Path, disk: Callable[[int, memoryview], int], *, most_waiting: int = 100) -> Writer:
    files = JournalFiles(folder, logs(folder), write=disk)
    return Writer(files, str(folder), wall=Wall(), most_waiting=most_waiting)


def test_lines_wait_for_a_full_disk_and_no_torn_one_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    writer = writer_on(tmp_path, disk)
    writer.take(done("a"))
    writer.flush()
    disk.full = True
    for name in "bc":
        writer.take(done(name))
        writer.flush()
        assert [line["request_id"] for line in written(tmp_path)] == ["a"]
    disk.full = False
    writer.take(done("d"))
    writer.close()
    assert [line["request_id"] for line in written(tmp_path)] == ["a", "b", "c", "d"]
    assert writer.lost == 0
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(tmp_path) in warnings[0].getMessage()
    assert "No space left on device" in warnings[0].getMessage()


def test_lines_beyond_what_may_wait_are_lost_and_a_line_says_how_many(tmp_path: Path) -> None:
    disk = Disk()
    disk.full = True
    writer = writer_on(tmp_path, disk, most_waiting=10)
    writer.take(done("0"))
    writer.flush()  # it is encoded now, and waits there
    for n in range(1, 15):
        writer.take(done(str(n)))
    assert writer.lost == 4
    disk.full = False
    writer.close()
    lines = written(tmp_path)
    assert [line.get("request_id") for line in lines] == [*map(str, range(11)), None]
    assert lines[-1] == {"ts": "2026-11-22T12:00:00.250000Z", "event": "lines_lost", "lines": 4}


def test_what_a_full_disk_never_took_is_counted_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.full = True
    writer = writer_on(tmp_path, disk)
    writer.take(done("a"))
    writer.flush()
    writer.take(done("b"))
    writer.close()
    assert writer.lost == 2
    assert written(tmp_path) == []
    assert "lost 2 lines" in caplog.text


def test_a_line_that_cannot_be_taken_back_ends_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk = Disk()
    writer = writer_on(tmp_path, disk)
    monkeypatch.setattr(os, "ftruncate", refuse)
    disk.full = True
    writer.take(done("a"))
    writer.flush()
    disk.full = False
    writer.close()
    torn, whole = sorted(tmp_path.iterdir(), key=lambda path: path.name.endswith(".1.jsonl"))
    assert not torn.read_bytes().endswith(b"\n")
    assert [line["request_id"] for line in lines_of(whole)] == ["a"]


def test_a_file_in_the_place_of_the_folder_is_one_warning_with_a_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "logs"
    place.write_text("not a folder")
    journal = Journal(logs(place))
    for n in range(3):
        journal.observe(done(str(n)))
        journal.flush()
    assert len(caplog.records) == 1
    assert f"cannot be written in {place}: File exists" in caplog.text
    assert "[logs] dir" in caplog.text
    journal.close()
    assert (journal.lost, journal.log_path) == (3, None)
    assert place.read_text() == "not a folder"


def test_a_file_whose_handle_went_bad_is_followed_by_another(tmp_path: Path) -> None:
    writer = writer_on(tmp_path, os.write)
    writer.take(done("a"))
    writer.flush()
    descriptor = writer.files._descriptor
    assert descriptor is not None
    os.close(descriptor)  # as a network folder does that was away for a while
    writer.take(done("b"))
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert writer.lost == 0


def test_a_disk_that_hangs_holds_up_neither_the_gateway_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, our_threads: Threads
) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang(descriptor: int, data: memoryview) -> int:
        hanging.set()
        assert go_on.wait(60)
        return os.write(descriptor, data)

    monkeypatch.setattr(writing, "LONGEST_DELAY", 0.0)
    monkeypatch.setattr(writing, "PATIENCE", 0.01)
    writer = writer_on(tmp_path, hang)
    writer.take(done("a"))
    assert hanging.wait(60)
    writer.take(done("b"))
    (thread,) = our_threads()
    writer.close()
    assert "hangs" in caplog.text
    go_on.set()
    thread.join(60)
    assert [line["request_id"] for line in written(tmp_path)] == ["a", "b"]


# --- the thread -----------------------------------------------------------------------------------------------


def test_lines_are_written_without_being_asked_for(tmp_path: Path) -> None:
    arrived = threading.Semaphore(0)

    def tell(descriptor: int, data: memoryview) -> int:
        size = os.write(descriptor, data)
        arrived.release()
        return size

    writer = writer_on(tmp_path, tell, most_waiting=5000)
    for n in range(2):  # from the start, and once more out of idleness
        writer.take(done(str(n)))
        assert arrived.acquire(timeout=60)
    writer.close()
    assert [line["request_id"] for line in written(tmp_path)] == ["0", "1"]


def test_many_waiting_lines_do_not_wait_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = threading.Event()

    def tell(descriptor: int, data: memoryview) -> int:
        size = os.write(descriptor, data)
        if b"last" in bytes(data):
            arrived.set()
        return size

    monkeypatch.setattr(writing, "LONGEST_DELAY", 3600.0)
    writer = writer_on(tmp_path, tell, most_waiting=5000)
    for n in range(4 * writing.ENOUGH):  # the thread may have taken some of the first ones at once
        writer.take(done("last" if n == writing.ENOUGH else str(n)))
    assert arrived.wait(60)
    writer.close()


def test_events_of_many_threads_are_all_there(tmp_path: Path, our_threads: Threads) -> None:
    journal = Journal(logs(tmp_path))
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        for n in range(500):
            journal.observe(done(f"{name}-{n}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert len({line["request_id"] for line in written(tmp_path)}) == 2000
    assert our_threads() == []


def test_a_journal_that_nobody_closes_ends_its_thread_and_keeps_its_lines(tmp_path: Path, our_threads: Threads) -> None:
    journal = Journal(logs(tmp_path))
    journal.observe(done())
    (thread,) = our_threads()
    del journal
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    assert len(written(tmp_path)) == 1


def test_where_no_thread_can_start_lines_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    journal = Journal(logs(tmp_path))
    journal.observe(done())
    assert len(written(tmp_path)) == 1
    journal.close()


def test_after_a_fork_the_child_writes_a_file_of_its_own_and_leaves_its_parents_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(logs(tmp_path))
    journal.observe(done("before"))
    parent = journal._writer
    monkeypatch.setattr(os, "getpid", lambda: parent.pid + 1)
    journal.flush()
    parent.close()  # neither of them writes what is the parent's
    journal.observe(done("child"))
    journal.close()
    assert [line["request_id"] for line in lines_of(journal.log_path)] == ["child"]
    monkeypatch.undo()
    parent.close()
    assert sorted(line["request_id"] for line in written(tmp_path)) == ["before", "child"]


def test_a_closed_journal_leaves_nothing_behind_in_multiprocessing(tmp_path: Path) -> None:
    registry: dict[object, object] = util._finalizer_registry  # type: ignore[attr-defined]
    before = set(registry)
    journal = Journal(logs(tmp_path))
    journal.observe(done())
    assert len(set(registry) - before) == 1
    journal.close()
    assert set(registry) == before
