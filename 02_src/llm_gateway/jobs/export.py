"""Results of a job as a table: a row for each row of the input, in its order, written whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_gateway.errors import JobError
from llm_gateway.jobs.encoding import from_json, to_json
from llm_gateway.jobs.records import StoredResult
from llm_gateway.jobs.tables import DELIMITERS, PARQUET, Table, polars
from llm_gateway.jobs.views import JobView

AT_ONCE = 512
TYPES: Mapping[str, str] = {
    "answer": "String",
    "status": "String",  # ok, error, or pending
    "error": "String",
    "finish_reason": "String",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "cost_usd": "Float64",
    "attempts": "Int64",
}
OWN = {"line": "Int64", "request_id": "String"}  # where the input is no table
JSON_TYPES = {"string": "String", "integer": "Int64", "number": "Float64", "boolean": "Boolean"}
PREFIX = "llm_"  # before the columns of the answers where the input has columns of the same names


class Columns:
    """The columns of the results, and a result as their values.

    Answers that follow a schema of an object are spread: a column for each of its properties.
    """

    def __init__(self, taken: Iterable[str], schema: Mapping[str, Any] | None) -> None:
        """Choose names that are not `taken`."""
        properties = (schema or {}).get("properties") or {}
        self._properties = {
            name: JSON_TYPES.get(str(told.get("type")) if isinstance(told, dict) else "", "")
            for name, told in properties.items()
        }
        wanted = [*TYPES, *self._properties]
        clash = len(set(wanted)) < len(wanted) or not set(wanted).isdisjoint(taken)
        # Both kinds get a prefix of their own, so that no clash is left between them.
        self._names = {name: f"{PREFIX}{name}" if clash else name for name in TYPES}
        self._spread = {name: f"{PREFIX}answer_{name}" if clash else name for name in self._properties}
        self.types = {self._names[name]: kind for name, kind in TYPES.items()}
        self.types |= {self._spread[name]: kind or "String" for name, kind in self._properties.items()}

    def values(self, result: StoredResult | None) -> dict[str, Any]:
        """Return the values of a row; of one that has not ended where there is no result."""
        plain: dict[str, Any] = dict.fromkeys(TYPES)
        plain["status"] = "pending"
        spread: dict[str, Any] = dict.fromkeys(self._properties)
        if result is not None:
            told = from_json(result.body)
            plain |= {
                "attempts": result.attempts,
                "input_tokens": result.input_tokens,
                "output_tokens": result.output_tokens,
                "cost_usd": None if result.unpriced else result.cost_usd,
            }
            if result.kind is None:
                plain |= {"status": "ok", "answer": told["content"], "finish_reason": told["finish_reason"]}
                spread = self._spread_of(told["content"])
            else:
                plain |= {"status": "error", "error": f"{result.kind}: {told['message']}"}
        return {self._names[name]: value for name, value in plain.items()} | {
            self._spread[name]: value for name, value in spread.items()
        }

    def _spread_of(self, answer: str) -> dict[str, Any]:
        if not self._properties:
            return {}
        value = from_json(answer.encode())  # it was checked against the schema
        fields = value if isinstance(value, dict) else {}
        return {
            name: fields.get(name) if kind or fields.get(name) is None else to_json(fields[name]).decode()
            for name, kind in self._properties.items()
        }


def all_results(view: JobView, *, by_number: bool = False) -> Iterator[StoredResult]:
    """Yield every result, in the order of recording or of the input."""
    read = view.results_by_number if by_number else view.results
    after = 0
    while found := read(after, AT_ONCE):
        yield from found
        after = found[-1].number if by_number else found[-1].id


def export_table(view: JobView, target: Path, *, source: Path | None, schema: Mapping[str, Any] | None) -> int:
    """Write a CSV or Parquet file and return how many rows it has; `source` is the input if that is a table.

    Blocks. Raises GatewayError for a file that cannot be written, or a source that cannot be read.
    """
    table = Table(source) if source is not None else None
    columns = Columns(table.columns if table else OWN, schema)
    found = _Results(view)
    parquet = target.suffix.lower() == PARQUET
    if table is None:
        numbers = range(1, view.last_number() + 1)
        rows = (
            {"line": row.number, "request_id": row.key} | columns.values(row) for row in map(found.of, numbers) if row
        )
        types = OWN | columns.types
    elif parquet and source is not None and source.suffix.lower() == PARQUET:
        rows = (columns.values(found.of(number)) for number, _ in _numbered(table))
        types = columns.types  # its own columns are joined, types and all
    else:
        rows = (_cells(row, table.columns) | columns.values(found.of(number)) for number, row in _numbered(table))
        types = dict.fromkeys(table.columns, "String") | columns.types
    joined = (
        source if table is not None and parquet and source is not None and source.suffix.lower() == PARQUET else None
    )
    count = _Counter(rows)
    write_whole(
        target,
        lambda place: (
            _write_parquet(place, count, types, joined) if parquet else _write_csv(place, target, count, types)
        ),
    )
    return count.number


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a file beside `target`, and put it in its place. Raises JobError if it cannot be written."""
    place = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write(place)
        with place.open("rb") as file:
            os.fsync(file.fileno())
        place.replace(target)
    except OSError as error:
        raise JobError(f"The output {target} cannot be written: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):
            place.unlink()


class _Results:
    """Looks results up by number, each higher than the one before."""

    def __init__(self, view: JobView) -> None:
        self._all = all_results(view, by_number=True)
        self._next = next(self._all, None)

    def of(self, number: int) -> StoredResult | None:
        if self._next is None or self._next.number > number:
            return None
        found, self._next = self._next, next(self._all, None)
        return found


class _Counter:
    """Counts what is taken from it."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = rows
        self.number = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.number += 1
            yield row


def _numbered(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for chunk in table.chunks():
        for row in chunk:
            number += 1
            yield number, row


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: None if row.get(name) is None else str(row[name]) for name in names}


def _write_csv(place: Path, target: Path, rows: Iterable[dict[str, Any]], types: Mapping[str, str]) -> None:
    delimiter = DELIMITERS[target.suffix.lower()]
    with place.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, list(types), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(place: Path, rows: Iterable[dict[str, Any]], types: Mapping[str, str], joined: Path | None) -> None:
    """Write JSON lines first: Polars turns them into columns in bounded memory."""
    module = polars()
    lines = place.with_suffix(".ndjson")
    try:
        with lines.open("wb") as file:
            file.writelines(to_json(row) + b"\n" for row in rows)
        frame = module.scan_ndjson(lines, schema={name: getattr(module, kind) for name, kind in types.items()})
        if joined is not None:
            frame = module.concat([module.scan_parquet(joined), frame], how="horizontal")
        frame.sink_parquet(place)
    finally:
        with suppress(OSError):
            lines.unlink()
