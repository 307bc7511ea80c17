"""Victims from the outside: the process that forks them, and the books that are kept of a job that they work on."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from fakes.job_victim import CALLS, fate
from llm_gateway.errors import JobError
from llm_gateway.jobs import Ledger, statements
from llm_gateway.jobs.export import all_results
from llm_gateway.jobs.sqlite import SqliteView, reading

ROWS = 40


class Victims:
    """The process that forks victims."""

    def __init__(self, python: Path, *roles: str) -> None:
        tests = Path(__file__).parents[1]
        self._server = subprocess.Popen(  # noqa: S603 - our own script
            [python, "-m", "fakes.job_victim", *roles],
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


def write_input(folder: Path) -> None:
    folder.mkdir()
    rows = [json.dumps({"prompt": f"row {number}", "model": "gpt-4o-mini"}) for number in range(1, ROWS + 1)]
    rows[6] = "nonsense"
    (folder / "in.jsonl").write_text("\n".join(rows))


class Books:
    """What is known of one job from outside, and must never get less."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin()
        self.results: dict[int, bytes] = {}
        self.lines: set[bytes] = set()

    def begin(self) -> None:
        """Write what the job works on."""
        write_input(self.folder)

    def made(self) -> Counter[str]:
        """Return the provider's own books: how often each row was asked."""
        log = self.folder / CALLS
        return Counter(log.read_text().split() if log.exists() else [])

    def audit(self) -> Ledger | None:
        """Compare state, output and the provider's ledger with each other and with what was known before."""
        try:
            state = reading(self.folder / "out.jsonl.job")
        except JobError:  # not begun
            assert not self.results
            assert not self.made()
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
        made = self.made()
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
