"""The seam to a provider's batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from llm_gateway.budgets import BatchPurse
from llm_gateway.clients.base import Completion
from llm_gateway.errors import ProviderError
from llm_gateway.events import Observer
from llm_gateway.models import LLMRequest
from llm_gateway.price_lanes import BatchLimits
from llm_gateway.pricing import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a batch stands."""

    state: str  # the provider's own word
    is_over: bool  # nothing more happens to it, and its results are there
    is_ending: bool = False  # somebody has cancelled it
    is_whole: bool = False  # it ended by itself: a request without a result is a riddle, not one that was not served
    code: str | None = None  # why the provider refused the whole of it
    reason: str = ""  # the same in the provider's words
    served: int = 0  # requests answered or failed so far, where the provider says so


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """What became of one request of a batch. None: it was not served, and is not paid."""

    custom_id: str
    outcome: Completion | ProviderError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """A batch that may have been made, and what tells others from it."""

    intent: str
    requests: int  # that it holds
    since: datetime  # when the intent was stored; the batch was made soon after, or never
    known: Collection[str]  # ids of batches that are others


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search for a batch found."""

    batch_id: str | None = None
    may_come: bool = False  # one that is under way may be it; its results will tell


class CreationFailedError(Exception):
    """A batch was not made, or nobody knows."""

    def __init__(self, error: ProviderError, *, doubtful: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.doubtful = doubtful  # it may have been made


class BatchClient(Protocol):
    """The batches of one deployment. Every method that asks the provider raises ProviderError, and never repeats."""

    limits: BatchLimits

    def line(self, custom_id: str, request: LLMRequest, /) -> bytes | None:
        """Return a request as a batch has it, one JSON object; None for one that cannot go there.

        Raises ProviderError for one that has no form on the wire.
        """

    def finished(self, request: LLMRequest, completion: Completion, /) -> Completion:
        """Return the answer to a request as its caller sees it: also where a tool had to take the answer's format."""

    async def create(self, intent: str, lines: Sequence[bytes], /) -> str:
        """Make a batch and return its id. Raises CreationFailedError and nothing else.

        `intent` can be told from the batch later, or from its results: `find` does.
        """

    async def look(self, batch_id: str, /) -> Standing:
        """Return how a batch stands."""

    async def find(self, sought: Sought, /) -> Found:
        """Look for a batch among all of the account."""

    def results(self, batch_id: str, /) -> AsyncGenerator[BatchAnswer, None]:
        """Yield what became of the requests of a batch that is over, in any order."""

    async def cancel(self, batch_id: str, /) -> None:
        """Ask for the end of a batch; what was answered until then stays. One that is over already stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """What a job needs to send a model's requests in batches."""

    client: BatchClient
    label: str  # of the deployment
    price: Price  # of the standard lane
    purse: BatchPurse | None  # None: no budget applies to the model
    observer: Observer  # of the gateway
    with_text: bool = False  # hand prompts and answers to it


def custom_id(intent: str, number: int) -> str:
    """Return what a batch calls the row of a number: it tells the batch's intent, in all alphabets of providers."""
    return f"{intent}-{number}"


def number_of(told: str, intent: str) -> int | None:
    """Return the number of a row, None if the id is none of this intent's."""
    head, _, number = told.rpartition("-")
    return int(number) if head == intent and number.isascii() and number.isdigit() else None
