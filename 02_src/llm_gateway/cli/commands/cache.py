"""`cache`: the answers that are kept."""

from __future__ import annotations

import typer

from llm_gateway.cli.commands.declaring import Commands
from llm_gateway.cli.commands.options import AsJson, Config
from llm_gateway.cli.console import errors_told

commands = Commands(
    "llm-gateway cache",
    "llm-gateway cache --json",
    "llm-gateway cache clear",
    name="cache",
    help="Show how many answers are kept, and let go of them.",
    invoke_without_command=True,
)


@commands.callback()
def cache(context: typer.Context, *, config: Config = None, as_json: AsJson = False) -> None:
    """Show how many answers the cache of the configuration holds, how many bytes, and its bounds."""
    if context.invoked_subcommand is not None:
        return
    with errors_told():
        from llm_gateway.cli.cache import show_cache

        show_cache(config, as_json=as_json)


@commands.told("llm-gateway cache clear")
def clear(*, config: Config = None) -> None:
    """Let go of every answer, those of all tenants."""
    with errors_told():
        from llm_gateway.cli.cache import clear_cache

        clear_cache(config)


@commands.told("llm-gateway cache prune")
def prune(*, config: Config = None) -> None:
    """Let go of the answers that are too old or beyond the bounds, as the configuration has them now."""
    with errors_told():
        from llm_gateway.cli.cache import prune_cache

        prune_cache(config)
