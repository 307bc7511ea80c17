"""Reading a journal: every line of every file, once, whatever else stands in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from llm_gateway.errors import ConfigurationError
from llm_gateway.events import AttemptFailed, BatchClosed, RequestDone, RetryScheduled
from llm_gateway.journal.files import journal_files
from llm_gateway.journal.lines import JOURNALLED, LINES_LOST
from llm_gateway.report.figures import Figures, JournalData

LONGEST_LINE = 64 * 1024 * 1024  # bytes; what is longer is no line of a journal


def read_journal(where: Path | Iterable[Path]) -> JournalData:
    """Add up the journal in a folder, or the one in the given files.

    A line that is torn, or is no journal line, is counted and skipped. Raises ConfigurationError, in one sentence, if
    there is no such folder, or no journal in it.
    """
    data = JournalData()
    for path in _files_in(where) if isinstance(where, Path) else where:
        _read_file(path, data)
        data.files += 1
    if not data.lines:
        raise ConfigurationError(f"No journal line can be read in {_named(where)}; give the folder of [logs] dir.")
    return data


def _files_in(where: Path) -> list[Path]:
    if where.is_file():
        return [where]
    try:
        files = [file.path for file in journal_files(where)]
    except FileNotFoundError:
        raise ConfigurationError(f"There is no folder {where}; give the folder of [logs] dir.") from None
    except OSError as error:
        raise ConfigurationError(f"The folder {where} cannot be read: {error.strerror}.") from None
    if not files:
        raise ConfigurationError(
            f"There is no journal in {where}; a gateway begins one in the folder of [logs] dir with its first request."
        )
    return files


def _named(where: Path | Iterable[Path]) -> str:
    return str(where) if isinstance(where, Path) else "these files"


def _read_file(path: Path, data: JournalData) -> None:
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                _read_line(line, data)
    except FileNotFoundError:
        return  # removed as too old since we listed it
    except OSError as error:
        raise ConfigurationError(f"The journal {path} cannot be read: {error.strerror}.") from None


def _read_line(line: bytes, data: JournalData) -> None:
    """Count one line, or that it says nothing; a line is counted wholly or not at all."""
    try:
        record = orjson.loads(line)
        when = datetime.fromisoformat(record["ts"]).timestamp()
        COUNTERS[record["event"]](record, when, data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        data.unread += 1
        return
    data.lines += 1
    data.first, data.last = min(data.first, when), max(data.last, when)


def _item_done(record: Mapping[str, Any], when: float, data: JournalData) -> None:
    model, priority, outcome = str(record["model"]), record["priority"], str(record["outcome"])
    wait, took, attempt = float(record["queue_wait"]), float(record["provider_time"]), int(record["attempt"])
    sent, answered = int(record.get("input_tokens", 0)), int(record.get("output_tokens", 0))
    cost = None if record.get("cost_usd") is None else float(record["cost_usd"])
    data.waits[priority].add(wait)  # the last that can fail: nothing is counted by half
    state = outcome if outcome in {"ok", "cancelled"} else "failed"
    for figures in (data.total, data.model(model)):
        figures.requests += 1
        setattr(figures, state, getattr(figures, state) + 1)
        figures.attempts += attempt
        figures.input_tokens += sent
        figures.output_tokens += answered
        _count_answer(figures, state, cost, None if record.get("price_lane") == "batch" else wait + took)
    if state == "failed":
        data.failures[outcome] += 1
    data.timeline.at(when).update({state: 1, "input_tokens": sent, "output_tokens": answered})


def _count_answer(figures: Figures, state: str, cost: float | None, latency: float | None) -> None:
    if cost is not None:
        figures.cost += cost
    if state == "ok":
        if latency is not None:  # of a provider's batch, which takes hours
            figures.latency.add(latency)
        if cost is None:
            figures.unpriced += 1
        else:
            figures.priced += 1


def _error(record: Mapping[str, Any], when: float, data: JournalData) -> None:
    model, kind = str(record["model"]), str(record["kind"])
    data.errors[kind] += 1
    data.total.errors += 1
    data.model(model).errors += 1
    data.timeline.at(when)[f"error:{kind}"] += 1


def _retry_scheduled(record: Mapping[str, Any], when: float, data: JournalData) -> None:
    data.model(str(record["model"])).retries += 1
    data.total.retries += 1
    data.timeline.at(when)["retries"] += 1


def _batch_closed(record: Mapping[str, Any], _when: float, data: JournalData) -> None:
    data.batches[str(record["why"]), int(record["size"])] += 1


def _lines_lost(record: Mapping[str, Any], _when: float, data: JournalData) -> None:
    data.lost += int(record["lines"])


def _only_seen(_record: Mapping[str, Any], _when: float, _data: JournalData) -> None:
    """Count nothing: the line is known, and adds to no figure."""


Counting = Callable[[Mapping[str, Any], float, JournalData], None]
COUNTERS: Mapping[str, Counting] = {
    **{cls.name: _only_seen for cls in JOURNALLED},
    RequestDone.name: _item_done,
    AttemptFailed.name: _error,
    RetryScheduled.name: _retry_scheduled,
    BatchClosed.name: _batch_closed,
    LINES_LOST: _lines_lost,
}
