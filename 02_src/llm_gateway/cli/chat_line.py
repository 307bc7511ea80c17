"""A line of OpenAI's batch format, and its request.

What the gateway cannot carry out is an error that names the key: nothing of a line is dropped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field, model_validator

from llm_gateway.errors import InvalidRequestError
from llm_gateway.models import LLMMessage, LLMRequest, LLMTool, LLMToolCall, Record, RequestPriority

NO_ARGUMENTS = {"type": "object", "properties": {}}


class Part(Record):
    """A record in which a key that has no field is named, with what can be said instead."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        """Refuse unknown keys; one that is null says nothing and passes."""
        if not isinstance(given, dict):
            return given
        names = {name: field.alias or name for name, field in cls.model_fields.items()}
        for key, value in given.items():
            if key not in names.values() and value is not None:
                known = ", ".join(sorted(names.values()))
                raise InvalidRequestError(f"not supported; supported are {known}.", field=str(key))
        return {key: value for key, value in given.items() if value is not None}


class Function(Part):
    """A tool's name, and the schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default=NO_ARGUMENTS)
    strict: Literal[False] = False


class Tool(Part):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class Called(Part):
    """A tool's name, and arguments as JSON in a text."""

    name: str
    arguments: str = "{}"


class Call(Part):
    """A tool call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class Message(Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def to_message(self) -> LLMMessage:
        """Return the turn as the gateway has it."""
        return LLMMessage(
            role="system" if self.role == "developer" else self.role,
            content=self.content,
            tool_calls=[_called(call) for call in self.tool_calls] if self.tool_calls else None,
            tool_call_id=self.tool_call_id,
        )


class ChosenFunction(Part):
    """A function's name alone."""

    name: str


class ChosenTool(Part):
    """The one tool that the model must call."""

    type: Literal["function"]
    function: ChosenFunction


class Schema(Part):
    """A named JSON schema. Its name and description are for people."""

    name: str = ""
    description: str = ""
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Part):
    """What form the answer's text must have."""

    type: Literal["text", "json_schema"]
    json_schema: Schema | None = None


class Body(Part):
    """The body of a chat completion, as far as the gateway can carry it out."""

    model: str | None = None
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 1.0  # OpenAI's default, not the gateway's: the line was written for it
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False


class ChatLine(Part):
    """One line."""

    custom_id: Annotated[str, Field(min_length=1)]
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    body: Body

    def to_request(self, *, model: str, priority: RequestPriority) -> LLMRequest:
        """Return the request that the line stands for. Raises InvalidRequestError."""
        body = self.body
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise InvalidRequestError("give one of the two.", field="body.max_tokens, max_completion_tokens")
        return LLMRequest(
            model=model,
            messages=[message.to_message() for message in body.messages],
            tools=[_tool(tool.function) for tool in body.tools] if body.tools else None,
            request_id=self.custom_id,
            priority=priority,
            temperature=body.temperature,
            max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
            stop=[body.stop] if isinstance(body.stop, str) else body.stop,
            tool_choice=_choice(body.tool_choice),
            response_format=_format(body.response_format),
            metadata=body.metadata,
        )


def _tool(function: Function) -> LLMTool:
    return LLMTool(name=function.name, description=function.description, input_schema=function.parameters)


def _called(call: Call) -> LLMToolCall:
    try:
        arguments = orjson.loads(call.function.arguments)
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError("not a JSON object in a text.", field=f"tool call '{call.id}' arguments")
    return LLMToolCall(id=call.id, name=call.function.name, arguments=arguments)


def _choice(choice: str | ChosenTool | None) -> str | None:
    if isinstance(choice, ChosenTool):
        return choice.function.name
    return "any" if choice == "required" else choice


def _format(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        raise InvalidRequestError(
            "missing; a format of type 'json_schema' has it.", field="response_format.json_schema"
        )
    return wanted.json_schema.json_schema
