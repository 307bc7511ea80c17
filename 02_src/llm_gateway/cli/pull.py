"""`llm-gateway pull`: a model for this machine."""

from __future__ import annotations

from llm_gateway.cli.console import stderr
from llm_gateway.local_model import pull


def pull_model(name: str) -> None:
    """Fetch model `name`, and tell the steps and where it lies. Raises ConfigurationError."""
    pull(name, stderr().print)
