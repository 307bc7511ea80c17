"""What goes wrong with an answer, in the form that `clients.failures` reads: a status, a body, words.

Their texts hold all that the provider said, so that a key in it is found and the text kept out of the error we raise.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from langchain_core.exceptions import ContextOverflowError


class RefusedError(Exception):
    """The provider answered with a status that is no success."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"Error code: {status} - {body}")
        self.status_code = status
        self.body = body or None
        # What stands for words where the body has none; as the SDKs say it.
        self.message = f"Error code: {status}"


class TooLongError(RefusedError, ContextOverflowError):
    """The provider refused a prompt that its model's context does not hold."""


class ErrorEventError(Exception):
    """The provider began to answer, and sent an error in the middle of it."""

    def __init__(self, body: Any) -> None:
        super().__init__(f"The stream ended in an error: {body}")
        self.body = body
        self.message = "no reason given"


class OverflowEventError(ErrorEventError, ContextOverflowError):
    """The provider found in the middle of its answer that its model's context does not hold it."""


class AnswerTooLargeError(Exception):
    """The answer is longer than any that we take; another call would most likely bring as much."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer is larger than {limit} bytes, the most that is taken")


def refusal(status: int, body: Any, too_long: Iterable[str] = ()) -> RefusedError:
    """Return the error of a status that is no success; `too_long` are the words for a prompt that is that."""
    found = status == HTTPStatus.BAD_REQUEST and any(words in str(body) for words in too_long)
    return TooLongError(status, body) if found else RefusedError(status, body)


def error_event(body: Any, too_long: Iterable[str] = ()) -> ErrorEventError:
    """Return the error of an event that says so."""
    found = any(words in str(body) for words in too_long)
    return OverflowEventError(body) if found else ErrorEventError(body)
