"""Whether an answer is what its request's format asks for."""

from __future__ import annotations

from dataclasses import replace

from llm_gateway.answers import AnswerForm, Reading
from llm_gateway.clients.base import Completion

REFUSALS = frozenset({"refusal", "content_filter"})
TOO_LONG = "It was cut off at the limit of its tokens before it was whole. Be briefer."


def reading_of(completion: Completion, form: AnswerForm) -> Reading:
    """Hold an answer against a form; why it ended tells more than where its JSON breaks off."""
    reading = form.read(completion.content)
    if reading.problem is None:
        return reading
    if completion.finish_reason in REFUSALS:
        reason = completion.finish_reason.replace("_", " ")
        return Reading(problem=f"The model did not answer as asked ({reason}); change the prompt.", hopeless=True)
    if completion.finish_reason == "length":
        problem = f"The answer was cut off at its limit of tokens; raise max_tokens. {reading.problem}"
        return replace(reading, problem=problem, advice=TOO_LONG)
    return reading
