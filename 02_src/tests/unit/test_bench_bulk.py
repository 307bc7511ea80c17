"""The bench of bulk jobs judges as its page says it does."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from bench import bulk
from bench.bulk_run import Task, Took, gateway_config, toml

from llm_gateway.config import load_config


def took(*, cpu_s: float = 40.0, seconds: float = 60.0, rows: int = 1000, last_mib: float = 100.0) -> Took:
    samples = [(number * rows // 100, 100.0 if number < 90 else last_mib) for number in range(101)]
    return Took(seconds=seconds, cpu_s=cpu_s, rows=rows, peak_mib=last_mib, samples=samples)


def results(durable: Took, plain: Took) -> bulk.Results:
    limited = took(seconds=1.0, rows=2000, last_mib=durable.peak_mib)
    return bulk.Results(rows=2000, pair_rows=1000, peer_rows=10, pairs=[(durable, plain)], limited=limited)


def test_what_was_promised_of_bulk_jobs_is_judged_by_runs_side_by_side() -> None:
    kept = bulk.promises_of(results(took(cpu_s=44.0), took()), 60_000)
    assert [each.kept for each in kept] == [True] * 6
    missed = bulk.promises_of(results(took(cpu_s=47.0, seconds=70.0, last_mib=120.0, rows=999), took()), 60_000)
    assert [each.kept for each in missed] == [False, False, False, True, True, False]


def test_the_page_of_bulk_jobs_shows_a_row_for_every_run(tmp_path: Path) -> None:
    found = results(took(), took())
    found.peers = {"abatch": took()}
    found.longest = took(rows=1_000_000)
    sizes = [len(table.rows) for table in bulk.tables(found, 60_000)]
    assert sizes == [2, 1, 1, 10, 1]
    assert list(bulk.lines_of(found)) == ["job of 1,000,000 rows"]
    quick = Took(seconds=0.1, cpu_s=0.1, rows=200, peak_mib=50.0, samples=[(0, 40.0)])
    assert bulk.lines_of(bulk.Results(rows=200, pair_rows=0, peer_rows=0, limited=quick, longest=None)) == {
        "job of 200 rows": [(200, 50.0)]
    }
    bulk.write_rows(tmp_path / "rows.jsonl", 3)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["row-0", "row-1", "row-2"]


@pytest.mark.parametrize("rpm", [None, 600])
def test_both_ways_through_the_gateway_have_one_configuration(rpm: int | None, tmp_path: Path) -> None:
    task = Task(url="http://127.0.0.1:1/v1", source=tmp_path / "in", output=tmp_path / "out", rpm=rpm)
    config = gateway_config(task)
    assert load_config(tomllib.loads(toml(config))) == load_config(config)
