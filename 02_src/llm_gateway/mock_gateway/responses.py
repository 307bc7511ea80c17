"""The file of scripted answers: its shape, how it is read, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from llm_gateway.config import of_type
from llm_gateway.errors import ConfigurationError
from llm_gateway.models import Numeric, TokenUsage
from llm_gateway.sentences import sentence_of

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), Numeric]
ErrorKind = Literal[
    "rate_limit",
    "timeout",
    "unavailable",
    "overloaded",
    "incomplete_response",
    "rejected",
    "context_length",
    "authentication",
    "model_not_found",
    "quota_exhausted",
]
"""The `kind` of every class below ProviderError."""


class Part(BaseModel):
    """A part of the file; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        defer_build=True,  # built when a file is read: `import llm_gateway` stays fast
    )


class Match(Part):
    """Which calls a rule answers: those that fit every key given. Without a key, all."""

    model: str | None = None
    """The model's name in the configuration."""
    request_id: str | None = None
    agent: str | None = None
    """The `agent` of the request."""
    text: str | None = None
    """The last message of role "user", whole."""
    contains: str | None = None
    """A part of the last message of role "user"."""
    regex: re.Pattern[str] | None = None
    """Python's `re.search` in the last message of role "user"; begin with (?i) to ignore case."""
    system: str | None = None
    """A part of the messages of role "system"."""
    after_tool: str | None = None
    """The tool whose result is the last message."""
    attempt: Annotated[int, Field(ge=1), Numeric] | None = None
    """Which provider call for this request; 1 is the first, 2 its first retry."""


class ScriptedToolCall(Part):
    """A tool that the answer asks to call."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    id: str | None = None
    """Left out: made up, the same one for the same request."""


class ScriptedError(Part):
    """A failure of the provider, as the real clients report it."""

    status: Annotated[int, Field(ge=400, le=599), Numeric] | None = None
    """The HTTP status; 429, 500, 503 and 529 are retried, 400, 401 and 404 are not."""
    kind: ErrorKind | None = None
    """What failed, where there is no status or it does not tell."""
    retry_after: Seconds | None = None
    """The pause that the provider asks for, in seconds."""
    message: str | None = None
    """The provider's own words."""

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if self.status is None and self.kind is None:
            raise ValueError("give a status, such as 429, or a kind, such as 'timeout'")
        return self


class ScriptedStream(Part):
    """How an answer comes to a call that streams it. Others get it whole."""

    reasoning: str | None = None
    """What the model thinks aloud first; it is no part of the answer."""
    pace: Seconds = 0.0
    """The time between two pieces, in seconds."""
    breaks_after: Annotated[int, Field(ge=0), Numeric] | None = None
    """Break off when so many pieces are out, or all of them if there are fewer. A piece is a word or a bit of JSON."""
    error: ScriptedError | None = None
    """What the break is. Left out: a cut connection. Of kind "timeout": a stall as long as the provider's timeout."""

    @model_validator(mode="after")
    def _breaks_somewhere(self) -> Self:
        if self.error is not None and self.breaks_after is None:
            raise ValueError("give breaks_after too, the number of pieces before the error")
        return self


class Reply(Part):
    """One answer. What is left out is made up from the seed and the request, the same every time.

    A string stands for an answer of that content.
    """

    content: str | None = None
    tool_calls: list[ScriptedToolCall] | None = None
    finish_reason: str | None = None
    """Left out: "tool_calls" for an answer with some, else "stop"."""
    usage: TokenUsage | None = None
    """Left out: estimated from the texts. null: the provider does not say."""
    latency: Seconds = 0.0
    """How long the provider takes, in seconds."""
    error: ScriptedError | None = None
    """Fail instead of answering."""
    stream: ScriptedStream | None = None
    """How it comes to a call that streams it. Left out: in pieces without a pause."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"content": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _answer_or_error(self) -> Self:
        told = self.model_fields_set & {"content", "tool_calls", "finish_reason", "usage", "stream"}
        if self.error is not None and told:
            raise ValueError(f"a reply with an error has no {min(told)}; take one of the two out")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the short form."""
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Rule(Part):
    """What is answered to some calls."""

    name: str | None = None
    """What messages call this rule."""
    match: Match = Match()
    reply: Reply | None = None
    """The answer to every call."""
    replies: Annotated[list[Reply], Field(min_length=1)] | None = None
    """One answer a call, in turn, retries included; the last one answers all further calls."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.reply is None) == (self.replies is None):
            raise ValueError("give either 'reply', one answer for every call, or 'replies', a list of answers in turn")
        return self

    @property
    def sequence(self) -> list[Reply]:
        """The answers in turn; never empty."""
        return self.replies or [self.reply or Reply()]


class MockResponses(Part):
    """Scripted answers of MockLLMGateway. The first rule that fits a call answers it."""

    schema_: str | None = Field(default=None, alias="$schema")
    default: Reply | None = None
    """The answer where no rule fits; null: such a call fails. {} is made up from the seed and the request."""
    rules: list[Rule] = Field(default_factory=list)


def load_responses(source: Path | str | Mapping[str, Any] | None) -> MockResponses:
    """Return the answers in a file, or in a mapping of the same shape; None: every answer is made up.

    Raises ConfigurationError, one sentence that names the file, the rule and the field.
    """
    if source is None:
        return MockResponses(default=Reply())
    if not isinstance(source, Mapping | str | PathLike):
        raise ConfigurationError(f"The mock's responses are {of_type(source)}; give a path of a JSON file, or a dict.")
    where = "The mock's responses" if isinstance(source, Mapping) else str(source)
    data = source if isinstance(source, Mapping) else _read(Path(source))
    if not isinstance(data, Mapping):
        raise ConfigurationError(f'{where}: expected an object such as {{"rules": []}}, got {type(data).__name__}.')
    try:
        return MockResponses.model_validate(data)
    except ValidationError as error:
        field, reason = sentence_of(error, MockResponses)
        raise ConfigurationError(f"{where}: {_named(field, data)}: {reason}") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"The mock's responses {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"The mock's responses {path} are not JSON: {error}.") from None
    except RecursionError:
        raise ConfigurationError(f"The mock's responses {path} are nested too deeply.") from None


def _named(field: str, data: Mapping[str, Any]) -> str:
    """Put the rule's name beside its number, which nobody likes to count out."""
    found = re.match(r"rules\[(\d+)\]", field)
    rule = data["rules"][int(found[1])] if found else None
    name = rule.get("name") if isinstance(rule, Mapping) else None
    return f"rule '{name}', {field}" if isinstance(name, str) else field


def json_schema() -> dict[str, Any]:
    """Return the published schema of the file, as `mock_responses.schema.json` ships it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **MockResponses.model_json_schema(by_alias=True),
    }
