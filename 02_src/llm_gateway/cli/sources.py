"""Where rows come from: lines of JSON, or the rows of a table."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from llm_gateway.cli.lines import Input, Survey
from llm_gateway.errors import ConfigurationError, GatewayError
from llm_gateway.jobs.tables import PromptTemplate, Table, is_table


class Source(Protocol):
    """An input that is read row by row. Raises GatewayError, one sentence, for what cannot be read."""

    name: str
    status: os.stat_result

    @property
    def is_kept(self) -> bool:
        """Whether it can be read a second time."""

    def survey(self) -> Survey | None:
        """Read it through, before its rows are; None for what can be read but once."""

    def rows(self, after: int = 0) -> AsyncIterator[tuple[int, Any]]:
        """Yield (number, row) from 1, those with a number above `after`."""

    def close(self) -> None:
        """Close it."""


class TableInput:
    """A table as the source of a run."""

    is_kept = True

    def __init__(self, path: str) -> None:
        """Open it and look at its head."""
        self.name = path
        try:
            self.status = Path(path).stat()
        except OSError as error:
            raise GatewayError(f"The input {path} cannot be read: {error.strerror}.") from None
        self.table = Table(Path(path))

    def survey(self) -> Survey:
        """Return what is known of the file before its rows are read."""
        digest = blake2b(digest_size=16)
        with Path(self.name).open("rb") as file:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
        return Survey(digest.hexdigest(), self.table.count())

    def rows(self, after: int = 0) -> AsyncIterator[tuple[int, Mapping[str, Any]]]:
        """Yield (number, row) from 1, those with a number above `after`."""
        return self.table.rows(after)

    def close(self) -> None:
        """Nothing stays open."""


class NoInput:
    """The source of a worker, whose rows come out of a database."""

    name = "the job"
    is_kept = True
    status = os.stat_result((0,) * 10)

    def survey(self) -> None:
        """Return None: nothing is known of it."""

    async def rows(self, after: int = 0) -> AsyncIterator[tuple[int, Any]]:  # noqa: ARG002 - there are none
        """Yield nothing."""
        rows: tuple[tuple[int, Any], ...] = ()
        for row in rows:
            yield row

    def close(self) -> None:
        """Nothing is open."""


def open_source(path: str, template: PromptTemplate | None) -> Source:
    """Open an input. Raises GatewayError for what cannot be read, ConfigurationError where a template is missing."""
    if not is_table(path):
        return Input(path)
    if template is None:
        raise ConfigurationError(
            f"The input {path} is a table; give --prompt-template, a text with its columns in braces."
        )
    source = TableInput(path)
    template.check(source.table.columns, path)
    return source


def template_of(text: str | None) -> PromptTemplate | None:
    """Return the template in `text`, or in the file that `@FILE` names. Raises ConfigurationError."""
    if text is None:
        return None
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"The prompt template {text} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"The prompt template {text} is not UTF-8.") from None
    return PromptTemplate(text)
