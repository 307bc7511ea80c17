"""OpenAI's batches: a file of requests goes up, files of answers and of errors come down."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Any, Literal

import openai
from openai.types import Batch

from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches.base import BatchAnswer, CreationFailedError, Found, Sought, Standing
from llm_gateway.clients.batches.reading import Record, Translator
from llm_gateway.clients.lean.coding import decode_object, encode
from llm_gateway.clients.messages import UnreadableAnswerError
from llm_gateway.models import LLMRequest
from llm_gateway.price_lanes import BATCH_LIMITS

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
INTENT = "llm_gateway_intent"  # the key among a batch's metadata
OVER = frozenset({"failed", "completed", "expired", "cancelled"})
NOT_SERVED = frozenset({"batch_expired", "batch_cancelled"})  # codes of requests in the file of errors
CLOCK_SKEW = 3600.0  # seconds by which a provider's clock may be behind ours


class OpenAIBatches:
    """BatchClient over OpenAI's SDK."""

    limits = BATCH_LIMITS["openai"]

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        model: Any = translator.model
        self._model = model
        self._sdk: openai.AsyncOpenAI = model.root_async_client

    def line(self, custom_id: str, request: LLMRequest, /) -> bytes | None:
        """Return a request as a line of the file; None for one that chat completions do not take."""
        payload = self._translator.payload(request)
        if self._model._use_responses_api(payload):  # noqa: SLF001 - as in a call
            return None
        return encode({"custom_id": custom_id, "method": "POST", "url": URL, "body": payload})

    def finished(self, request: LLMRequest, completion: Completion, /) -> Completion:
        """Return the answer to a request as its caller sees it."""
        return self._translator.finished(request, completion)

    async def create(self, intent: str, lines: Sequence[bytes], /) -> str:
        """Upload the file, then make the batch: until then nothing can cost anything."""
        try:
            content = b"\n".join([*lines, b""])
            file = await self._sdk.files.create(file=(f"{intent}.jsonl", content), purpose="batch")
        except Exception as error:  # noqa: BLE001 - whatever it is, `failure` has a name for it
            raise CreationFailedError(self._translator.failure(error, intent), doubtful=False) from None
        try:
            batch = await self._sdk.batches.create(
                input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={INTENT: intent}
            )
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._translator.failure(error, intent)
            raise CreationFailedError(failure, doubtful=is_doubtful(failure.status)) from None
        return batch.id

    async def look(self, batch_id: str, /) -> Standing:
        """Return how a batch stands."""
        try:
            batch = await self._sdk.batches.retrieve(batch_id)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None
        told = (batch.errors.data if batch.errors is not None else None) or []
        first = told[0] if told else None
        counts = batch.request_counts
        return Standing(
            state=batch.status,
            is_over=batch.status in OVER,
            is_ending=batch.status == "cancelling",
            is_whole=batch.status == "completed",
            code=(first.code or "unknown") if batch.status == "failed" and first else None,
            reason=(first.message or "") if first else "",
            served=counts.completed + counts.failed if counts else 0,
        )

    async def find(self, sought: Sought, /) -> Found:
        """Look through the metadata of the newest batches."""
        oldest = sought.since.timestamp() - CLOCK_SKEW
        try:
            async for batch in self._sdk.batches.list(limit=100):
                if (batch.metadata or {}).get(INTENT) == sought.intent:
                    return Found(batch_id=batch.id)
                if batch.created_at < oldest:
                    break
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, sought.intent) from None
        return Found()

    async def results(self, batch_id: str, /) -> AsyncGenerator[BatchAnswer, None]:
        """Yield the lines of both files, the answers first."""
        try:
            batch = await self._sdk.batches.retrieve(batch_id)
            for file in _files(batch):
                async with self._sdk.files.with_streaming_response.content(file) as response:
                    async for text in response.iter_lines():
                        if (answer := self._answer(text)) is not None:
                            yield answer
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None

    def _answer(self, text: str) -> BatchAnswer | None:
        """Read a line; None for one that tells nothing."""
        try:
            line = decode_object(text.encode())
        except UnreadableAnswerError:
            return None
        told = line.get("custom_id")
        if not isinstance(told, str):
            return None
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict):
            return BatchAnswer(custom_id=told, outcome=self._outcome(told, response))
        code = error.get("code") if isinstance(error, dict) else None
        if code in NOT_SERVED:
            return BatchAnswer(custom_id=told, outcome=None)
        refused = self._translator.refused(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": error}, told)
        return BatchAnswer(custom_id=told, outcome=refused)

    def _outcome(self, told: str, response: Record) -> Any:
        status, body = response.get("status_code"), response.get("body")
        if isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST:
            return self._translator.refused(status, body, told)
        return self._translator.completion(body, self._model._create_chat_result, told)  # noqa: SLF001 - a test watches over it

    async def cancel(self, batch_id: str, /) -> None:
        """Ask for the end of a batch."""
        try:
            await self._sdk.batches.cancel(batch_id)
        except (openai.BadRequestError, openai.ConflictError):
            pass  # it is over
        except Exception as error:  # noqa: BLE001 - as above
            raise self._translator.failure(error, batch_id) from None


def _files(batch: Batch) -> list[str]:
    return [file for file in (batch.output_file_id, batch.error_file_id) if file]


def is_doubtful(status: int | None) -> bool:
    """Whether a creation that failed with this status, None for none, may have made a batch all the same."""
    return status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT
