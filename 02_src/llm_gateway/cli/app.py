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


class LaneName(str, Enum):  # noqa: UP042 - typer shows str(member)
    """Price lanes, as they are typed."""

    AUTO = "auto"
    STANDARD = "standard"
    FLEX = "flex"
    BATCH = "batch"


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


def command(*usage: str, of: typer.Typer | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command whose help is its docstring and some examples of its use."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        return (of or app).command(help=flowing(function.__doc__), epilog=examples(*usage))(function)

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
    "llm-gateway run reviews.csv -o reviews.parquet -m gpt-4o-mini --prompt-template 'Sort this: {text}'",
    "llm-gateway run prompts.jsonl -o answers.jsonl --retry-failed timeout,unavailable",
    "generate-rows | llm-gateway run - > answers.jsonl",
    "llm-gateway run prompts.jsonl --job 'postgresql://db.example/llm?job=may' --load-only",
)
def run(
    *,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSON lines, CSV or Parquet; - is standard input.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the results go; - is standard output, the default. With --job they stay in the database "
            "where no FILE is given.",
            show_default=False,
        ),
    ] = None,
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
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Begin anew: write over an output that exists, and forget its job.")
    ] = False,
    retry_failed: Annotated[
        str | None,
        typer.Option(
            "--retry-failed",
            metavar="KINDS",
            help="Ask the failed rows of a job again: 'all', or kinds of errors such as timeout,unavailable.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--prompt-template",
            metavar="TEXT",
            help="The prompt of each row, with names of columns in braces; @FILE reads it from a file. A column "
            "request_id names the row. Tables need it, lines of JSON may have it.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message before each such prompt.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            help="A JSON schema that each answer must follow. Every row asks for it; an answer that does not fit "
            "is asked for again, as often as retry.max_attempts says.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            min=0,
            metavar="USD",
            help="Stop before the whole job could cost more than that; a later run with more goes on.",
            show_default=False,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="URL",
            help="Keep the job in PostgreSQL: postgresql://user@host/database?job=NAME. Others may help with "
            "llm-gateway worker. A password is better kept in PGPASSWORD or ~/.pgpass.",
            show_default=False,
        ),
    ] = None,
    load_only: Annotated[
        bool, typer.Option("--load-only", help="With --job: take the rows in and leave them to workers.")
    ] = False,
    lane: Annotated[
        LaneName | None,
        typer.Option(
            "--lane",
            help="The price lane: flex (OpenAI, later, half the price), batch (OpenAI and Anthropic, within a day, "
            "half the price) or auto, the cheapest one that the model has. Default: as configured for the model.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            min=0.001,
            metavar="HOURS",
            help="When this run should end: near that, what waits in a provider's batch is asked in the standard lane.",
            show_default=False,
        ),
    ] = None,
    poll: Annotated[
        float,
        typer.Option("--poll", min=0.01, metavar="SECONDS", help="Pause between two looks at a provider's batches."),
    ] = 60.0,
) -> None:
    """Answer a file of requests.

    Each line of INPUT is a request as JSON (the fields of LLMRequest: `messages`, `model`, `max_tokens`, `tools`, …),
    or `{"prompt": "…"}` with any of those fields and perhaps `system`, or a line of OpenAI's batch format
    (`custom_id`, `body`). A line without an id is called `line-N`. A file may be compressed with gzip. A CSV or
    Parquet file is read with --prompt-template.

    Each result is one line, written as soon as it is there, so not in the order of the input: `request_id`, `line`,
    and `response` or `error`; for a line of OpenAI's format a line of its output format. A malformed line is told
    with its number and does not stop the rest. An output named .csv or .parquet is a table in the order of the
    input, written when the run ends.

    The state of the job lies beside the output, in FILE.job. However a run ended, the same command goes on: what was
    answered is not asked again. Through a pipe (-) there is no state, and a run that is stopped begins anew.

    Ctrl-C ends the reading and waits for what is under way; a second one does not wait.
    """
    with errors_told():
        from llm_gateway.cli.run import Options, run_file

        options = Options(
            config=config,
            model=model,
            priority=RequestPriority[priority.name] if priority else None,
            force=force,
            template=template,
            system=system,
            schema=schema,
            budget=budget,
            retry_failed=retry_failed,
            job=job,
            load_only=load_only,
            lane=lane.value if lane else None,
            deadline=deadline,
            poll=poll,
        )
        code = run_file(source, output, options)
    raise typer.Exit(code)


