"""A job in the batch lane whose process is killed at any step: no answer is lost, and no batch is paid twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fakes.batch_victim import MAKING, STEPS, WIRE
from fakes.emulator import Emulator
from fakes.emulator.batches import COMPLETED, Batches, Fate, Made
from fakes.emulator_thread import emulator_in_a_thread
from fakes.victims import Books, Victims
from llm_gateway.jobs import Ledger

KINDS = ("openai", "anthropic")
KILLS = int(os.environ.get("LLM_GATEWAY_BATCH_KILLS", "28"))  # of both kinds together; named points come on top
ROWS = 12
CANARY = "sk-canary-batch-killed"
POINTS = (*STEPS, *WIRE, *WIRE, "before_commit", "after_commit", "half_written", "random", "random")
MOST_PASSES = {"recorded": 5, "sending": 12, "sent": 12, "before_commit": 25, "after_commit": 25, "half_written": 3}
LONG = 150  # looks; Anthropic tells whose an orphan is only once it has ended, until then its rows wait
LONGEST_DELAY = 0.2  # seconds a victim lives that is killed at random
TOML = """
logs = { dir = false }
retry = { base_delay = 0.0 }
[providers.KIND]
base_url = "URL"
api_key = "KEY"
[models.m]
provider = "KIND"
model = "MODEL"
price = { input = 1.0, output = 2.0 }
limits = false
"""


@pytest.fixture(scope="module")
def victims(warm: Path) -> Iterator[Victims]:
    serving = Victims(warm / "python", "batches")
    yield serving
    serving.close()


@pytest.fixture
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        yield emulator


class BatchBooks(Books):
    """The same of a job whose provider is the emulator, used anew for each job.

    A batch ends as `path` says; row 5 is refused, row 6 breaks once and is answered then. `late`: a batch takes
    long and is cancelled near the job's deadline, when half of its rows are answered.
    """

    def __init__(self, folder: Path, emulator: Emulator, kind: str, *, late: bool, path: tuple[str, ...]) -> None:
        self._emulator = emulator
        self._kind = kind
        self._provider = emulator.batches = Batches()
        self._late = late
        self._path = path
        self._fates: dict[str, Fate] = {}
        emulator.ledger.clear()
        super().__init__(folder)

    def begin(self) -> None:
        self._provider.path = self._path_of
        self._provider.fate = self._fate
        self.folder.mkdir()
        rows = [{"prompt": f"r{number}", "request_id": f"r{number}", "model": "m"} for number in range(1, ROWS + 1)]
        (self.folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
        text = TOML.replace("KIND", self._kind).replace("KEY", CANARY)
        text = text.replace("MODEL", {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}[self._kind])
        url = self._emulator.url if self._kind == "anthropic" else f"{self._emulator.url}/v1"
        (self.folder / "llm-gateway.toml").write_text(text.replace("URL", url))

    def _path_of(self, _made: Made) -> tuple[str, ...]:
        return ("in_progress",) * LONG + ("completed",) if self._late else self._path

    def _fate(self, told: str, state: str) -> Fate:
        number = int(told.rpartition("-")[2])
        if told not in self._fates:
            broke_before = any(name.endswith("-6") and fate == "broken" for name, fate in self._fates.items())
            if number == 5:
                self._fates[told] = "refused"
            elif number == 6 and not broke_before:
                self._fates[told] = "broken"
            elif state in {"expired", "cancelled"} and number % 2:
                self._fates[told] = "expired" if state == "expired" else "cancelled"
            else:
                self._fates[told] = "ok"
        return self._fates[told]

    def made(self) -> Counter[str]:
        """Return what was asked in batches and has come to an end, and all calls of the standard lane."""
        called = Counter(str(call.body["messages"][-1]["content"]) for call in list(self._emulator.ledger))
        served = (name for name, fate in dict(self._fates).items() if fate in {"ok", "refused", "broken"})
        return called + Counter(f"r{name.rpartition('-')[2]}" for name in served)

    def run(self, victims: Victims, *given: Any) -> dict[str, int]:
        return victims.run(self.folder, *given, role="batch", late=self._late)

    def audit_the_end(self) -> None:
        ledger = self.audit()
        assert isinstance(ledger, Ledger)
        refused = sum(ledger.failed.values())  # row 5, unless it was asked in the standard lane
        assert refused <= 1
        assert (ledger.pending, ledger.leased, ledger.rows, ledger.done) == (0, 0, ROWS, ROWS - refused)
        assert set(self._provider.paid.values()) <= {1}  # in batches nothing is paid twice
        twice = self.made().total() - ledger.answered - ledger.refused
        assert 0 <= twice <= ledger.in_doubt  # calls whose answer died with the process, and the ledger tells them
        lines = (self.folder / "out.jsonl").read_bytes().splitlines()
        assert self.lines <= set(lines)
        told = [json.loads(line) for line in lines]
        assert sorted(line["line"] for line in told) == list(range(1, ROWS + 1))
        assert Counter(line["status"] for line in told)["error"] == refused
        for line in told:
            if line["status"] == "ok":
                assert json.dumps(line["response"]) == json.dumps(json.loads(self.results[line["line"]]))
        for file in self.folder.iterdir():
            assert file.name == "llm-gateway.toml" or CANARY.encode() not in file.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_at_each_step_of_a_batch_the_next_run_pays_nothing_again(
    kind: str, victims: Victims, provider: Emulator, tmp_path: Path
) -> None:
    for late, point in [*((False, step) for step in MAKING), (True, "before_cancel"), (True, "cancelled")]:
        books = BatchBooks(tmp_path / point, provider, kind, late=late, path=COMPLETED)
        assert books.run(victims, point) == {"signal": 9}, point
        books.audit()
        if point == "made":
            assert books.run(victims, "adopted") == {"signal": 9}
            books.audit()
        assert "code" in books.run(victims)
        books.audit_the_end()
        if not late:
            assert books.made() == Counter({f"r{number}": 1 for number in range(1, ROWS + 1)} | {"r6": 2}), point


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_in_batches_that_is_killed_again_and_again_loses_and_doubles_nothing(
    kind: str, victims: Victims, provider: Emulator, tmp_path: Path
) -> None:
    rng = Random(KINDS.index(kind))
    kills = Counter[str]()
    jobs = 0
    while kills.total() < KILLS // len(KINDS):
        path = rng.choice([COMPLETED, ("in_progress", "expired"), ("in_progress",) * 5 + ("completed",)])
        books = BatchBooks(tmp_path / f"job{jobs}", provider, kind, late=jobs % 3 == 2, path=path)
        jobs += 1
        while True:
            point = rng.choice(POINTS)
            nth = rng.randint(1, MOST_PASSES.get(point, 2))
            ended = books.run(victims, point, nth, rng.uniform(0.0, LONGEST_DELAY))
            books.audit()
            if "code" in ended:
                break
            assert ended == {"signal": 9}
            kills[point] += 1
        assert "code" in books.run(victims)
        books.audit_the_end()
    assert len(kills) >= min(6, KILLS // len(KINDS) // 2), kills
