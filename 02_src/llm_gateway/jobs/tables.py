"""Tables as input: CSV with nothing but Python, Parquet through Polars, in bounded memory."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from llm_gateway.errors import ConfigurationError, GatewayError, InvalidRequestError, MissingDependencyError

ROWS_AT_ONCE = 256
LONGEST_FIELD = 32 * 1024 * 1024  # characters of a field in a CSV file
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
SUFFIXES = (*DELIMITERS, PARQUET)

MISSING: Any = object()  # a cell that its row does not have

Row = dict[str, Any]


def is_table(path: str) -> bool:
    """Whether a file's name says that it is a table."""
    return Path(path).suffix.lower() in SUFFIXES


def polars() -> Any:
    """Return the module. Raises MissingDependencyError."""
    try:
        import polars as pl
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[tables]'") from None
    return pl


class Table:
    """A CSV or Parquet file, read as it is needed. Raises GatewayError, one sentence, for what cannot be read."""

    def __init__(self, path: Path) -> None:
        """Look at its head."""
        self._path = path
        self.columns = self._told(self._columns)

    async def rows(self, after: int = 0) -> AsyncIterator[tuple[int, Row]]:
        """Yield (number, row) from 1, those with a number above `after`."""
        number = 0
        chunks = self.chunks()
        while chunk := await asyncio.to_thread(self._told, lambda: next(chunks, None)):
            for row in chunk:
                number += 1
                if number > after:
                    yield number, row

    def count(self) -> int:
        """Count the rows; a CSV file is read through for that."""
        if self._is_parquet:
            frame = polars().scan_parquet(self._path)
            return int(self._told(lambda: frame.select(polars().len()).collect().item()))
        return int(self._told(lambda: sum(len(chunk) for chunk in self._csv_chunks())))

    @property
    def _is_parquet(self) -> bool:
        return self._path.suffix.lower() == PARQUET

    def _columns(self) -> list[str]:
        if self._is_parquet:
            return list(polars().scan_parquet(self._path).collect_schema().names())
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=self._delimiter), [])
        if not names:
            raise GatewayError(f"The input {self._path} has no header; give its columns names in the first line.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise GatewayError(f"The input {self._path} has two columns '{twice}'; give each its own name.")
        return names

    @property
    def _delimiter(self) -> str:
        return DELIMITERS[self._path.suffix.lower()]

    def chunks(self) -> Iterator[list[Row]]:
        """Yield the rows, some at a time, from the first on. Raises what the reading raises."""
        return self._parquet_chunks() if self._is_parquet else self._csv_chunks()

    def _csv_chunks(self) -> Iterator[list[Row]]:
        csv.field_size_limit(LONGEST_FIELD)
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            lines = LastRecord(file)
            rows = csv.DictReader(lines, self.columns, delimiter=self._delimiter, restval=MISSING)
            next(iter(csv.reader(lines, delimiter=self._delimiter)), None)  # the header
            lines.ended()
            while chunk := list(islice(_whole(rows, lines), ROWS_AT_ONCE)):
                yield chunk
            if lines.breaks_off(self._delimiter):
                raise GatewayError(
                    f"The input {self._path} ends within quotes that begin in line {lines.first}; close them."
                )

    def _parquet_chunks(self) -> Iterator[list[Row]]:
        frame = polars().scan_parquet(self._path)
        for batch in frame.collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True):
            if len(batch):
                yield batch.to_dicts()

    def _told(self, action: Any) -> Any:
        """Do it, and put what is wrong with the file into a sentence."""
        try:
            return action()
        except GatewayError:
            raise
        except UnicodeDecodeError:
            raise GatewayError(f"The input {self._path} is not UTF-8; convert it first.") from None
        except (OSError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GatewayError(f"The input {self._path} cannot be read: {reason}.") from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "polars":
                raise
            raise GatewayError(f"The input {self._path} cannot be read: {str(error).splitlines()[0]}.") from None


class LastRecord:
    """The lines of a CSV file on their way to its reader; it remembers those of the record that is being read."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._number = 0
        self._held: list[str] = []
        self._before: list[str] = []  # of the record that was read last
        self.first = 1  # line of the record

    def __iter__(self) -> Iterator[str]:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next line."""
        line = next(self._lines)
        if not self._held:
            self.first = self._number + 1
        self._number += 1
        self._held.append(line)
        return line

    def ended(self) -> None:
        """Forget the record: it was read, and another one begins."""
        self._before, self._held = self._held, []

    def breaks_off(self, delimiter: str) -> bool:
        """Whether the record that was read last has quotes that are never closed."""
        try:
            list(csv.reader(self._before, delimiter=delimiter, strict=True))
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False


def _whole(rows: Iterator[Row], lines: LastRecord) -> Iterator[Row]:
    """Yield rows without the cells that they do not have; what they have too many of stands under None."""
    for row in rows:
        lines.ended()
        yield {name: cell for name, cell in row.items() if cell is not MISSING}


class PromptTemplate:
    """Text with the names of columns in braces; two braces are one. It reads columns and nothing else."""

    def __init__(self, text: str) -> None:
        """Take the text. Raises ConfigurationError for one that is no template."""
        self._parts: list[tuple[str, str | None]] = []
        try:
            for literal, name, format_spec, conversion in Formatter().parse(text):
                if name is not None and (format_spec or conversion or not name):
                    raise _no_template("between braces stands the name of a column and nothing else")
                self._parts.append((literal, name))
        except ConfigurationError:
            raise
        except ValueError as error:
            raise _no_template(str(error)) from None

    def check(self, columns: list[str], source: str) -> None:
        """Raise ConfigurationError if a column is missing."""
        for _, name in self._parts:
            if name is not None and name not in columns:
                known = ", ".join(columns)
                raise ConfigurationError(
                    f"The prompt template names a column '{name}', and {source} has none; it has {known}."
                )

    def render(self, row: Row) -> str:
        """Return the prompt of a row; an empty cell is an empty text. Raises InvalidRequestError."""
        pieces = []
        for literal, name in self._parts:
            pieces.append(literal)
            if name is not None:
                if name not in row:
                    raise InvalidRequestError(f"the row has no '{name}', which the prompt template names.")
                value = row[name]
                pieces.append("" if value is None else str(value))
        return "".join(pieces)


def _no_template(reason: str) -> ConfigurationError:
    return ConfigurationError(f"The prompt template cannot be used: {reason}; write {{{{ for a brace.")
