"""OpenAI's batch lane against aimock's `/v1/files` and `/v1/batches`, which this project did not write."""

from __future__ import annotations

from pathlib import Path

from fakes.aimock import Aimock
from fakes.provider import QUIET, ask
from llm_gateway import LLMGateway

FIXTURES = [{"match": {"userMessage": "question"}, "response": {"content": "an answer"}}]


async def test_a_job_is_answered_through_batches_that_somebody_else_wrote() -> None:
    requests = [ask(f"r{number}", text=f"question {number}") for number in range(1, 21)]
    async with Aimock.serve(fixtures=FIXTURES) as aimock:
        config = {**QUIET, "providers": {"openai": {"base_url": f"{aimock.url}/v1", "api_key": "sk-canary-1"}}}
        async with LLMGateway(config) as gateway, gateway.job(Path("work.job"), lane="batch", poll=0.01) as job:
            outcomes = [outcome async for outcome in job.run(requests)]
            ledger = await job.ledger()
        paths = [entry["path"] for entry in await aimock.journal()]
    answers = {outcome.number: outcome.response for outcome in outcomes}
    assert sorted(answers) == list(range(1, 21))
    first, second = answers[1], answers[2]
    assert first is not None
    assert second is not None
    assert (first.content, second.content) == ("an answer", "Mock batch completion")
    assert second.receipt is not None
    assert second.receipt.price_lane == "batch"
    assert ledger.adds_up
    assert (ledger.answered, ledger.in_doubt) == (20, 0)
    assert paths.count("/v1/chat/completions") == paths.count("/v1/batches") == 1
