"""The shortest conversation there is."""

from __future__ import annotations

from llm_gateway.models import LLMMessage


def conversation(prompt: str, system: str | None) -> list[LLMMessage]:
    """Return the messages of one question, after a system message if there is one."""
    question = LLMMessage(role="user", content=prompt)
    return [question] if system is None else [LLMMessage(role="system", content=system), question]
