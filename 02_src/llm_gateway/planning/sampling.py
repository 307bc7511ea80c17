"""A sample of the input, asked through the gateway as part of the job, so that no answer is paid for twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.encoding import from_json
from llm_gateway.jobs.job import Job
from llm_gateway.jobs.records import NewRow, StoredResult
from llm_gateway.planning.census import Candidate, Census
from llm_gateway.planning.plan import SampleFigures

SAMPLED = {"sampled": True}
"""What is noted of a job whose rows were not taken in one after the other: a run has to read its input from the
beginning."""


@dataclass(slots=True)
class Sampled:
    """What came of a sample."""

    figures: SampleFigures
    told: dict[str, dict[str, float]] = field(default_factory=dict)  # limits, as `capacity.Told`
    failures: dict[str, str] = field(default_factory=dict)  # a message of each kind


async def ask_sample(
    gateway: LLMGateway, job: Job, census: Census, chosen: Sequence[Candidate], *, kept: bool
) -> Sampled:
    """Ask the chosen rows, and let the census learn from their answers.

    What failed is left for the run to ask again. After a cancel the answers that came are in the job's state.
    """
    by_number = {each.row.number: each for each in chosen}
    if kept:
        await job.store.note(SAMPLED)
    before = (await job.ledger()).last_result
    failures: dict[str, str] = {}
    answered, cost, unpriced = 0, 0.0, 0
    async for results in job.results(_rows(chosen), before):
        for result in results:
            if result.kind is None:
                census.answered(by_number[result.number], answer_of(result), kept=kept)
                answered += 1
                cost += result.cost_usd
                unpriced += result.unpriced
            else:
                failures.setdefault(result.kind, str(from_json(result.body)["message"]))
    if failures:
        await job.retry_failed(failures)
    return Sampled(
        SampleFigures(asked=len(chosen), answered=answered, cost_usd=None if unpriced else cost, kept=kept),
        told=told_limits(gateway),
        failures=failures,
    )


async def _rows(chosen: Sequence[Candidate]) -> AsyncIterator[NewRow]:
    for each in chosen:
        yield each.row


def answer_of(result: StoredResult) -> tuple[int, int, float] | None:
    """Return input tokens, output tokens and the provider's seconds of a result; None where no usage was told."""
    if result.kind is not None or not (result.input_tokens or result.output_tokens):
        return None
    receipt = from_json(result.body).get("receipt") or {}
    return result.input_tokens, result.output_tokens, float(receipt.get("provider_time") or 0.0)


def told_limits(gateway: LLMGateway) -> dict[str, dict[str, float]]:
    """Return the limits that a gateway knows by now, by deployment."""
    told: dict[str, dict[str, float]] = {}
    for model, pace in gateway.get_stats().get("pace", {}).items():
        first = gateway.config.model(model)
        told[f"{first.provider}/{first.model}"] = _limits(pace)
        for label, further in pace.get("deployments", {}).items():
            told[label] = _limits(further)
    return told


def _limits(pace: dict[str, dict[str, dict[str, float | None]]]) -> dict[str, float]:
    return {
        name: float(each["limit"])
        for name, each in pace["limits"].items()
        if each["limit"] is not None and not name.startswith("account_")
    }
