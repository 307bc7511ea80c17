"""What a job's store holds: rows and their states, leases, verdicts, results, and the ledger over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, TypeVar, dataclass_transform

from llm_gateway.models import LLMRequest

C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[C]) -> type[C]:
    """Make a record of a class: frozen for the type checker, but not when it runs.

    Freezing is done attribute by attribute and would triple the time of a record; each row makes some.
    """
    return dataclass(slots=True, kw_only=True)(cls)


class RowState(IntEnum):
    """Where a row stands."""

    PENDING = 0  # to be asked
    LEASED = 1  # somebody asks it now, or did when the process died
    DONE = 2  # answered
    FAILED = 3  # refused, or asked in vain


ALLOWED: Mapping[RowState, frozenset[RowState]] = {
    RowState.PENDING: frozenset({RowState.LEASED}),
    RowState.LEASED: frozenset({RowState.DONE, RowState.FAILED, RowState.PENDING}),
    RowState.FAILED: frozenset({RowState.PENDING}),
    RowState.DONE: frozenset(),
}
"""Which moves there are; no other is ever made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a row has no answer. `kind` is the `kind` of the error's class, or "bug"."""

    kind: str
    body: bytes  # JSON: kind, message, retryable, attempts, status


@dataclass(slots=True, kw_only=True)
class NewRow:
    """A row of the input. One that cannot be asked has no request, but the reason in `failure`."""

    number: int  # from 1, in the order of the input
    key: str | None  # the id that no other row has; None: the row names none that could be used
    form: str  # whatever the reader of the results needs to know
    model: str = ""
    fingerprint: bytes = b""
    request: bytes = b""
    failure: Failure | None = None
    leased: bool = False  # taken in and leased in one step: nobody else has seen it
    asked: LLMRequest | None = None  # what `request` says, for whoever has it at hand; no part of what is stored

    @property
    def state(self) -> RowState:
        """Where the row stands once it is taken in."""
        if self.failure is not None:
            return RowState.FAILED
        return RowState.LEASED if self.leased else RowState.PENDING


class Lease(NamedTuple):
    """The right to record what becomes of a row. It ends when the row is leased anew."""

    number: int
    turn: int  # how many times the row was leased, this time included
    key: str
    request: bytes
    invalid: int  # answers so far that were not what the schema asks for


@record
class Calls:
    """What is known of the calls that were recorded under one lease. What is not counted here is in doubt."""

    answered: int = 0  # paid
    refused: int = 0  # failed, and it is known how
    unsent: int = 0  # recorded, but never made
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0  # as far as it is known
    unpriced: int = 0  # answers of unknown cost


@record
class Verdict:
    """What becomes of a leased row: an answer, a failure, or neither, and it is pending again."""

    calls: Calls
    answer: bytes | None = None
    failure: Failure | None = None
    invalid: bool = False  # an answer came and was not what the schema asks for
    broken_off: bool = False  # a call was under way when it ended

    @property
    def state(self) -> RowState:
        """Where the row goes."""
        if self.answer is not None:
            return RowState.DONE
        return RowState.FAILED if self.failure is not None else RowState.PENDING


class StoredResult(NamedTuple):
    """The end of a row, as it was recorded. `id` grows in the order of recording."""

    id: int
    number: int
    key: str | None
    form: str
    kind: str | None  # of the failure; None: answered
    body: bytes  # JSON of the response, or of the failure
    asked: bool  # False: the row could not be asked
    attempts: int  # provider calls that were made for the row or may have been, in all its leases
    input_tokens: int
    output_tokens: int
    cost_usd: float
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All rows and all calls of a job, added up in the store."""

    pending: int = 0
    leased: int = 0
    done: int = 0
    malformed: int = 0  # failed, and never asked
    failed: Mapping[str, int] = field(default_factory=dict)  # asked in vain, by kind
    examples: Mapping[str, str] = field(default_factory=dict)  # the first message of each kind
    asked: int = 0  # rows with at least one call that was made or may have been
    calls: int = 0  # recorded, each before it was made
    answered: int = 0
    refused: int = 0
    unsent: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    last_result: int = 0  # the highest id
    rows: int = 0  # counted by itself, so that it can be compared

    @property
    def in_doubt(self) -> int:
        """Calls that were recorded and may have been made and paid, but no answer is known."""
        return self.calls - self.answered - self.refused - self.unsent

    @property
    def ended(self) -> int:
        """Rows that have a result."""
        return self.done + self.malformed + sum(self.failed.values())

    @property
    def adds_up(self) -> bool:
        """Whether each row is in one state, and no call is counted twice."""
        return self.rows == self.ended + self.pending + self.leased and self.in_doubt >= 0
