"""What callers send and get back: requests, messages, tools, responses, receipts.

All records are frozen; `record.model_copy(update={...})` makes a changed one, checked like a new one. Fields may be
given by position, in the order shown, or by name. A malformed record raises `InvalidRequestError`, one sentence that
names the field, however it is made: by constructor, `model_validate`, `model_validate_json` or `model_copy`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from llm_gateway.errors import InvalidRequestError
from llm_gateway.formats import ResponseFormat, checked, schema_of
from llm_gateway.price_lanes import LaneChoice, PriceLane
from llm_gateway.sentences import no_boolean, sentence_of, shown

Numeric = BeforeValidator(no_boolean)
Count = Annotated[int, Field(ge=0, strict=True)]  # strict: no boolean, at no cost
# Written as its schema, whatever it is: a class is of this process alone.
Format = Annotated[
    ResponseFormat, PlainValidator(checked), PlainSerializer(schema_of), WithJsonSchema({"type": "object"})
]


class ModelProvider(str, Enum):  # noqa: UP042 - str(member) is part of the contract
    """The models that every configuration has; the configuration may add others by name."""

    CLAUDE_HAIKU = "claude-haiku"
    CLAUDE_SONNET = "claude-sonnet"
    CLAUDE_OPUS = "claude-opus"
    GPT_4O_MINI = "gpt-4o-mini"
    LOCAL_LLAMA = "local-llama"


class RequestPriority(int, Enum):
    """Who waits for the answer. Smaller numbers go first."""

    HIGH = 1  # a user waits
    NORMAL = 2  # eager generation
    LOW = 3  # background re-indexing


class Record(BaseModel):
    """A frozen record whose fields can be given by position, and whose errors are one sentence."""

    # Built when first used: `import llm_gateway` is somebody's start-up time.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    if not TYPE_CHECKING:  # type checkers see the keyword signature that pydantic derives from the fields

        def __init__(self, *values: Any, **fields: Any) -> None:
            if values:
                fields = _by_name(type(self), values, fields)
            try:  # written out: a context manager, or pydantic's own constructor, would cost as much as the validation
                self.__pydantic_validator__.validate_python(fields, self_instance=self)
            except ValidationError as error:
                raise _one_sentence(error, type(self)) from None

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Self:
            """Return the record that a dict describes. Raises InvalidRequestError."""
            with _in_one_sentence(cls):
                return super().model_validate(obj, **options)

        @classmethod
        def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
            """Return the record that a JSON text describes. Raises InvalidRequestError."""
            with _in_one_sentence(cls):
                return super().model_validate_json(json_data, **options)

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Return the record of all its `fields`, unchecked: for values of our own making, on everybody's way."""
        self = cls.__new__(cls)
        set_attribute = object.__setattr__
        set_attribute(self, "__dict__", fields)
        set_attribute(self, "__pydantic_fields_set__", cls._all_fields())
        set_attribute(self, "__pydantic_extra__", None)
        set_attribute(self, "__pydantic_private__", None)
        return self

    @classmethod
    @cache
    def _all_fields(cls) -> set[str]:
        return set(cls.model_fields)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with the fields in `update` changed, checked as the constructor checks them."""
        if not update:
            return super().model_copy(deep=deep)
        names = {name: field.alias or name for name, field in type(self).model_fields.items()}
        fields = {name: getattr(self, name) for name in names} | dict(update)
        checked = type(self)(**{names.get(name, name): value for name, value in fields.items()})
        return super().model_copy(update={name: getattr(checked, name) for name in update}, deep=deep)


@contextmanager
def _in_one_sentence(cls: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise _one_sentence(error, cls) from None


def _one_sentence(error: ValidationError, cls: type[BaseModel]) -> InvalidRequestError:
    field, reason = sentence_of(error, cls)
    return InvalidRequestError(reason, field=field or None, record=cls.__name__)


def _by_name(cls: type[BaseModel], values: tuple[Any, ...], fields: dict[str, Any]) -> dict[str, Any]:
    names = list(cls.model_fields)[: len(values)]
    if len(values) > len(names):
        raise TypeError(f"{cls.__name__} takes {len(names)} values by position, {len(values)} were given")
    twice = [name for name in names if name in fields]
    if twice:
        raise TypeError(f"{cls.__name__} got '{twice[0]}' by position and by name")
    return dict(zip(names, values, strict=True)) | fields


class LLMToolCall(Record):
    """One call of a tool that the model asks for."""

    id: str
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class LLMMessage(Record):
    """One turn of a conversation.

    `content` is text, or a list of content blocks as LangChain takes them (`{"type": "text", "text": …}`, images, …).
    An assistant's turn may carry `tool_calls`; the turn that answers one has role "tool" and its `tool_call_id`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    tool_calls: list[LLMToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _tool_turns(self) -> Self:
        if self.role == "tool" and not self.tool_call_id:
            raise InvalidRequestError(
                "missing; a message of role 'tool' names the call it answers.", field="tool_call_id"
            )
        if self.tool_calls and self.role != "assistant":
            reason = f"only a message of role 'assistant' has them, this one is '{self.role}'."
            raise InvalidRequestError(reason, field="tool_calls")
        return self


class LLMTool(Record):
    """A tool that the model may call. `input_schema` is the JSON schema of its arguments, an object's."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str
    input_schema: dict[str, Any]

    @field_validator("input_schema")
    @classmethod
    def _is_object_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type") != "object":
            raise ValueError(
                f"{shown(schema)} is not the schema of an object; a tool without arguments has "
                "{'type': 'object', 'properties': {}}"
            )
        return schema


def new_request_id() -> str:
    """Return an id that no other request has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


class LLMRequest(Record):
    """One question to one model.

    `model` is a `ModelProvider` or any name from the configuration. `temperature` is 0 to 2 and left out for models
    that refuse it. `max_tokens` None means the model's configured default. `deadline` is in seconds from submission:
    after it the caller gets `DeadlineExceededError` and nothing more is sent. `agent` names who asks, `metadata` is
    written to the journal with the request. `response_format` is a pydantic model class, or a JSON schema as a dict:
    an answer that does not fit it is asked for again, with the error, and `LLMResponse.parsed` holds one that does.
    Where the request is written down, a class is written as its schema. `tool_choice` is "auto", "any" (some tool),
    "none", or a tool's name. `cache` False asks for a fresh answer that is not kept, True lets one be kept whatever the
    temperature and the model's settings are; without a `[cache]` in the configuration it means nothing. `lane` is the
    price lane: "standard", "flex" (later, at half the price), "batch" (within a day, at half the price, together with
    others in a batch of the provider), or "auto" (where the request is LOW: flex where the model has it, else batch
    unless the deadline is nearer than a day); None means the model's configured one.
    """

    model: ModelProvider | str
    messages: Annotated[list[LLMMessage], Field(min_length=1)]
    tools: list[LLMTool] | None = None
    request_id: Annotated[str, Field(min_length=1)] = Field(default_factory=new_request_id)
    priority: Annotated[RequestPriority, Numeric] = RequestPriority.NORMAL
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), Numeric] = 0.0
    max_tokens: Annotated[int, Field(ge=1), Numeric] | None = None
    agent: str | None = None
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False), Numeric] | None = None
    stop: list[str] | None = None
    tool_choice: str | None = None
    response_format: Format | None = None
    metadata: dict[str, JsonValue] | None = None
    cache: bool | None = None
    lane: LaneChoice | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _is_name(cls, model: object) -> object:
        if not isinstance(model, str) or not model:
            raise ValueError(
                f"{shown(model)} is not the name of a model; give a ModelProvider, or any name from the configuration"
            )
        return model

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        if self.tools is None and self.tool_choice is None:
            return self
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequestError(f"two tools are named '{twice}'; give each its own name.", field="tools")
        if self.tool_choice not in {None, "auto", "any", "none", *names}:
            reason = f"{shown(self.tool_choice)} is none of 'auto', 'any', 'none' and the names of the tools {names}."
            raise InvalidRequestError(reason, field="tool_choice")
        return self


def _plain(parsed: Any) -> Any:
    return parsed.model_dump(mode="json") if isinstance(parsed, BaseModel) else parsed


class EmbeddingRequest(LLMRequest):
    """Texts of one caller that may go in one provider call: one user message for each.

    `LLMGateway.embed` makes it; in the queue and in the journal it is a request like any other.
    """

    tokens: Count = 0  # of all texts, by estimate

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [str(message.content) for message in self.messages]


class TokenUsage(Record):
    """Tokens as the provider counted them. `input_tokens` includes the cached ones that the other fields detail."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    reasoning_tokens: Count = 0  # part of `output_tokens`
    cache_write_1h_tokens: Count = 0  # part of `cache_write_tokens`, kept for an hour: dearer

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Return what two calls used together."""
        return TokenUsage(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


class Receipt(Record):
    """What one request took. Times in seconds, cost in US dollars."""

    queue_wait: float  # in the queue and between attempts, all together
    attempts: int  # provider calls, the first one included
    provider_time: float  # spent in provider calls, all attempts together
    deployment: str  # "provider/model id" that answered
    usage: TokenUsage | None = None  # None: the provider did not say
    reserved_tokens: int | None = None  # None: no limit asked for a reservation
    cost_usd: float | None = None  # None: the price or the usage is unknown
    time_to_first_token: float | None = None  # from the beginning of the call; None: the answer was not streamed
    price_lane: PriceLane = "standard"
    cached: bool = False  # an answer that was kept: no call was made, and `usage` is that of the one it came from
    saved_usd: float | None = None  # what a cached answer cost when it was made; None: not cached, or unknown
    coalesced: bool = False  # another caller's call answered this one too; the cost stands in that one's receipt


class LLMResponse(Record):
    """The answer to one request.

    `finish_reason` is "stop", "length", "tool_calls", "content_filter", "refusal" or the provider's own word.
    `tokens_used` is input and output together, None where the provider did not say. `parsed` is the answer as the
    request's `response_format` has it: an instance of the class, or what the JSON says; None where there was no
    format, and in an answer that calls tools.
    """

    request_id: str
    content: str
    tool_calls: list[LLMToolCall] | None = None
    model: str = Field(default=...)
    tokens_used: int | None = None
    finish_reason: str | None = None
    receipt: Receipt | None = None
    parsed: Annotated[Any, PlainSerializer(_plain)] = None


class EmbeddingResponse(Record):
    """The vectors of the texts of one `embed`: `vectors[n]` is that of text n.

    `tokens_used` is None where the provider did not say. Texts that took several provider calls have one receipt:
    attempts, tokens and cost of all of them, `queue_wait` and `provider_time` of the longest. A call that also served
    others is one attempt of each, and its tokens and its cost are split by the length of the texts.
    """

    request_id: str
    vectors: list[list[float]]
    model: str = Field(default=...)
    tokens_used: int | None = None
    receipt: Receipt | None = None


# --- the pieces of a streamed answer: dataclasses, since there may be thousands in one answer -----------------------


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of what the model thinks aloud. It is no part of the answer's content."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """The next piece of a tool call. Its first piece has `id` and `name`, its further ones None."""

    index: int  # of the call in the answer, from 0
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # a piece of the JSON text of the arguments


StreamDelta = TextDelta | ReasoningDelta | ToolCallDelta
"""What a stream yields before the whole answer."""
