"""The command line: `llm-gateway run`, `ask`, `models`, `pull` and `report`."""

from llm_gateway.cli.app import main

__all__ = ["main"]
