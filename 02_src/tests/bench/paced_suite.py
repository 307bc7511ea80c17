"""What the benches with limits share: a server with true limits, a subject in a process of its own, both ledgers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from bench.measure import quantile
from bench.paced_subjects import Told
from bench.suite import environment, output


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run, as its callers and the server saw it, from the instant on that counts. Durations in seconds."""

    took: float  # from the first request to the last answer
    offered: int
    failed: dict[str, int]  # by the error's name
    answered: int
    calls: int  # that the server saw
    refused: int  # of those, with 429
    calls_before: int  # while the subject learned
    refused_before: int
    high_offered: int
    high_waits: list[float]  # beyond the answer's own
    high_queued: list[float]  # of that, in the subject's own queue, where it tells
    served: dict[str, int]  # tokens by agent

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.calls)

    def high_ms(self, share: float) -> float:
        """Return a quantile of the waits of HIGH in milliseconds; infinite if that many had no answer."""
        lost = [float("inf")] * (self.high_offered - len(self.high_waits))
        return quantile([*self.high_waits, *lost], share) * 1e3


def jain(shares: Iterable[float]) -> float:
    """Return Jain's index of fairness: 1 for equal shares, 1/n where one of n has all."""
    values = list(shares)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@contextmanager
def limited_server(*, rpm: float | None = None, tpm: float | None = None) -> Iterator[str]:
    """Run the server in a process of its own; yields its address."""
    limits = [f"--{name}={limit}" for name, limit in (("rpm", rpm), ("tpm", tpm)) if limit]
    command = [sys.executable, "-m", "bench.limited_server", *limits]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def run(python: Path, subject: str, told: Told, address: str, **options: Any) -> Outcome:
    """Run one subject against the server at `address`, and put together what both noted."""
    more = [f"--{name}={value}" for name, value in options.items()]
    command = [str(python), "-m", "bench.paced_run", subject, json.dumps(asdict(told)), *more]
    seen = json.loads(output(command).splitlines()[-1])
    with urlopen(f"{address}/ledger") as answer:  # noqa: S310 - our own server
        ledger = json.load(answer)
    return outcome_of(seen, ledger)


def refused_at(address: str) -> int:
    """Return how many calls the server at `address` has refused with 429."""
    with urlopen(f"{address}/refused") as answer:  # noqa: S310 - our own server
        return int(json.load(answer))


def outcome_of(seen: dict[str, Any], ledger: dict[str, list[Any]]) -> Outcome:
    """Put together what the callers saw and what the server noted."""
    rows = list(zip(ledger["arrived"], ledger["statuses"], strict=True))
    before = [status for arrived, status in rows if arrived < seen["began"]]
    counted = [status for arrived, status in rows if arrived >= seen["began"]]
    return Outcome(
        took=seen["ended"] - seen["began"],
        offered=seen["offered"],
        failed=seen["failed"],
        answered=seen["answered"],
        calls=len(counted),
        refused=counted.count(429),
        calls_before=len(before),
        refused_before=before.count(429),
        high_offered=seen["high_offered"],
        high_waits=seen["high_waits"],
        high_queued=seen["high_queued"],
        served=seen["served"],
    )
