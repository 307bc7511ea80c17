"""The command line of `llm-gateway`: declared in `commands`, assembled in `app`."""

from llm_gateway.cli.app import main

__all__ = ["main"]
