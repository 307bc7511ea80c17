"""`llm-gateway report`: what the journal tells."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from llm_gateway.cli.settings import load
from llm_gateway.errors import ConfigurationError
from llm_gateway.report import report


def show_report(directory: Path | None, *, html: Path | None, config: Path | None) -> None:
    """Print the report of `directory`, else of the configured journal. Raises GatewayError."""
    if directory is None:
        configured = load(config).config.logs.dir
        if not configured:
            raise ConfigurationError("The configuration turns the journal off (logs.dir = false); give a folder.")
        directory = configured
    report(directory, html, Console())
