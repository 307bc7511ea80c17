"""What `run`, `plan` and `worker` take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


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


Input = Annotated[str, typer.Argument(metavar="INPUT", help="JSON lines, CSV or Parquet; - is standard input.")]

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where the results go; - is standard output, the default. With --job they stay in the database "
        "where no FILE is given.",
        show_default=False,
    ),
]

PriorityOfAll = Annotated[
    Priority | None,
    typer.Option(
        "--priority",
        "-p",
        help="Of every line, whatever it says. Default: what each line names, else low: a bulk job makes way.",
        show_default=False,
    ),
]

Afresh = Annotated[
    bool, typer.Option("--force", "-f", help="Begin anew: write over an output that exists, and forget its job.")
]

RetryFailed = Annotated[
    str | None,
    typer.Option(
        "--retry-failed",
        metavar="KINDS",
        help="Ask the failed rows of a job again: 'all', or kinds of errors such as timeout,unavailable.",
        show_default=False,
    ),
]

Template = Annotated[
    str | None,
    typer.Option(
        "--prompt-template",
        metavar="TEXT",
        help="The prompt of each row, with names of columns in braces; @FILE reads it from a file. A column "
        "request_id names the row. Tables need it, lines of JSON may have it.",
        show_default=False,
    ),
]

System = Annotated[
    str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message before each such prompt.")
]

Schema = Annotated[
    Path | None,
    typer.Option(
        "--schema",
        metavar="FILE",
        help="A JSON schema that each answer must follow. Every row asks for it; an answer that does not fit "
        "is asked for again, as often as retry.max_attempts says.",
        show_default=False,
    ),
]

Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0,
        metavar="USD",
        help="Stop before the whole job, with all its workers, could cost more than that; a later run with more "
        "goes on.",
        show_default=False,
    ),
]

JobUrl = Annotated[
    str | None,
    typer.Option(
        "--job",
        metavar="URL",
        help="Keep the job in PostgreSQL: postgresql://user@host/database?job=NAME. Others may help with "
        "llm-gateway worker. A password is better kept in PGPASSWORD or ~/.pgpass.",
        show_default=False,
    ),
]

LoadOnly = Annotated[bool, typer.Option("--load-only", help="With --job: take the rows in and leave them to workers.")]

Lane = Annotated[
    LaneName | None,
    typer.Option(
        "--lane",
        help="The price lane: flex (OpenAI, later, half the price), batch (OpenAI and Anthropic, within a day, "
        "half the price) or auto, the cheapest one that the model has. Default: as configured for the model.",
        show_default=False,
    ),
]

Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        min=0.001,
        metavar="HOURS",
        help="When this run should end: near that, what waits in a provider's batch is asked in the standard lane.",
        show_default=False,
    ),
]

Poll = Annotated[
    float, typer.Option("--poll", min=0.01, metavar="SECONDS", help="Pause between two looks at a provider's batches.")
]

PlannedInput = Annotated[str, typer.Argument(metavar="INPUT", help="As that of run; - is standard input.")]

PlannedOutput = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The output of the run that is planned: what the sample paid for is kept for it, and what it has "
        "answered already is not planned again. Nothing is written into it.",
    ),
]

PlannedModel = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="As that of run.", show_default=False)
]

PlannedTemplate = Annotated[
    str | None,
    typer.Option("--prompt-template", metavar="TEXT", help="As that of run; @FILE reads it.", show_default=False),
]

PlannedSchema = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", help="A JSON schema, as that of run.", show_default=False)
]

Sample = Annotated[
    int,
    typer.Option(
        "--sample",
        min=0,
        max=1000,
        metavar="N",
        help="Ask so many rows for the lengths of answers, spread over models and lengths of prompts. They are "
        "paid for.",
    ),
]

PlannedBudget = Annotated[
    float | None,
    typer.Option(
        "--budget", min=0, metavar="USD", help="Tell how many rows run would reach with that.", show_default=False
    ),
]

WorkersJob = Annotated[str, typer.Option("--job", metavar="URL", help="postgresql://user@host/database?job=NAME.")]

LeaseSeconds = Annotated[
    float | None,
    typer.Option(
        "--lease-seconds",
        min=1,
        metavar="N",
        help="After so long a silence others take this worker's rows. Default: 30.",
        show_default=False,
    ),
]
