"""A job whose process is killed, at named points and at random: nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fakes.job_victim import CALLS, POINTS, fate
from fakes.postgres_server import PostgresServer
from llm_gateway.errors import JobError
from llm_gateway.jobs import Ledger, statements
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.export import all_results
from llm_gateway.jobs.postgres import viewing
from llm_gateway.jobs.sqlite import SqliteView, reading

ROWS = 40
KILLS = int(os.environ.get("LLM_GATEWAY_KILLS", "208"))  # of all parts together
PARTS = 4
SHARED_JOBS = max(3, KILLS // 70)  # each with one kill or none
LONGEST_DELAY = 0.25  # seconds a victim lives that is killed at random
MOST_PASSES = {"half_written": 8, "written": 8, "synced": 2, "locked": 1, "called": 45, "answered": 35}


class Victims:
    """The process that forks victims."""

    def __init__(self, python: Path) -> None:
        tests = Path(__file__).parents[1]
        self._server = subprocess.Popen(  # noqa: S603 - our own script
            [python, "-m", "fakes.job_victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        )

    def run(
        self, folder: Path, point: str | None = None, nth: int = 1, delay: float = 0.0, **more: Any
    ) -> dict[str, int]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        command = {"folder": str(folder), "point": point, "nth": nth, "delay": delay, **more}
        self._server.stdin.write(f"{json.dumps(command)}\n")
        self._server.stdin.flush()
        ended: dict[str, int] = json.loads(self._server.stdout.readline())
        bug = folder / "bug.log"
        assert not bug.exists(), bug.read_text()
        return ended

    def close(self) -> None:
        self._server.communicate()
        assert self._server.returncode == 0


@pytest.fixture(scope="module")
def victims(warm: Path) -> Iterator[Victims]:
    serving = Victims(warm / "python")
    yield serving
    serving.close()


def write_input(folder: Path) -> None:
    folder.mkdir()
    rows = [json.dumps({"prompt": f"row {number}", "model": "gpt-4o-mini"}) for number in range(1, ROWS + 1)]
    rows[6] = "nonsense"
    (folder / "in.jsonl").write_text("\n".join(rows))


class Books:
    """What is known of one job from outside, and must never get less."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_input(folder)
        self.results: dict[int, bytes] = {}
        self.lines: set[bytes] = set()

    def audit(self) -> Ledger | None:
        """Compare state, output and the provider's ledger with each other and with what was known before."""
        try:
            state = reading(self.folder / "out.jsonl.job")
        except JobError:  # not begun
            assert not self.results
            assert not (self.folder / CALLS).exists()
            return None
        with state as connection:
            found = list(all_results(SqliteView(connection, self.folder)))
            ledger, noted = statements.ledger(connection), statements.facts(connection).get("output")
            calls = dict(connection.execute("SELECT key, calls FROM rows"))
        assert len({result.number for result in found}) == len(found)
        results = {result.number: result.body for result in found}
        assert self.results.items() <= results.items()  # nothing that was recorded is lost or changed
        self.results = results
        assert ledger.adds_up
        log = self.folder / CALLS
        made = Counter(log.read_text().split() if log.exists() else [])
        assert all(calls[name] >= number for name, number in made.items())  # recorded before it was made
        assert ledger.answered + ledger.refused <= made.total() <= ledger.calls
        if noted is not None:
            self._audit_output(noted)
        return ledger

    def _audit_output(self, noted: dict[str, Any]) -> None:
        """What the state knows to be written is there, and every whole line is that of a result."""
        output = self.folder / "out.jsonl"
        text = output.read_bytes() if output.exists() else b""
        assert len(text) >= noted["place"]
        assert text[: noted["place"]].endswith(b"\n") or not noted["place"]
        whole = text.split(b"\n")[:-1]
        assert len(set(whole)) == len(whole)
        self.lines |= set(whole)

    def audit_the_end(self) -> None:
        ledger = self.audit()
        assert ledger is not None
        assert (ledger.pending, ledger.leased, ledger.rows, ledger.malformed) == (0, 0, ROWS, 1)
        assert ledger.answered == ledger.done == ROWS - 1 - sum(ledger.failed.values())
        assert set(ledger.failed) == {"rejected"}
        text = (self.folder / "out.jsonl").read_bytes()
        assert self.lines <= set(text.splitlines())  # a line that a reader saw stays
        lines = [json.loads(line) for line in text.splitlines()]
        assert sorted(line["line"] for line in lines) == list(range(1, ROWS + 1))
        for line in lines:
            if line["line"] != 7:
                assert line["status"] == ("error" if fate(line["request_id"]) == "refused" else "ok")
            if line["status"] == "ok":
                assert line["response"]["content"].startswith(f"{line['request_id']} by ")
                assert json.dumps(line["response"]) == json.dumps(json.loads(self.results[line["line"]]))