@command(
    "llm-gateway plan prompts.jsonl --model gpt-4o-mini",
    "llm-gateway plan prompts.jsonl -m gpt-4o-mini --sample 30 -o answers.jsonl",
    "llm-gateway plan reviews.csv -m gpt-4o-mini --prompt-template 'Sort this: {text}' --budget 5 --json",
)
def plan(
    *,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="As that of run; - is standard input.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The output of the run that is planned: what the sample paid for is kept for it, and what it has "
            "answered already is not planned again. Nothing is written into it.",
        ),
    ] = "-",
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="As that of run.", show_default=False),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--prompt-template", metavar="TEXT", help="As that of run; @FILE reads it.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message before each such prompt.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", metavar="FILE", help="A JSON schema, as that of run.", show_default=False),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            min=0,
            max=1000,
            metavar="N",
            help="Ask so many rows for the lengths of answers, spread over models and lengths of prompts. They are "
            "paid for.",
        ),
    ] = 0,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            min=0,
            metavar="USD",
            help="Tell how many rows run would reach with that.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Tell what a run would cost and how long it would take, before it is paid for.

    Counts the rows of INPUT, those that repeat an earlier one, and their tokens. Cost and time are ranges: half of the
    draws lie below P50, 95 in a hundred below P95. The lengths of answers are taken from a sample, from what the job
    has answered already, or else from max_tokens and a guess; the plan says which. It also tells the price lanes,
    which limit binds, and what a second machine would change.

    Without --sample nothing is sent, and no key is needed.
    """
    with errors_told():
        from llm_gateway.cli.plan import plan_file
        from llm_gateway.cli.run import Options

        options = Options(config=config, model=model, template=template, system=system, schema=schema, budget=budget)
        code = plan_file(source, output, options, sample=sample, as_json=as_json)
    raise typer.Exit(code)


@command(
    "llm-gateway worker --job 'postgresql://db.example/llm?job=may'",
    "llm-gateway worker --job 'postgresql://db.example/llm?job=may' --config shared.toml --lease-seconds 120",
)
def worker(
    *,
    job: Annotated[str, typer.Option("--job", metavar="URL", help="postgresql://user@host/database?job=NAME.")],
    config: Config = None,
    lease_seconds: Annotated[
        float | None,
        typer.Option(
            "--lease-seconds",
            min=1,
            metavar="N",
            help="After so long a silence others take this worker's rows. Default: 30.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Help with a job in PostgreSQL, on as many hosts as you like.

    llm-gateway run INPUT --job URL loads it. A worker leases rows, answers them with its own configuration, and ends
    when every row of the job has ended, whoever asked it. Limits that are shared need limits.redis_url in the
    configuration of all. A worker that dies loses its rows to the others after --lease-seconds of silence; one whose
    database is away keeps its answers and writes them when it is back.

    SIGTERM and Ctrl-C finish what is under way; a second one does not wait.
    """
    with errors_told():
        from llm_gateway.cli.worker import work_on

        code = work_on(job, config=config, lease_seconds=lease_seconds)
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


