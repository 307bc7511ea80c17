"""What a scripted reply leaves out, made up from the seed and the request: the same ones give the same answer."""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from typing import Any

from llm_gateway.clients.base import Completion
from llm_gateway.formats import schema_of
from llm_gateway.mock_gateway.examples import example_of
from llm_gateway.mock_gateway.matching import Asked, shown
from llm_gateway.mock_gateway.responses import Reply, ScriptedToolCall
from llm_gateway.models import LLMRequest, LLMToolCall, TokenUsage

CHARACTERS_PER_TOKEN = 4  # of English, about
MESSAGE_OVERHEAD = 4  # tokens
# What the answer depends on. Who asks, how urgently and under which id changes no answer of a real model either.
ASKED = {"messages", "tools", "temperature", "max_tokens", "stop", "tool_choice", "response_format"}


def digest_of(seed: int, asked: Asked) -> str:
    """Return 16 hexadecimal digits that depend on the seed, the model and what was asked, and on nothing else."""
    question = asked.request.model_dump(mode="json", include=ASKED)
    text = json.dumps([seed, asked.model, question], sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def completion_of(reply: Reply, asked: Asked, seed: int) -> Completion:
    """Return the answer that `reply` scripts, with what it leaves out made up."""
    digest = digest_of(seed, asked)
    scripted = reply.tool_calls
    if scripted is None and reply.content is None:
        scripted = _demanded_call(asked.request)
    calls = tuple(_tool_call(call, f"call_{digest}_{place}") for place, call in enumerate(scripted or ()))
    content, reason = reply.content, "tool_calls" if calls else "stop"
    if content is None:
        content, reason = ("", reason) if calls else _made_up(asked, digest)
    estimated = "usage" not in reply.model_fields_set
    return Completion(
        content=content,
        tool_calls=calls,
        finish_reason=reply.finish_reason or reason,
        usage=_estimate(asked, content, calls) if estimated else reply.usage,
    )


def _tool_call(call: ScriptedToolCall, new_id: str) -> LLMToolCall:
    return LLMToolCall(id=call.id or new_id, name=call.name, arguments=call.arguments)


def _demanded_call(request: LLMRequest) -> list[ScriptedToolCall] | None:
    """Return the tool call that the request leaves the model no choice about."""
    choice = request.tool_choice
    tools = [tool for tool in request.tools or () if choice in {"any", tool.name}]
    if not tools or choice in {None, "auto", "none"}:
        return None
    return [ScriptedToolCall(name=tools[0].name, arguments=example_of(tools[0].input_schema))]


def _made_up(asked: Asked, digest: str) -> tuple[str, str]:
    """Return a text that nobody takes for a model's, and why it ends."""
    schema, longest = asked.request.response_format, asked.request.max_tokens
    text = f"Mock answer {digest} of {asked.model} to {shown(asked.text)}."
    if schema is not None:
        text = json.dumps(example_of(schema_of(schema)))
    if longest is None or _tokens(text) <= longest:
        return text, "stop"
    return text[: longest * CHARACTERS_PER_TOKEN], "length"


def _estimate(asked: Asked, content: str, calls: tuple[LLMToolCall, ...]) -> TokenUsage:
    request = asked.request
    read = sum(MESSAGE_OVERHEAD + _tokens(_plain(each.content)) for each in request.messages)
    read += sum(_tokens(_plain(tool.model_dump())) for tool in request.tools or ())
    written = _tokens(content) + sum(_tokens(_plain(call.model_dump())) for call in calls)
    return TokenUsage(input_tokens=read, output_tokens=max(1, written))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
