"""Anthropic's message batches: requests go up in one body, and results come down in one stream of lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import anthropic
from anthropic import RequestOptions
from anthropic._decoders.jsonl import AsyncJSONLDecoder
from anthropic.types.messages import MessageBatch

from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches.base import BatchAnswer, CreationFailedError, Found, Sought, Standing, number_of
from llm_gateway.clients.batches.openai import is_doubtful
from llm_gateway.clients.batches.reading import Translator
from llm_gateway.clients.lean.anthropic import Fields, Messages
from llm_gateway.clients.lean.coding import encode
from llm_gateway.errors import ProviderError
from llm_gateway.models import LLMRequest
from llm_gateway.price_lanes import BATCH_LIMITS

Lines = AsyncJSONLDecoder[object]
JSON: RequestOptions = {"headers": {"content-type": "application/json"}}
PATH = "/v1/messages/batches"
ENDED, ENDING = "ended", "canceling"
NOT_SERVED = frozenset({"expired", "canceled"})
CLOCK_SKEW = timedelta(hours=1)  # by which a provider's clock may be behind ours, or ahead of it
MAKING = timedelta(hours=1)  # from the intent until the batch is made, at most
STATUSES = {  # of the errors of single requests, which come without one
    "invalid_request_error": HTTPStatus.BAD_REQUEST,
    "authentication_error": HTTPStatus.UNAUTHORIZED,
    "billing_error": HTTPStatus.PAYMENT_REQUIRED,
    "permission_error": HTTPStatus.FORBIDDEN,
    "not_found_error": HTTPStatus.NOT_FOUND,
    "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
"""What is none of these may go well another time."""


class AnthropicBatches:
    """BatchClient over Anthropic's SDK."""

    limits = BATCH_LIMITS["anthropic"]

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        model: Any = translator.model
        self._model = model
        self._sdk: anthropic.AsyncAnthropic = model._async_client  # noqa: SLF001 - a test watches over it

    def line(self, custom_id: str, request: LLMRequest, /) -> bytes | None:
        """Return a request as a batch has it; None for one that needs a beta of the API."""
        payload = self._translator.payload(request)
        if not Messages.takes(payload):
            return None
        return encode({"custom_id": custom_id, "params": payload})

    def finished(self, request: LLMRequest, completion: Completion, /) -> Completion:
        """Return the answer to a request as its caller sees it."""
        return self._translator.finished(request, completion)

    async def create(self, intent: str, lines: Sequence[bytes], /) -> str:
        """Make a batch of lines that are JSON already."""
        body = b'{"requests":[' + b",".join(lines) + b"]}"
        try:
            batch = await self._sdk.post(PATH, content=body, cast_to=MessageBatch, options=JSON)
        except Exception as error:  # noqa: BLE001 - whatever it is, `failure` has a name for it
            failure = self._translator.failure(error, intent)
            raise CreationFailedError(failure, doubtful=is_doubtful(failure.status)) from None
        return batch.id

    async def look(self, batch_id: str, /) -> Standing:
        """Return how a batch stands."""
        try:
            batch = await self._sdk.messages.batches.retrieve(batch_id)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None
        counts = batch.request_counts
        return Standing(
            state=batch.processing_status,
            is_over=batch.processing_status == ENDED,
            is_ending=batch.processing_status == ENDING,
            is_whole=True,  # every request has a line, also one that was not served
            served=counts.succeeded + counts.errored,
        )

    async def find(self, sought: Sought, /) -> Found:
        """Look at the results of those that may be it: nothing else tells whose they are.

        One of another size, or of another time, is not it, whether it has ended or not.
        """
        may_come = False
        try:
            async for batch in self._sdk.messages.batches.list(limit=100):
                if batch.created_at < sought.since - CLOCK_SKEW:
                    break
                if batch.id in sought.known or not _may_be(batch, sought):
                    continue
                if batch.processing_status != ENDED:
                    may_come = True
                elif await self._is_of(batch.id, sought.intent):
                    return Found(batch_id=batch.id)
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, sought.intent) from None
        return Found(may_come=may_come)

    async def _is_of(self, batch_id: str, intent: str) -> bool:
        results = self.results(batch_id)
        try:
            async for answer in results:
                return number_of(answer.custom_id, intent) is not None
        finally:
            await results.aclose()
        return False

    async def results(self, batch_id: str, /) -> AsyncGenerator[BatchAnswer, None]:
        """Yield the lines of the results."""
        try:
            # By the address of the API, not by the one in the batch: a key goes to no host that it was not given for.
            lines = await self._sdk.get(f"{PATH}/{batch_id}/results", cast_to=Lines, stream=True)
            try:
                async for line in lines:
                    if (answer := self._answer(line)) is not None:
                        yield answer
            finally:
                await lines.close()
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None

    def _answer(self, line: object) -> BatchAnswer | None:
        """Read a line; None for one that tells nothing."""
        if not isinstance(line, dict):
            return None
        told, result = line.get("custom_id"), line.get("result")
        if not isinstance(told, str) or not isinstance(result, dict):
            return None
        if result.get("type") in NOT_SERVED:
            return BatchAnswer(custom_id=told, outcome=None)
        return BatchAnswer(custom_id=told, outcome=self._outcome(told, result))

    def _outcome(self, told: str, result: dict[str, Any]) -> Completion | ProviderError:
        if result.get("type") == "succeeded":
            read = self._model._format_output  # noqa: SLF001 - a test watches over it
            return self._translator.completion(result.get("message"), lambda answer: read(Fields(answer)), told)
        body = result.get("error")
        inner = body.get("error") if isinstance(body, dict) else None
        kind = inner.get("type") if isinstance(inner, dict) else None
        status = STATUSES.get(str(kind), HTTPStatus.INTERNAL_SERVER_ERROR)
        return self._translator.refused(status, body, told)

    async def cancel(self, batch_id: str, /) -> None:
        """Ask for the end of a batch."""
        try:
            await self._sdk.messages.batches.cancel(batch_id)
        except (anthropic.BadRequestError, anthropic.ConflictError):
            pass  # it is over
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None


def _may_be(batch: MessageBatch, sought: Sought) -> bool:
    counts = batch.request_counts
    # They add up to the size of the batch from its beginning on; one that tells nothing may be of any size.
    size = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    return size in {0, sought.requests} and batch.created_at <= sought.since + MAKING + CLOCK_SKEW
