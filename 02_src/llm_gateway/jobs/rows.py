"""Requests become rows."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from llm_gateway.config import GatewayConfig
from llm_gateway.errors import InvalidRequestError
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.encoding import request_json
from llm_gateway.jobs.records import NewRow
from llm_gateway.models import LLMRequest, ModelProvider

FORM = "request"  # of rows that a program gives
KEPT_BYTES = 65_536  # a longer request, with an image say, is read again when it is asked, and not kept until then


def name_of(model: ModelProvider | str) -> str:
    """Return the name of a model as the configuration has it."""
    return model.value if isinstance(model, ModelProvider) else model


def asked_row(number: int, request: LLMRequest, *, form: str) -> NewRow:
    """Return the row of a request that can be asked."""
    text, fingerprint = request_json(request)
    # The file keeps the schema of a class and not the class: answers must be the same in this run and in a later one.
    is_kept = len(text) <= KEPT_BYTES and not isinstance(request.response_format, type)
    return NewRow(
        number=number,
        key=request.request_id,
        form=form,
        model=name_of(request.model),
        fingerprint=fingerprint,
        request=text,
        asked=request if is_kept else None,
    )


async def rows_of(
    requests: Iterable[LLMRequest] | AsyncIterable[LLMRequest], config: GatewayConfig
) -> AsyncIterator[NewRow]:
    """Yield a row for each request, numbered from 1; one of a model that is not configured cannot be asked."""
    number = 0
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            number += 1
            yield _row(number, request, config)
    else:
        for request in requests:
            number += 1
            yield _row(number, request, config)


async def no_rows() -> AsyncIterator[NewRow]:
    """Yield no row."""
    rows: tuple[NewRow, ...] = ()
    for row in rows:
        yield row


def _row(number: int, request: LLMRequest, config: GatewayConfig) -> NewRow:
    if "request_id" not in request.model_fields_set:
        request = request.model_copy(update={"request_id": f"row-{number}"})
    try:
        config.model(name_of(request.model))
    except InvalidRequestError as error:
        return NewRow(number=number, key=request.request_id, form=FORM, failure=failure_of(error))
    return asked_row(number, request, form=FORM)
