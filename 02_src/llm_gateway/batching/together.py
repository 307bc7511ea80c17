"""One provider call that answers several tickets, where a provider takes many texts in one call: embeddings."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from llm_gateway.clients.base import ChatClient, Completion
from llm_gateway.config import EmbeddingSettings
from llm_gateway.errors import ProviderError, RequestRejectedError
from llm_gateway.models import EmbeddingRequest, TokenUsage
from llm_gateway.queue import Ticket
from llm_gateway.router import Upstream

LIMITS = {"openai": (2048, 300_000), "azure_openai": (2048, 300_000), "ollama": (512, 100_000)}
OTHERS = (96, 16_000)  # what the strictest of the well-known ones take
MARGIN = 0.8  # of the tokens; they are estimated, and rarely by more than a quarter too few


class Room(NamedTuple):
    """How much one call takes."""

    texts: int
    tokens: float  # by estimate


def room_of(upstreams: Sequence[Upstream]) -> Room | None:
    """Return what one call takes at each of the deployments of a model; None where every request is a call."""
    rooms = [_room(upstream) for upstream in upstreams if upstream.deployment.settings.embedding]
    return Room(min(each.texts for each in rooms), min(each.tokens for each in rooms)) if rooms else None


def _room(upstream: Upstream) -> Room:
    given = upstream.deployment.settings.embedding
    texts, tokens = LIMITS.get(upstream.deployment.endpoint.kind, OTHERS)
    if isinstance(given, EmbeddingSettings):
        texts, tokens = given.max_inputs or texts, given.max_tokens or tokens
    return Room(texts, tokens * MARGIN)


@dataclass(slots=True)
class Load:
    """What is in a call that is put together."""

    room: Room
    texts: int = 0
    tokens: float = 0.0
    party: object = None

    def takes(self, ticket: Ticket) -> bool:
        """Whether a ticket can go with those that are in it."""
        texts, tokens = size_of(ticket)
        fits = self.texts + texts <= self.room.texts and self.tokens + tokens <= self.room.tokens
        return not self.texts or (fits and ticket.party is self.party)

    def add(self, ticket: Ticket) -> bool:
        """Take it in; return whether not one more text can go with it."""
        texts, tokens = size_of(ticket)
        self.texts += texts
        self.tokens += tokens
        self.party = ticket.party
        return self.texts >= self.room.texts or self.tokens >= self.room.tokens


def size_of(ticket: Ticket) -> tuple[int, int]:
    """Return how many texts a ticket has, and how many tokens by estimate."""
    request = ticket.request
    return len(request.messages), request.tokens if isinstance(request, EmbeddingRequest) else 0


class SharedCall:
    """The call of one batch: made when the first of its tickets asks, cancelled when the last one no longer waits.

    Each ticket gets its own vectors and its part of the usage. The first to hear the outcome tells the deployment of
    it, the others are marked as its echo: one call counts once. A call of several tickets that is rejected is parted in
    two halves, so that only who brought the fault fails by it.
    """

    def __init__(self, client: ChatClient, tickets: Sequence[Ticket]) -> None:
        self._client = client
        self._tickets = tickets
        self._asked: list[Ticket] = []
        self._call: asyncio.Task[dict[Ticket, Completion]] | None = None
        self._waiting = 0
        self._told = False

    async def answer(self, ticket: Ticket, /) -> Completion:
        """Return what the call has for a ticket. Raises what the call raises."""
        ticket.echo = ticket.parted = False
        if self._call is None:
            self._asked = [each for each in self._tickets if not each.ended]
            self._call = asyncio.create_task(self._make())
        self._waiting += 1
        try:
            completion = (await asyncio.shield(self._call))[ticket]
        except ProviderError as error:
            ticket.echo, self._told = self._told, True
            if len(self._asked) > 1 and isinstance(error, RequestRejectedError):
                self._part(ticket)
            # A copy for each: what it tells of the attempts is its ticket's own.
            raise copy.copy(error) from error.__cause__
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._call.cancel()
        ticket.echo, self._told = self._told, True
        ticket.vectors = completion.vectors
        return replace(completion, headers={}) if ticket.echo else completion

    async def ended(self) -> None:
        """Return when nothing of the call is under way any more."""
        if self._call is not None:
            self._call.cancel()
            await asyncio.wait((self._call,))
            if not self._call.cancelled():
                self._call.exception()  # whom it concerned has it

    def _part(self, ticket: Ticket) -> None:
        """Let the halves of those who asked go apart; which objects tell them apart does not matter."""
        place = self._asked.index(ticket)
        ticket.party = self._asked[0 if place < len(self._asked) // 2 else -1]
        ticket.parted = True

    async def _make(self) -> dict[Ticket, Completion]:
        requests = [ticket.request for ticket in self._asked]
        first = requests[0]
        messages = [message for request in requests for message in request.messages]
        sizes = [size_of(ticket)[1] for ticket in self._asked]
        fields = {name: getattr(first, name) for name in LLM_FIELDS} | {"messages": messages, "tokens": sum(sizes)}
        whole = await self._client.generate(EmbeddingRequest.trusted(**fields))
        vectors = whole.vectors or ()
        ends = list(accumulate(len(request.messages) for request in requests))
        usages = split(whole.usage, sizes)
        return {
            ticket: replace(whole, vectors=vectors[end - len(ticket.request.messages) : end], usage=usage)
            for ticket, end, usage in zip(self._asked, ends, usages, strict=True)
        }


LLM_FIELDS = tuple(EmbeddingRequest.model_fields)


def split(usage: TokenUsage | None, weights: Sequence[int]) -> list[TokenUsage | None]:
    """Part a usage by weight, to the token: the parts add up to the whole."""
    if usage is None:
        return [None] * len(weights)
    if len(weights) == 1:
        return [usage]
    return [TokenUsage(input_tokens=part) for part in _parts(usage.input_tokens, weights)]


def _parts(total: int, weights: Sequence[int]) -> Iterable[int]:
    whole = sum(weights)
    before = 0
    for reached in accumulate(weights):
        until = total * reached // whole
        yield until - before
        before = until
