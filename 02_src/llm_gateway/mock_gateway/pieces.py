"""A scripted answer cut into the pieces of a stream: the same answer gives the same pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llm_gateway.clients.base import Completion
from llm_gateway.models import ReasoningDelta, StreamDelta, TextDelta, ToolCallDelta

LONGEST_BIT = 16  # characters of a tool call's arguments in one piece


def pieces_of(completion: Completion, reasoning: str | None) -> Iterator[StreamDelta]:
    """Return the pieces: reasoning and text word by word, then each tool call, its arguments bit by bit."""
    for word in _words(reasoning or ""):
        yield ReasoningDelta(word)
    for word in _words(completion.content):
        yield TextDelta(word)
    for index, call in enumerate(completion.tool_calls):
        yield ToolCallDelta(index=index, id=call.id, name=call.name)
        text = json.dumps(call.arguments)
        for start in range(0, len(text), LONGEST_BIT):
            yield ToolCallDelta(index=index, arguments=text[start : start + LONGEST_BIT])


def _words(text: str) -> list[str]:
    """Split a text before the blanks, so that nothing is lost."""
    return re.findall(r"\s*\S+|\s+$", text)
