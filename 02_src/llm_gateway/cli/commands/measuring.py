"""`report` and `simulate`: what the journal tells, and how traffic would fare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_gateway.cli.commands.declaring import Commands
from llm_gateway.cli.commands.options import AsJson, Config, Html, ModelOfAll
from llm_gateway.cli.console import errors_told

commands = Commands()

JournalFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]", help="The journal's folder. Default: as the configuration says.", show_default=False
    ),
]

Traces = Annotated[
    list[str],
    typer.Argument(metavar="TRACE...", help="Files of JSON lines, or the folder of a journal; - is standard input."),
]

Limits = Annotated[
    str | None,
    typer.Option(
        "--limits",
        "-l",
        metavar="KEY=N,...",
        help="What the provider allows each model of the trace: rpm, tpm, itpm, otpm, rpd. The gateway is told, "
        "unless the configuration has limits for the model. Default: as the configuration says.",
        show_default=False,
    ),
]

Latency = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="MEDIAN[,P99]",
        help="Seconds until an answer's first token. Default: the trace's latencies, else 0.6,3.",
        show_default=False,
    ),
]

Speed = Annotated[
    float | None,
    typer.Option("--speed", min=0.001, metavar="N", help="Output tokens a second. Default: 80.", show_default=False),
]

Load = Annotated[float, typer.Option("--load", min=0.001, metavar="X", help="Let the requests come X times as fast.")]

Troubles = Annotated[
    list[str] | None,
    typer.Option(
        "--trouble",
        metavar="KIND:START-END[:SHARE]",
        help="Between two seconds let a share of the calls fare badly: rate_limit (429), overloaded (529), "
        "unavailable (503), timeout, truncated or slow. May be given more than once.",
        show_default=False,
    ),
]

Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn; the same gives the same.")]


@commands.told("llm-gateway report", "llm-gateway report 04_logs/gateway --html report.html")
def report(*, directory: JournalFolder = None, html: Html = None, config: Config = None) -> None:
    """Show what the journal tells: requests, tokens, cost, waits, batches, errors and retries."""
    with errors_told():
        from llm_gateway.cli.report import show_report

        show_report(directory, html=html, config=config)


@commands.told(
    "llm-gateway simulate trace.jsonl --limits rpm=500,tpm=200000 --model gpt-4o-mini",
    "llm-gateway simulate 04_logs/gateway --load 2 --html simulation.html",
    "llm-gateway simulate trace.jsonl --latency 0.8,4 --speed 60 --trouble unavailable:600-900",
)
def simulate(
    *,
    sources: Traces,
    config: Config = None,
    limits: Limits = None,
    model: ModelOfAll = None,
    latency: Latency = None,
    speed: Speed = None,
    load: Load = 1.0,
    trouble: Troubles = None,
    seed: Seed = 0,
    html: Html = None,
    as_json: AsJson = False,
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
