"""What is known of a request whose last answer did not fit its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_gateway.models import LLMMessage, LLMRequest, LLMResponse

LONGEST_SHOWN = 8000  # characters of an answer that the model is shown again
NOTHING = "(no answer)"  # providers refuse a turn without text
OPENING = "That answer does not fit the JSON schema that was asked for."
COMPLAINT = OPENING + "\n{advice}\nAnswer again, with JSON that fits the schema and nothing else."


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """The last answer that was paid for and does not fit, and what was asked at first."""

    original: LLMRequest
    response: LLMResponse  # the receipt holds what this answer and those before it cost
    problem: str
    advice: str  # to the model

    def repeated(self) -> LLMRequest:
        """Return the request with the last answer and what is wrong with it; earlier ones are not shown again."""
        answer = self.response.content[:LONGEST_SHOWN]
        turns = [
            LLMMessage(role="assistant", content=answer if answer.strip() else NOTHING),
            LLMMessage(role="user", content=COMPLAINT.format(advice=self.advice)),
        ]
        return self.original.model_copy(update={"messages": [*self.original.messages, *turns]})


def asked_at_first(messages: Sequence[LLMMessage]) -> Sequence[LLMMessage]:
    """Return a conversation without the last answer that did not fit and what was said of it, if they are in it."""
    content = messages[-1].content
    return messages[:-2] if isinstance(content, str) and content.startswith(OPENING) and messages[2:] else messages