@command(
    "llm-gateway simulate trace.jsonl --limits rpm=500,tpm=200000 --model gpt-4o-mini",
    "llm-gateway simulate 04_logs/gateway --load 2 --html simulation.html",
    "llm-gateway simulate trace.jsonl --latency 0.8,4 --speed 60 --trouble unavailable:600-900",
)
def simulate(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACE...", help="Files of JSON lines, or the folder of a journal; - is standard input."
        ),
    ],
    config: Config = None,
    limits: Annotated[
        str | None,
        typer.Option(
            "--limits",
            "-l",
            metavar="KEY=N,...",
            help="What the provider allows each model of the trace: rpm, tpm, itpm, otpm, rpd. The gateway is told, "
            "unless the configuration has limits for the model. Default: as the configuration says.",
            show_default=False,
        ),
    ] = None,
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
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            metavar="MEDIAN[,P99]",
            help="Seconds until an answer's first token. Default: the trace's latencies, else 0.6,3.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            "--speed", min=0.001, metavar="N", help="Output tokens a second. Default: 80.", show_default=False
        ),
    ] = None,
    load: Annotated[
        float, typer.Option("--load", min=0.001, metavar="X", help="Let the requests come X times as fast.")
    ] = 1.0,
    trouble: Annotated[
        list[str] | None,
        typer.Option(
            "--trouble",
            metavar="KIND:START-END[:SHARE]",
            help="Between two seconds let a share of the calls fare badly: rate_limit (429), overloaded (529), "
            "unavailable (503), timeout, truncated or slow. May be given more than once.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn; the same gives the same.")] = 0,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one page with plots.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Tell how traffic would fare: time to finish, waits, use of the limits, 429s, cost, and which limit binds.

    The real queue, limits and retries work in virtual time before a simulated provider: a day takes seconds, nothing is
    sent, and no key is needed. A line of TRACE is `{"at": 0.5, "model": "gpt-4o-mini"}` with perhaps `priority`,
    `agent`, `input_tokens`, `output_tokens`, `max_tokens`, `deadline` and `latency`; `at` is in seconds from the
    beginning. A line may also be a journal's, or one that `llm-gateway run` reads, which comes at the beginning. Sizes
    that are left out are drawn.
    """
    with errors_told():
        from llm_gateway.cli.simulate import simulate_files

        code = simulate_files(
            sources,
            config=config,
            model=model,
            limits=limits,
            latency=latency,
            speed=speed,
            load_factor=load,
            troubles=trouble or (),
            seed=seed,
            html=html,
            as_json=as_json,
        )
    raise typer.Exit(code)


JobFile = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's output, its state FILE.job, or postgresql://…?job=NAME.")
]

jobs_app = typer.Typer(
    help="List bulk jobs and see how they stand.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=examples("llm-gateway jobs", "llm-gateway jobs --dir results", "llm-gateway jobs show answers.jsonl"),
)
app.add_typer(jobs_app, name="jobs")


@jobs_app.callback()
def jobs(
    context: typer.Context,
    *,
    folder: Annotated[
        str, typer.Option("--dir", "-d", metavar="DIR", help="The folder, or postgresql://…, to look into.")
    ] = ".",
) -> None:
    """List the jobs of a folder or a database: how many rows are answered, failed, pending, and calls in doubt."""
    if context.invoked_subcommand is not None:
        return
    with errors_told():
        from llm_gateway.cli.jobs import list_jobs

        list_jobs(folder)


@command("llm-gateway jobs show answers.jsonl", "llm-gateway jobs show answers.jsonl --json", of=jobs_app)
def show(
    *,
    job: JobFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show how far a job is and its ledger: every row in one state, every call paid, failed or in doubt."""
    with errors_told():
        from llm_gateway.cli.jobs import show_job

        show_job(job, as_json=as_json)


@command("llm-gateway jobs cancel answers.jsonl", "llm-gateway jobs cancel answers.jsonl --undo", of=jobs_app)
def cancel(
    *,
    job: JobFile,
    undo: Annotated[bool, typer.Option("--undo", help="Let a cancelled job go on with its next run.")] = False,
) -> None:
    """Stop a job that runs in another process, and let no run go on with it until that is taken back."""
    with errors_told():
        from llm_gateway.cli.jobs import cancel_job

        cancel_job(job, undo=undo)


@command("llm-gateway jobs export answers.jsonl -o answers.parquet", of=jobs_app)
def export(
    *,
    job: JobFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON lines, .csv or .parquet.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over a file that exists.")] = False,
) -> None:
    """Write what is known of a job into a file, also while it runs; a table has a row for each row of the input."""
    with errors_told():
        from llm_gateway.cli.jobs import export_job

        export_job(job, output, force=force)


cache_app = typer.Typer(
    help="Show how many answers are kept, and let go of them.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=examples("llm-gateway cache", "llm-gateway cache --json", "llm-gateway cache clear"),
)
app.add_typer(cache_app, name="cache")


@cache_app.callback()
def cache(
    context: typer.Context,
    *,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show how many answers the cache of the configuration holds, how many bytes, and its bounds."""
    if context.invoked_subcommand is not None:
        return
    with errors_told():
        from llm_gateway.cli.cache import show_cache

        show_cache(config, as_json=as_json)


@command("llm-gateway cache clear", of=cache_app)
def clear(*, config: Config = None) -> None:
    """Let go of every answer, those of all tenants."""
    with errors_told():
        from llm_gateway.cli.cache import clear_cache

        clear_cache(config)


@command("llm-gateway cache prune", of=cache_app)
def prune(*, config: Config = None) -> None:
    """Let go of the answers that are too old or beyond the bounds, as the configuration has them now."""
    with errors_told():
        from llm_gateway.cli.cache import prune_cache

        prune_cache(config)


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="llm-gateway")
