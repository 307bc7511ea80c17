"""What a job hands out: a response to each request, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from llm_gateway.jobs.encoding import from_json
from llm_gateway.jobs.records import StoredResult
from llm_gateway.models import LLMResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What became of one request of a job: a response, or why there is none."""

    number: int  # of the request, from 1, in the order they were given
    request_id: str | None  # as given, "row-N" where none was given; None: it stood on an earlier request too
    response: LLMResponse | None = None
    kind: str | None = None  # of the error, as in its class
    message: str | None = None  # of the error
    attempts: int = 0  # provider calls, those of earlier runs included

    @property
    def ok(self) -> bool:
        """Whether there is a response."""
        return self.response is not None


def outcome_of(result: StoredResult) -> JobOutcome:
    """Return the outcome that was recorded."""
    told = from_json(result.body)
    if result.kind is None:
        return JobOutcome(
            number=result.number, request_id=result.key, response=LLMResponse(**told), attempts=result.attempts
        )
    return JobOutcome(
        number=result.number,
        request_id=result.key,
        kind=result.kind,
        message=told["message"],
        attempts=result.attempts,
    )
