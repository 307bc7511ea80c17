"""The report: what a journal tells, as tables in the terminal and as a page with plots."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from llm_gateway.errors import ConfigurationError
from llm_gateway.report.figures import JournalData
from llm_gateway.report.page import render_html
from llm_gateway.report.reading import read_journal
from llm_gateway.report.terminal import render_terminal

__all__ = ["JournalData", "read_journal", "render_html", "render_terminal", "report"]


def report(directory: Path, html: Path | None, console: Console) -> None:
    """Print the report of the journal in `directory`, and write the page `html` if one is given.

    Raises ConfigurationError, in one sentence, where there is no journal or the page cannot be written;
    MissingDependencyError where a page is asked for and plotly is not installed. Then nothing is printed.
    """
    data = read_journal(directory)
    if html is not None:
        page = render_html(data)
        try:
            html.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"The page {html} cannot be written: {error.strerror}.") from None
    console.print(render_terminal(data))
    if html is not None:
        console.print(Text(f"\nPage: {html}"), soft_wrap=True)
