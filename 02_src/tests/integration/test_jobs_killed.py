"""A job whose process is killed, at named points and at random: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
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
from fakes.victims import ROWS, Books, Victims, write_input
from llm_gateway.jobs import Ledger
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.export import all_results
from llm_gateway.jobs.postgres import viewing

KILLS = int(os.environ.get("LLM_GATEWAY_KILLS", "208"))  # of all parts together
PARTS = 4
SHARED_JOBS = max(3, KILLS // 70)  # each with one kill or none
AT_WORK = "SELECT count(DISTINCT worker) FROM llm_gateway.rows WHERE worker IS NOT NULL"  # who has leased rows
LONGEST_DELAY = 0.25  # seconds a victim lives that is killed at random
MOST_PASSES = {"half_written": 8, "written": 8, "synced": 2, "locked": 1, "called": 45, "answered": 35}


@pytest.fixture(scope="module")
def victims(warm: Path) -> Iterator[Victims]:
    serving = Victims(warm / "python")
    yield serving
    serving.close()


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
            until(lambda: server.execute(AT_WORK) == [(2,)])
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
