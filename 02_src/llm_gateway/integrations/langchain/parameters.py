"""What LangChain hands a chat model beside the messages, as the gateway takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from llm_gateway.errors import InvalidRequestError
from llm_gateway.formats import ResponseFormat, all_required
from llm_gateway.models import LLMTool
from llm_gateway.sentences import nearest, shown

SOME = {"any", "required"}
CHOICES = {"auto", "none", "any"}

# Parameters of other chat models, and where what they set belongs here.
ELSEWHERE = {
    "api_key": "keys belong to the gateway's configuration, under [providers]",
    "base_url": "addresses belong to the gateway's configuration, under [providers]",
    "max_retries": "the gateway repeats calls as its configuration says under [retry]",
    "parallel_tool_calls": "requests do not have it; give it to the provider's package under [models.….options]",
    "seed": "requests do not have it; give it to the provider's package under [models.….options]",
    "top_p": "requests do not have it; give it to the provider's package under [models.….options]",
}


def check_names(given: Mapping[str, Any], known: Sequence[str], *, record: str = "GatewayChatModel") -> None:
    """Raise InvalidRequestError for a parameter that is not `known`."""
    for name in given:
        if name not in known:
            guess = nearest(name, known)
            remedy = ELSEWHERE.get(name) or (f"did you mean '{guess}'?" if guess else f"it has {', '.join(known)}")
            reason = f"no parameter of this model; {remedy.rstrip('.')}{'' if remedy.endswith('?') else '.'}"
            raise InvalidRequestError(reason, field=name, record=record)


def formatted_tool(tool: Any) -> dict[str, Any]:
    """Return a tool of any kind that LangChain takes in OpenAI's form, which callbacks and traces show too.

    Raises InvalidRequestError for one that its provider would run itself.
    """
    form = convert_to_openai_tool(tool)
    if form.get("type") != "function":
        reason = f"{shown(form.get('type'))} is run by its provider; the gateway sends functions alone."
        raise InvalidRequestError(reason, field="tools", record="GatewayChatModel")
    return form


def llm_tool(tool: Any) -> LLMTool:
    """Return a tool as the gateway takes it."""
    function = formatted_tool(tool)["function"]
    return LLMTool(
        name=function["name"],
        description=function.get("description") or "",
        input_schema={"type": "object", "properties": {}, **(function.get("parameters") or {})},
    )


def choice_of(choice: Any) -> str | None:
    """Return which tool must be called, in any form that one of LangChain's chat models takes.

    None, True, False, "auto", "none", "any", "required", a tool's name, `{"type": "function" or "tool", "name": …}`,
    `{"type": "function", "function": {"name": …}}`, and `{"type": …}` with "auto", "none", "any" or "required".
    """
    if choice is None or choice == "":
        return None
    if isinstance(choice, bool):
        return "any" if choice else "none"
    named = choice
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if kind in {"function", "tool"}:
            named = choice.get("name") or (choice.get("function") or {}).get("name")
        else:
            named = kind if kind in CHOICES | SOME else None
    if not isinstance(named, str):
        reason = f"{shown(choice)} chooses no tool; give 'auto', 'any', 'none' or a tool's name."
        raise InvalidRequestError(reason, field="tool_choice", record="GatewayChatModel")
    return "any" if named in SOME else named


def format_of(response_format: Any) -> ResponseFormat | None:
    """Return what an answer must follow as the gateway takes it: a pydantic model's class, or a JSON schema."""
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        return response_format
    return schema_of(response_format)


def schema_of(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema that an answer must follow, from a class, a schema, or OpenAI's `response_format`.

    Every property of its objects is required, as OpenAI's strict mode demands, so that all providers answer alike;
    one that may be null can still be null.
    """
    if response_format is None:
        return None
    schema: Any = response_format
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            reason = "{'type': 'json_object'} names no schema; give one, or a pydantic model."
            raise InvalidRequestError(reason, field="response_format", record="GatewayChatModel")
        if kind == "json_schema":
            form = response_format.get("json_schema") or response_format
            schema = {"title": form.get("name") or "answer", **form.get("schema", {})}
    else:
        schema = convert_to_json_schema(response_format)
    complete: dict[str, Any] = all_required(schema)
    return complete
