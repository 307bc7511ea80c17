"""What a job notes of the models that it asks, so that no later run asks others under the same names."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from llm_gateway.config import GatewayConfig
from llm_gateway.errors import JobChangedError
from llm_gateway.jobs.records import NewRow
from llm_gateway.sentences import SECRET

MODEL = "model:"  # before the name of a model among the facts of a job


async def noted(
    rows: AsyncIterable[NewRow], config: GatewayConfig, note: Callable[[Mapping[str, Any]], Awaitable[None]]
) -> AsyncIterator[NewRow]:
    """Yield the rows; note what each model is before the first row of it."""
    seen: set[str] = set()
    async for row in rows:
        if row.model and row.model not in seen:
            seen.add(row.model)
            await note({f"{MODEL}{row.model}": told_of(row.model, config)})
        yield row


def check_models(facts: Mapping[str, Any], config: GatewayConfig, *, place: str) -> None:
    """Raise JobChangedError if a model that the job at `place` has asked is configured otherwise now."""
    for name, before in facts.items():
        if not name.startswith(MODEL):
            continue
        model = name.removeprefix(MODEL)
        now = told_of(model, config)
        if now != before:
            raise JobChangedError(
                f"Model '{model}' was {before} when the job {place} began, and is {now} now; "
                "configure it as it was, or begin another job."
            )


def told_of(name: str, config: GatewayConfig) -> str:
    """Return what decides on the answers of a model, without secrets."""
    settings = config.model(name)
    options = {key: value for key, value in settings.options.items() if not SECRET.search(key)}
    facts = {"max_tokens": settings.max_tokens, **options}
    told = ", ".join(f"{key}={value}" for key, value in facts.items() if value is not None)
    return f"{settings.provider}/{settings.model}{f' ({told})' if told else ''}"
