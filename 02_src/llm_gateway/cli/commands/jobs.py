"""`jobs`: how the jobs of a folder or a database stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_gateway.cli.commands.declaring import Commands
from llm_gateway.cli.commands.options import AsJson
from llm_gateway.cli.console import errors_told

commands = Commands(
    "llm-gateway jobs",
    "llm-gateway jobs --dir results",
    "llm-gateway jobs show answers.jsonl",
    name="jobs",
    help="List bulk jobs and see how they stand.",
    invoke_without_command=True,
)

JobFile = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's output, its state FILE.job, or postgresql://…?job=NAME.")
]

Folder = Annotated[str, typer.Option("--dir", "-d", metavar="DIR", help="The folder, or postgresql://…, to look into.")]

Undo = Annotated[bool, typer.Option("--undo", help="Let a cancelled job go on with its next run.")]

ExportFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON lines, .csv or .parquet.")]

Overwrite = Annotated[bool, typer.Option("--force", "-f", help="Write over a file that exists.")]


@commands.callback()
def jobs(context: typer.Context, *, folder: Folder = ".") -> None:
    """List the jobs of a folder or a database: how many rows are answered, failed, pending, and calls in doubt."""
    if context.invoked_subcommand is not None:
        return
    with errors_told():
        from llm_gateway.cli.jobs import list_jobs

        list_jobs(folder)


@commands.told("llm-gateway jobs show answers.jsonl", "llm-gateway jobs show answers.jsonl --json")
def show(*, job: JobFile, as_json: AsJson = False) -> None:
    """Show how far a job is and its ledger: every row in one state, every call paid, failed or in doubt."""
    with errors_told():
        from llm_gateway.cli.jobs import show_job

        show_job(job, as_json=as_json)


@commands.told("llm-gateway jobs cancel answers.jsonl", "llm-gateway jobs cancel answers.jsonl --undo")
def cancel(*, job: JobFile, undo: Undo = False) -> None:
    """Stop a job that runs in another process, and let no run go on with it until that is taken back."""
    with errors_told():
        from llm_gateway.cli.jobs import cancel_job

        cancel_job(job, undo=undo)


@commands.told("llm-gateway jobs export answers.jsonl -o answers.parquet")
def export(*, job: JobFile, output: ExportFile, force: Overwrite = False) -> None:
    """Write what is known of a job into a file, also while it runs; a table has a row for each row of the input."""
    with errors_told():
        from llm_gateway.cli.jobs import export_job

        export_job(job, output, force=force)
