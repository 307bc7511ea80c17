"""`run`, `plan` and `worker`: files of requests, and jobs that many machines share."""

from __future__ import annotations

import typer

from llm_gateway.cli.commands.bulk_options import (
    Afresh,
    Budget,
    Deadline,
    Input,
    JobUrl,
    Lane,
    LeaseSeconds,
    LoadOnly,
    Output,
    PlannedBudget,
    PlannedInput,
    PlannedModel,
    PlannedOutput,
    PlannedSchema,
    PlannedTemplate,
    Poll,
    PriorityOfAll,
    RetryFailed,
    Sample,
    Schema,
    System,
    Template,
    WorkersJob,
)
from llm_gateway.cli.commands.declaring import Commands
from llm_gateway.cli.commands.options import AsJson, Config, ModelOfAll
from llm_gateway.cli.console import errors_told
from llm_gateway.models import RequestPriority

commands = Commands()


@commands.told(
    "llm-gateway run prompts.jsonl -o answers.jsonl --model gpt-4o-mini",
    "llm-gateway run openai-batch.jsonl -o results.jsonl --model local-llama",
    "llm-gateway run reviews.csv -o reviews.parquet -m gpt-4o-mini --prompt-template 'Sort this: {text}'",
    "llm-gateway run prompts.jsonl -o answers.jsonl --retry-failed timeout,unavailable",
    "generate-rows | llm-gateway run - > answers.jsonl",
    "llm-gateway run prompts.jsonl --job 'postgresql://db.example/llm?job=may' --load-only",
)
def run(
    *,
    source: Input,
    output: Output = None,
    config: Config = None,
    model: ModelOfAll = None,
    priority: PriorityOfAll = None,
    force: Afresh = False,
    retry_failed: RetryFailed = None,
    template: Template = None,
    system: System = None,
    schema: Schema = None,
    budget: Budget = None,
    job: JobUrl = None,
    load_only: LoadOnly = False,
    lane: Lane = None,
    deadline: Deadline = None,
    poll: Poll = 60.0,
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


@commands.told(
    "llm-gateway plan prompts.jsonl --model gpt-4o-mini",
    "llm-gateway plan prompts.jsonl -m gpt-4o-mini --sample 30 -o answers.jsonl",
    "llm-gateway plan reviews.csv -m gpt-4o-mini --prompt-template 'Sort this: {text}' --budget 5 --json",
)
def plan(
    *,
    source: PlannedInput,
    output: PlannedOutput = "-",
    config: Config = None,
    model: PlannedModel = None,
    template: PlannedTemplate = None,
    system: System = None,
    schema: PlannedSchema = None,
    sample: Sample = 0,
    budget: PlannedBudget = None,
    as_json: AsJson = False,
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


@commands.told(
    "llm-gateway worker --job 'postgresql://db.example/llm?job=may'",
    "llm-gateway worker --job 'postgresql://db.example/llm?job=may' --config shared.toml --lease-seconds 120",
)
def worker(*, job: WorkersJob, config: Config = None, lease_seconds: LeaseSeconds = None) -> None:
    """Help with a job in PostgreSQL, on as many hosts as you like.

    llm-gateway run INPUT --job URL loads it. A worker leases rows, answers them with its own configuration, and ends
    when every row of the job has ended, whoever asked it. The budget that run gave the job holds for all of them;
    limits that are shared need limits.redis_url in the configuration of all. A worker that dies loses its rows to the
    others after --lease-seconds of silence; one whose database is away keeps its answers and writes them when it is
    back.

    SIGTERM and Ctrl-C finish what is under way; a second one does not wait.
    """
    with errors_told():
        from llm_gateway.cli.worker import work_on

        code = work_on(job, config=config, lease_seconds=lease_seconds)
    raise typer.Exit(code)
