"""The commands and their help. What a command does is imported when it is called, so that help comes at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import typer

from llm_gateway import __version__
from llm_gateway.cli.console import errors_told
from llm_gateway.models import RequestPriority

app = typer.Typer(
    name="llm-gateway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show the values of variables, keys among them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Priority(str, Enum):  # noqa: UP042 - typer shows str(member)
    """Names of `RequestPriority`, as they are typed."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def flowing(text: str | None) -> str:
    """Return a docstring as help: its paragraphs without their line breaks, which typer would keep."""
    paragraphs = cleandoc(text or "").replace("`", "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def examples(*commands: str) -> str:
    """Return an epilog with a command on each line."""
    return "\n".join(("Examples:", *commands))


def command(*usage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command whose help is its docstring and some examples of its use."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        return app.command(help=flowing(function.__doc__), epilog=examples(*usage))(function)

    return register


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration, a TOML file. Default: llm-gateway.toml in the working directory, if there is one.",
        show_default=False,
    ),
]


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


@command(
    "llm-gateway run prompts.jsonl -o answers.jsonl --model gpt-4o-mini",
    "llm-gateway run openai-batch.jsonl -o results.jsonl --model local-llama",
    "generate-rows | llm-gateway run - > answers.jsonl",
)
def run(
    *,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file of JSON lines; - is standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where the results go; - is standard output.")
    ] = "-",
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Ask this model, whatever the lines say. Default: what each line names, else the one model that the "
            "configuration file has a section for.",
            show_default=False,
        ),
    ] = None,
    priority: Annotated[
        Priority | None,
        typer.Option(
            "--priority",
            "-p",
            help="Of every line, whatever it says. Default: what each line names, else low: a bulk job makes way.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over an output that exists.")] = False,
) -> None:
    """Answer a file of requests.

    Each line of INPUT is a request as JSON (the fields of LLMRequest: `messages`, `model`, `max_tokens`, `tools`, …),
    or `{"prompt": "…"}` with any of those fields and perhaps `system`, or a line of OpenAI's batch format
    (`custom_id`, `body`). A line without an id is called `line-N`.

    Each result is one line, written as soon as it is there, so not in the order of the input: `request_id`, `line`,
    and `response` or `error`; for a line of OpenAI's format a line of its output format. A malformed line is told
    with its number and does not stop the rest.

    Ctrl-C ends the reading and waits for what is under way; a second one does not wait.
    """
    with errors_told():
        from llm_gateway.cli.run import run_file

        chosen = RequestPriority[priority.name] if priority else None
        code = run_file(source, output, config=config, model=model, priority=chosen, force=force)
    raise typer.Exit(code)


@command(
    'llm-gateway ask "What is a queue?"',
    'llm-gateway ask "Good morning" --model claude-haiku --system "Translate to French."',
    "git diff | llm-gateway ask - -m gpt-4o-mini -s 'Write a commit message.'",
)
def ask(
    *,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Default: the one model that the configuration file has a section for, else smollm2-135m, "
            "which runs on this machine (llm-gateway pull) and is often wrong.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="The answer's longest length.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0, max=2, metavar="T", help="0 to 2.")] = 0.0,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole response as JSON.")] = False,
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


@command("llm-gateway models", "llm-gateway models --config other.toml --json")
def models(
    *,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the models: who answers, whether a key is there, price, context, calls at once."""
    with errors_told():
        from llm_gateway.cli.models import list_models

        list_models(config, as_json=as_json)


@command("llm-gateway pull", 'llm-gateway ask "Hello!" --model smollm2-135m')
def pull(
    *,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which one.")] = "smollm2-135m",
) -> None:
    """Fetch a small model that runs on this machine, without a server or a key. Does nothing if it is there."""
    with errors_told():
        from llm_gateway.cli.pull import pull_model

        pull_model(name)


@command("llm-gateway report", "llm-gateway report 04_logs/gateway --html report.html")
def report(
    *,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The journal's folder. Default: as the configuration says.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one page with plots.", show_default=False)
    ] = None,
    config: Config = None,
) -> None:
    """Show what the journal tells: requests, tokens, cost, waits, batches, errors and retries."""
    with errors_told():
        from llm_gateway.cli.report import show_report

        show_report(directory, html=html, config=config)


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="llm-gateway")
