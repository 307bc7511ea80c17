"""A provider that answers whatever LangChain's standard tests and agents ask, on the mock and on the emulator alike.

Where a tool may be called it calls one, with fitting arguments; after a tool's result it sums up; a schema gets a
value that fits it; everything else gets a friendly text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fakes.emulator import Call, Reply, ToolCall, Usage
from llm_gateway.mock_gateway.examples import example_of

GREETING = "Hello! How are you today?"
SUMMED_UP = "The tool has spoken."
CHINESE, JAPANESE = "你好啊集团", "こんにちは株式会社"
# What to call a tool with, where an example of its schema would not do.
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "magic_function": {"input": 3},
    "get_weather": {"location": "San Francisco, CA"},
    "greeting_generator": {"answer_style": "pirate"},
    "unicode_customer": {"customer_name": CHINESE, "description": "a company"},
}
USAGE = Usage(input=100, output=20, cache_read=40, cache_write=10, reasoning=5)


def emulated(call: Call) -> Reply:
    """Answer a call of any of the three APIs."""
    body = call.body
    schema = _schema(body)
    if schema is not None and not (body.get("tools") and not _has_result(body)):
        return Reply(text=json.dumps(example_of(schema)), usage=USAGE)
    tools = dict(map(_tool, body.get("tools") or ()))
    if tools and not _has_result(body):
        name = _chosen(body, list(tools))
        arguments = dict(ARGUMENTS.get(name) or example_of(tools[name]))
        if name == "unicode_customer" and JAPANESE in json.dumps(body["messages"], ensure_ascii=False):
            arguments["customer_name"] = JAPANESE
        return Reply(text="", tool_calls=(ToolCall(name=name, args=arguments),), usage=USAGE)
    return Reply(text=SUMMED_UP if _has_result(body) else GREETING, usage=USAGE)


def _schema(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the schema that the answer must follow, where OpenAI, Ollama or Anthropic have it."""
    formats = (
        body.get("response_format") or {},
        body.get("output_format") or {},
        (body.get("output_config") or {}).get("format") or {},
    )
    for each in formats:
        found = each.get("schema") or each.get("json_schema", {}).get("schema")
        if found is not None:
            return dict(found)
    return body.get("format")


def _tool(tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    function = tool.get("function", tool)
    return function["name"], function.get("parameters") or function.get("input_schema") or {}


def _chosen(body: Mapping[str, Any], names: list[str]) -> str:
    choice = body.get("tool_choice")
    named = choice.get("function", choice).get("name") if isinstance(choice, Mapping) else None
    return named or names[0]


def _has_result(body: Mapping[str, Any]) -> bool:
    if "messages" not in body:  # texts to embed
        return False
    last = body["messages"][-1]
    content = last.get("content")  # Ollama's result of nothing but a picture has none
    blocks = content if isinstance(content, list) else []
    return last["role"] == "tool" or any(block.get("type") == "tool_result" for block in blocks)


def scripted() -> dict[str, Any]:
    """Return the same provider as the mock's file of responses."""

    def calls(name: str, **changed: Any) -> dict[str, Any]:
        return {"tool_calls": [{"name": name, "arguments": {**ARGUMENTS[name], **changed}}], "usage": usage}

    usage = {"input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 40, "cache_write_tokens": 10}
    usage["reasoning_tokens"] = 5
    asked = {
        r"value of magic_function\(": calls("magic_function"),
        "Pirate greeting": calls("greeting_generator"),
        "weather in San Francisco": calls("get_weather"),
        CHINESE: calls("unicode_customer"),
        JAPANESE: calls("unicode_customer", customer_name=JAPANESE),
    }
    rules: list[dict[str, Any]] = [
        {"match": {"after_tool": "get_weather"}, "reply": {"content": SUMMED_UP, "usage": usage}},
        *({"match": {"regex": regex}, "reply": reply} for regex, reply in asked.items()),
        {"match": {"contains": "reason"}, "reply": {"content": GREETING, "usage": usage}},
    ]
    return {"rules": rules, "default": {}}