def passes(point: str, rng: Random) -> int:
    return rng.randint(1, MOST_PASSES.get(point, 30))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_job_that_is_killed_again_and_again_loses_and_doubles_nothing(
    part: int, victims: Victims, tmp_path: Path
) -> None:
    rng = Random(part)
    kills = Counter[str]()
    jobs = 0
    while kills.total() < KILLS // PARTS:
        books = Books(tmp_path / f"job{jobs}")
        jobs += 1
        while True:
            point = rng.choice([*POINTS, "random", "random"])
            ended = victims.run(books.folder, point, passes(point, rng), rng.uniform(0.0, LONGEST_DELAY))
            books.audit()
            if "code" in ended:
                break
            assert ended == {"signal": 9}
            kills[point] += 1
        assert victims.run(books.folder) == {"code": 1}  # some rows are refused
        books.audit_the_end()
    assert len(kills) > len(POINTS) / 2, kills


def test_every_named_point_is_passed(victims: Victims, tmp_path: Path) -> None:
    for point in POINTS:
        books = Books(tmp_path / point)
        assert victims.run(books.folder, point) == {"signal": 9}, point
        books.audit()
        assert victims.run(books.folder) == {"code": 1}
        books.audit_the_end()


# --- several workers on one database ------------------------------------------------------------------------------


class SharedBooks:
    """The same of a job in a database, for which each folder is a host."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.address = JobAddress.of_job(url)
        write_input(folder)

    def victim(
        self, victims: Victims, role: str, *given: Any, lease_seconds: float = 0.3, **more: Any
    ) -> dict[str, int]:
        return victims.run(self.folder, *given, role=role, url=self.url, lease_seconds=lease_seconds, **more)

    def audit_the_end(self) -> Ledger:
        """Compare the database with the provider's ledger: each row ended once, each call was recorded before."""
        with viewing(self.address) as view:
            found, ledger = list(all_results(view)), view.ledger()
            assert view.workers() == []
        made = Counter((self.folder / CALLS).read_text().split())
        assert sorted(result.number for result in found) == list(range(1, ROWS + 1))
        assert ledger.adds_up
        assert (ledger.pending, ledger.leased, ledger.rows, ledger.malformed) == (0, 0, ROWS, 1)
        assert ledger.answered == ledger.done == ROWS - 1 - sum(ledger.failed.values())
        assert ledger.answered + ledger.refused <= made.total() <= ledger.calls - ledger.unsent
        for result in found:
            if result.number != 7:
                assert (result.kind is not None) == (fate(str(result.key)) == "refused")
                assert result.attempts >= made[str(result.key)] >= 1
        return ledger


def test_a_worker_that_is_killed_leaves_its_rows_to_another(
    victims: Victims, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    rng = Random(4)
    kills = Counter[str]()
    for number in range(SHARED_JOBS):
        books = SharedBooks(tmp_path / f"job{number}", f"{postgres_server.url}?job=killed-{number}")
        assert books.victim(victims, "load") == {"code": 0}
        point = rng.choice(["before_commit", "after_commit", "called", "answered", "random", "random"])
        role = rng.choice(["worker", "run"])
        ended = books.victim(victims, role, point, rng.randint(1, 12), rng.uniform(0.0, 0.15), helped=True)
        assert ended.pop("helper") == 0
        kills[point] += ended == {"signal": 9}
        books.audit_the_end()
        assert books.victim(victims, "worker") == {"code": 0}
    assert kills.total() >= SHARED_JOBS // 2, kills


def test_a_database_that_is_restarted_under_two_workers_costs_no_answer(victims: Victims, tmp_path: Path) -> None:
    server = PostgresServer()
    try:
        books = SharedBooks(tmp_path / "job", f"{server.url}?job=restarted")
        assert books.victim(victims, "load") == {"code": 0}
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(books.victim, victims, "run", lease_seconds=30.0, helped=True, gated=True)
            until(lambda: server.execute("SELECT count(*) FROM llm_gateway.workers") == [(2,)])
            server.stop()
            (books.folder / "go").touch()
            until(lambda: (books.folder / "told.log").read_text().count("Paused: The job's database") >= 2)
            server.start()
            assert running.result() == {"code": 1, "helper": 0}
        ledger = books.audit_the_end()
        assert ledger.answered + ledger.refused == len((books.folder / CALLS).read_text().split())
    finally:
        server.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
