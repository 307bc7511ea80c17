"""Any job, stopped in any way at any time and begun again: every row ends once, and nothing is left behind.

A seed draws the models, the rows, how fast and how well they are answered, how the input comes, and what happens to
each run but the last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from fakes.provider import FakeProvider, ask, gateway_over, unavailable
from llm_gateway import LLMGateway, LLMRequest
from llm_gateway.calls import CallWatch
from llm_gateway.errors import RequestRejectedError
from llm_gateway.jobs import Job, JobOutcome, claims, intake, statements
from llm_gateway.jobs.sqlite import reading

JOBS = int(os.environ.get("LLM_GATEWAY_JOBS", "40"))
STATE = Path("work.job")
MODELS = ("gpt-4o-mini", "claude-haiku", "local-llama")
ENDS = ("left", "failed", "stopped", "abandoned", "shut down", "input broken")


class InputBrokenError(Exception):
    """Of the input's own."""


class Story:
    """What a seed has drawn."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.models = MODELS[: rng.randint(1, 3)]
        self.slots = {model: rng.choice([1, 3, 8, 40]) for model in self.models}
        self.seconds = {model: rng.choice([0.0, 0.01, 1.0, 30.0]) for model in self.models}
        weights = [rng.random() for _ in self.models]
        self.rows = [
            ask(
                f"r{number - rng.randint(1, 3) if number > 5 and rng.random() < 0.02 else number}",  # some ids twice
                text=f"question {number}",
                model=rng.choices(self.models, weights)[0],
            )
            for number in range(1, rng.choice([1, 30, 300]) + 1)
        ]
        if rng.random() < 0.3:
            self.rows.sort(key=lambda row: str(row.model))
        self.bad = {row.messages[0].content: rng.random() for row in self.rows}
        self.is_slow = rng.random() < 0.3
        self.ends = [rng.choice(ENDS) for _ in range(rng.randint(0, 3))]

    def answer(self, request: LLMRequest) -> Exception | None:
        luck = self.bad[request.messages[0].content]
        if luck < 0.05:
            return RequestRejectedError("no", provider="fake", model="m", status=400)
        return unavailable() if luck < 0.15 and self.rng.random() < 0.5 else None

    def provider(self) -> FakeProvider:
        return FakeProvider(answer=self.answer, latency=lambda row: self.rng.random() * self.seconds[str(row.model)])

    async def input(self, end: str | None) -> AsyncIterator[LLMRequest]:
        breaks_at = self.rng.randrange(len(self.rows)) if end == "input broken" else None
        for number, row in enumerate(self.rows):
            if number == breaks_at:
                raise InputBrokenError
            if self.is_slow and self.rng.random() < 0.1:
                await asyncio.sleep(self.rng.random())
            yield row


async def one_run(story: Story, provider: FakeProvider, end: str | None) -> list[JobOutcome]:
    """Run the job until it ends, or something ends it."""
    watch = CallWatch()
    models = {
        model: {"provider": "openai", "model": model, "max_concurrency": story.slots[model]} for model in story.models
    }
    gateway = gateway_over(provider, observers=[watch], models=models, retry={"max_attempts": 2})
    job = Job(gateway, STATE, watch=watch)
    outcomes: list[JobOutcome] = []
    after = story.rng.randint(0, len(story.rows)) if end in {"left", "failed"} else None

    async def take_all() -> None:
        async for outcome in job.run(story.input(end)):
            outcomes.append(outcome)
            if len(outcomes) == after:
                if end == "failed":
                    raise KeyError
                break

    async with gateway:
        try:
            async with job:
                meddling = asyncio.create_task(meddle(story, job, gateway, end))
                try:
                    await take_all()
                finally:
                    meddling.cancel()
                    await asyncio.wait((meddling,))
                ledger = await job.ledger()
                assert ledger.adds_up
                if end is None or end == "input broken":
                    assert (ledger.leased, job.under_way) == (0, 0)
        except (KeyError, InputBrokenError):
            assert end in {"failed", "input broken"}
    return outcomes


async def meddle(story: Story, job: Job, gateway: LLMGateway, end: str | None) -> None:
    if end not in {"stopped", "abandoned", "shut down"}:
        return
    await asyncio.sleep(story.rng.random() * story.rng.choice([0.01, 1.0, 30.0]))
    if end == "stopped":
        job.stop()
    elif end == "abandoned":
        job.abandon()
    else:
        job.stop()
        await gateway.shutdown(story.rng.choice([0.0, 1.0]))


@pytest.mark.parametrize("seed", range(JOBS))
async def test_every_row_ends_once_however_often_the_job_is_stopped(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(seed)
    monkeypatch.setattr(intake, "CHUNK", story.rng.choice([1, 7, 128]))
    monkeypatch.setattr(claims, "AHEAD", story.rng.choice([1, 40, 2048]))
    tasks = asyncio.all_tasks()
    known: dict[int, JobOutcome] = {}
    for end in [*story.ends, None]:
        provider = story.provider()
        for outcome in await one_run(story, provider, end):
            assert known.setdefault(outcome.number, outcome) == outcome
        assert asyncio.all_tasks() == tasks
    assert sorted(known) == list(range(1, len(story.rows) + 1))
    names = [row.request_id for row in story.rows]
    for number, outcome in known.items():
        is_first = names.index(names[number - 1]) == number - 1
        assert outcome.request_id == (names[number - 1] if is_first else None)
        if not is_first:
            assert outcome.kind == "invalid_request"
    with reading(STATE) as connection:
        ledger = statements.ledger(connection)
    assert ledger.adds_up
    done = sum(outcome.ok for outcome in known.values())
    assert (ledger.rows, ledger.ended, ledger.done) == (len(story.rows), len(story.rows), done)
