"""`ask`, `models` and `pull`: one question, and whom it can be put to."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_gateway.cli.commands.declaring import Commands
from llm_gateway.cli.commands.options import AsJson, Config
from llm_gateway.cli.console import errors_told

commands = Commands()

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Default: the one model that the configuration file has a section for, else smollm2-135m, "
        "which runs on this machine (llm-gateway pull) and is often wrong.",
        show_default=False,
    ),
]

System = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message.")]

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, metavar="N", help="The answer's longest length.")]

Temperature = Annotated[float, typer.Option("--temperature", "-t", min=0, max=2, metavar="T", help="0 to 2.")]

WholeResponse = Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")]

LocalModel = Annotated[str, typer.Argument(metavar="[NAME]", help="Which one.")]


@commands.told(
    'llm-gateway ask "What is a queue?"',
    'llm-gateway ask "Good morning" --model claude-haiku --system "Translate to French."',
    "git diff | llm-gateway ask - -m gpt-4o-mini -s 'Write a commit message.'",
)
def ask(
    *,
    prompt: Prompt,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    config: Config = None,
    as_json: WholeResponse = False,
) -> None:
    """Answer one prompt. The answer goes to standard output, what it took to standard error."""
    with errors_told():
        from llm_gateway.cli.ask import ask_one

        ask_one(
            prompt,
            config=config,
            model=model,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            as_json=as_json,
        )


@commands.told("llm-gateway models", "llm-gateway models --config other.toml --json")
def models(*, config: Config = None, as_json: AsJson = False) -> None:
    """List the models: who answers, whether a key is there, price, context, calls at once."""
    with errors_told():
        from llm_gateway.cli.models import list_models

        list_models(config, as_json=as_json)


@commands.told("llm-gateway pull", 'llm-gateway ask "Hello!" --model smollm2-135m')
def pull(*, name: LocalModel = "smollm2-135m") -> None:
    """Fetch a small model that runs on this machine, without a server or a key. Does nothing if it is there."""
    with errors_told():
        from llm_gateway.cli.pull import pull_model

        pull_model(name)
