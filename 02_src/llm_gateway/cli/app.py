"""The command line put together. What a command does is imported when it is called, so that help comes at once."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_gateway import __version__
from llm_gateway.cli.commands import asking, bulk, cache, jobs, measuring
from llm_gateway.cli.commands.declaring import Commands, examples, flowing

app = Commands(name="llm-gateway", no_args_is_help=True)
for family in (bulk, asking, measuring, jobs, cache):  # in the order of the help
    app.add_typer(family.commands)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"llm-gateway {__version__}")
        raise typer.Exit


TOP_HELP = """
One door to every LLM: queue, batch, retry, price and write down what is asked.

Answers go to standard output, everything else to standard error. Keys come from the configuration or from
OPENAI_API_KEY, ANTHROPIC_API_KEY and their like.

Exit codes: 0 all was answered, 1 something was not, 2 the command, the configuration or a file is at fault,
130 Ctrl-C.
"""


@app.callback(
    help=flowing(TOP_HELP),
    epilog=examples(
        "llm-gateway pull",
        'llm-gateway ask "What is a queue?"',
        "llm-gateway run prompts.jsonl -o answers.jsonl --model gpt-4o-mini",
        "llm-gateway report",
    ),
)
def top(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold what stands before a command."""


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="llm-gateway")
