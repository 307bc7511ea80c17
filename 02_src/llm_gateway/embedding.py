"""Texts of one caller on their way to vectors: cut into what a call takes, asked in the lane, put together again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm_gateway.batching import Lane
from llm_gateway.batching.together import Room
from llm_gateway.clients.text import lone_surrogate
from llm_gateway.errors import (
    EmbeddingError,
    GatewayError,
    InvalidRequestError,
    RequestRejectedError,
    RequestTooLargeError,
)
from llm_gateway.models import (
    EmbeddingRequest,
    EmbeddingResponse,
    LLMMessage,
    LLMResponse,
    ModelProvider,
    Receipt,
    TokenUsage,
)
from llm_gateway.queue import Ticket
from llm_gateway.tokens import estimate_text

AT_ONCE = 1000  # texts that are looked at before others on the loop get their turn
PARTIBLE = (RequestRejectedError, RequestTooLargeError)  # what one half may well not meet
RECORD = "embed"


def question(model: ModelProvider | str, fields: Mapping[str, Any]) -> EmbeddingRequest:
    """Return what all calls of one caller have in common; fields that are None are inherited or left out.

    Raises InvalidRequestError.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return EmbeddingRequest(model=model, messages=[LLMMessage(role="user")], **given)


def checked(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list. Raises InvalidRequestError for what every model refuses, by its place."""
    if isinstance(texts, str | bytes):
        raise InvalidRequestError("one text; give a list, [text].", field="texts", record=RECORD)
    if not isinstance(texts, Iterable):
        raise InvalidRequestError(f"{type(texts).__name__} is no list of texts.", field="texts", record=RECORD)
    found = list(texts)
    if not found:
        raise InvalidRequestError("empty; give at least one text.", field="texts", record=RECORD)
    for place, text in enumerate(found):
        field = f"texts[{place}]"
        if not isinstance(text, str):
            raise InvalidRequestError(f"{type(text).__name__} is no text.", field=field, record=RECORD)
        if not text:
            raise InvalidRequestError("empty; no model makes a vector of it. Leave it out.", field=field, record=RECORD)
        if not text.isascii() and (half := lone_surrogate(text)) is not None:
            reason = (
                f"holds a lone surrogate at character {half}; text.encode('utf-8', 'replace').decode() replaces it."
            )
            raise InvalidRequestError(reason, field=field, record=RECORD)
    return found


class Embedding:
    """One call of `embed`: its texts, the tickets that stand for parts of them, and what came of each text."""

    def __init__(
        self, lane: Lane, room: Room, request: EmbeddingRequest, texts: Sequence[str], *, since: float
    ) -> None:
        self._lane = lane
        self._room = room
        self._request = request
        self._texts = texts
        self._since = since
        self._weights: list[int] = []
        self._tickets: list[Ticket] = []
        self._waiting: deque[tuple[range, Ticket]] = deque()
        self._vectors: list[list[float] | None] = [None] * len(texts)
        self._errors: dict[int, BaseException] = {}
        self._answers: list[LLMResponse] = []

    async def run(self) -> EmbeddingResponse:
        """Return the vectors. Raises EmbeddingError with those that came, or the error of all texts."""
        try:
            for start in range(0, len(self._texts), AT_ONCE):
                self._weights += [max(1, round(estimate_text(each))) for each in self._texts[start : start + AT_ONCE]]
                await asyncio.sleep(0)
            for span in cut(self._weights, self._room):
                await self._enter(span)
            while self._waiting:
                await self._take(*self._waiting.popleft())
        finally:
            for ticket in self._tickets:
                ticket.home.discard(ticket)
        return self._outcome()

    async def _enter(self, span: range) -> None:
        """Submit some of the texts as soon as there is room; a part that can never go, in parts."""
        parts = [span]
        while parts:
            part = parts.pop()
            request = self._part(part)
            try:
                await self._lane.room(request)
                ticket = self._lane.submit(request, since=self._since)
            except GatewayError as error:
                if isinstance(error, PARTIBLE) and len(part) > 1:
                    parts += reversed(halves(part))
                else:
                    self._errors.update(dict.fromkeys(part, error))
            else:
                self._tickets.append(ticket)
                self._waiting.append((part, ticket))

    def _part(self, span: range) -> EmbeddingRequest:
        whole = self._request
        update: dict[str, Any] = {
            "messages": [
                LLMMessage.trusted(role="user", content=self._texts[place], tool_calls=None, tool_call_id=None)
                for place in span
            ],
            "tokens": sum(self._weights[span.start : span.stop]),
        }
        if len(span) < len(self._texts):
            update["request_id"] = f"{whole.request_id}-{span.start}-{span.stop - 1}"
        return whole.model_copy(update=update)

    async def _take(self, span: range, ticket: Ticket) -> None:
        """Wait for a part; one that is rejected is asked again in halves, until it is known which text is at fault."""
        if not ticket.reply.done():
            await asyncio.wait((ticket.reply,))
        error = ticket.reply.exception()
        if error is None:
            self._answers.append(ticket.reply.result())
            self._vectors[span.start : span.stop] = ticket.vectors or ()
        elif isinstance(error, PARTIBLE) and len(span) > 1:
            for half in halves(span):
                await self._enter(half)
        else:
            self._errors.update(dict.fromkeys(span, error))

    def _outcome(self) -> EmbeddingResponse:
        vectors = [each for each in self._vectors if each is not None]
        if not vectors:
            raise self._errors[min(self._errors)]
        receipts = [answer.receipt for answer in self._answers if answer.receipt is not None]
        receipt = receipts[0] if len(receipts) == 1 else joined(receipts)
        if self._errors:
            raise EmbeddingError(self._errors, vectors=self._vectors, receipt=receipt)
        return EmbeddingResponse.trusted(
            request_id=self._request.request_id,
            vectors=vectors,
            model=self._answers[0].model,
            tokens_used=receipt.usage.total_tokens if receipt.usage is not None else None,
            receipt=receipt,
        )


def cut(weights: Sequence[int], room: Room) -> Iterator[range]:
    """Yield the places of neighbouring texts that fit into one call, as many as do; one too heavy goes alone."""
    start, tokens = 0, 0
    for place, weight in enumerate(weights):
        if place > start and (place - start >= room.texts or tokens + weight > room.tokens):
            yield range(start, place)
            start, tokens = place, 0
        tokens += weight
    yield range(start, len(weights))


def halves(span: range) -> tuple[range, range]:
    """Return both halves of what has more than one text."""
    middle = len(span) // 2
    return span[:middle], span[middle:]


def joined(receipts: Sequence[Receipt]) -> Receipt:
    """Return one receipt for several calls; what one of them does not know is not known of all."""
    usages = [each.usage.input_tokens for each in receipts if each.usage is not None]
    costs = [each.cost_usd for each in receipts if each.cost_usd is not None]
    reserved = [each.reserved_tokens for each in receipts if each.reserved_tokens is not None]
    return receipts[0].model_copy(
        update={
            "queue_wait": max(each.queue_wait for each in receipts),
            "provider_time": max(each.provider_time for each in receipts),
            "attempts": sum(each.attempts for each in receipts),
            "usage": TokenUsage(input_tokens=sum(usages)) if len(usages) == len(receipts) else None,
            "reserved_tokens": sum(reserved) if reserved else None,
            "cost_usd": sum(costs) if len(costs) == len(receipts) else None,
        }
    )
