"""GatewayChatModel: what LangChain asks a chat model, asked of a gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import Field, PrivateAttr, ValidationError

from llm_gateway.batching import inherited
from llm_gateway.config import BUILT_IN_PROVIDERS, ModelSettings
from llm_gateway.errors import InvalidAnswerError, InvalidRequestError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.langchain.messages import ai_message, chunk_of, gateway_messages
from llm_gateway.integrations.langchain.parameters import (
    check_names,
    choice_of,
    format_of,
    formatted_tool,
    llm_tool,
)
from llm_gateway.integrations.loops import Doorway
from llm_gateway.models import LLMMessage, LLMRequest, LLMResponse, ModelProvider, RequestPriority, StreamDelta
from llm_gateway.sentences import sentence_of
from llm_gateway.tokens import estimate_input, estimate_text

Method = Literal["json_schema", "function_calling", "json_mode"]

# Of one request; each can also be bound, or given with a call.
SETTINGS = ("temperature", "max_tokens", "priority", "agent", "deadline")
OPTIONS = (*SETTINGS, "model", "tools", "tool_choice", "response_format", "request_id")
NOT_SENT = ("stream", "strict")  # LangChain's own word, and what the gateway does without being asked


class GatewayChatModel(BaseChatModel):
    """A LangChain chat model whose calls go through a gateway, from any thread and any event loop.

    `model` is a name of the gateway's configuration. What is left out (None) is as in `LLMRequest`; `priority` and
    `agent` are then inherited inside `gateway.on_behalf_of()` and `on_behalf()`. `deadline`, also `timeout`, is in
    seconds from asking to the answer. All but `gateway` can be bound, or given with a call.

    The answer's `response_metadata` holds `finish_reason`, `model_name`, `request_id` and the `receipt`. Raises
    InvalidRequestError, at construction or before anything is sent, for what the gateway does not take; while asking,
    what `LLMGateway.request` and `LLMGateway.stream` raise.
    """

    gateway: LLMGateway = Field(exclude=True, repr=False)
    model: str
    priority: RequestPriority | None = None
    agent: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    deadline: float | None = None
    streaming: bool = False
    """Stream also where the whole answer is asked for, so that callbacks hear of its tokens."""

    _door: Doorway = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        check_names(fields, (*type(self).model_fields, "timeout"))
        if "timeout" in fields:
            fields["deadline"] = fields.pop("timeout")
        if isinstance(fields.get("model"), ModelProvider):
            fields["model"] = fields["model"].value
        try:
            super().__init__(**fields)
        except ValidationError as error:
            field, reason = sentence_of(error, type(self))
            raise InvalidRequestError(reason, field=field or None, record=type(self).__name__) from None
        self._door = Doorway(self.gateway)
        self._settings_of(self.model)
        self._request([LLMMessage(role="user")], None, {})  # for its checks

    # --- asking -----------------------------------------------------------------------------------------------

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain's signature
        **kwargs: Any,
    ) -> ChatResult:
        return await self._door.ask(self._asking(messages, stop, kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain's signature
        **kwargs: Any,
    ) -> ChatResult:
        return self._door.ask_and_wait(self._asking(messages, stop, kwargs))

    def _asking(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> Callable[[], Coroutine[Any, Any, ChatResult]]:
        request = self._request(gateway_messages(messages), stop, options)

        async def ask() -> ChatResult:
            try:
                response = await self.gateway.request(request)
            except InvalidAnswerError as error:
                response = _unfit(error)
            return ChatResult(generations=[ChatGeneration(message=ai_message(response))])

        return ask

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - its caller tells it of each chunk
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(gateway_messages(messages), stop, kwargs)
        async with aclosing(self._door.stream(lambda: self._pieces(request))) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=chunk_of(piece))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - its caller tells it of each chunk
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(gateway_messages(messages), stop, kwargs)
        for piece in self._door.stream_and_wait(lambda: self._pieces(request)):
            yield ChatGenerationChunk(message=chunk_of(piece))

    async def _pieces(self, request: LLMRequest) -> AsyncGenerator[StreamDelta | LLMResponse, None]:
        try:
            async with aclosing(self.gateway.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        except InvalidAnswerError as error:
            yield _unfit(error)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[AIMessage]:
        """Answer many inputs at once, in their order, as `abatch` does: one queue, and no thread for each."""
        return self._door.ask_and_wait(
            lambda: self.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        )

    def _request(self, messages: list[LLMMessage], stop: list[str] | None, options: dict[str, Any]) -> LLMRequest:
        given = {name: value for name, value in options.items() if name not in NOT_SENT}
        if "timeout" in given:
            given["deadline"] = given.pop("timeout")
        check_names(given, OPTIONS)
        fields: dict[str, Any] = {"model": self.model, "stop": stop or self.stop or None}
        fields |= {name: getattr(self, name) for name in SETTINGS} | given
        fields["tools"] = [llm_tool(each) for each in given.get("tools") or ()] or None
        fields["tool_choice"] = choice_of(given.get("tool_choice"))
        fields["response_format"] = format_of(given.get("response_format"))
        # What is left out is the request's default, or inherited.
        present = {name: value for name, value in fields.items() if value is not None}
        return LLMRequest(messages=messages, **present)

    # --- tools and structured output --------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools of any kind that LangChain knows.

        `tool_choice` is True, False, "auto", "none", "any", "required", a tool's name, or OpenAI's or Anthropic's dict.
        Raises InvalidRequestError for a tool or a choice that the gateway does not take.
        """
        forms = [formatted_tool(each) for each in tools]
        for form in forms:
            llm_tool(form)  # for its checks
        choice = choice_of(tool_choice)
        check_names(kwargs, (*OPTIONS, *NOT_SENT, "timeout", "stop", "ls_structured_output_format"))
        return self.bind(tools=forms, **({} if choice is None else {"tool_choice": choice}), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method | None = None,
        strict: bool | None = None,  # noqa: ARG002 - part of what callers of any chat model may give
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that follow `schema`: a pydantic model, a TypedDict or a JSON schema.

        `method` "json_schema" has the provider enforce it, "function_calling" makes it a tool that must be called.
        Default: the first where every deployment of the model is one of OpenAI's, Anthropic's or Ollama's APIs or a
        local file, else the second. "json_mode" is "json_schema" by another name. A schema is always strict. Further
        arguments are bound.
        """
        if method is None:
            method = "json_schema" if self._enforces_schemas() else "function_calling"
        if method == "function_calling":
            answering, parser = self._calling(schema, kwargs)
        else:
            answering, parser = self._following(schema, method, kwargs)
        if not include_raw:
            return answering | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=answering) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")

    def _calling(
        self, schema: Any, kwargs: dict[str, Any]
    ) -> tuple[Runnable[LanguageModelInput, AIMessage], BaseOutputParser[Any]]:
        name = convert_to_openai_tool(schema)["function"]["name"]
        told = {"kwargs": {"method": "function_calling"}, "schema": schema}
        answering = self.bind_tools([schema], tool_choice=name, ls_structured_output_format=told, **kwargs)
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            return answering, PydanticToolsParser(tools=[schema], first_tool_only=True)
        return answering, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)

    def _following(
        self, schema: Any, method: Method, kwargs: dict[str, Any]
    ) -> tuple[Runnable[LanguageModelInput, AIMessage], BaseOutputParser[Any]]:
        told = {"kwargs": {"method": method}, "schema": schema}
        answering = self.bind(response_format=format_of(schema), ls_structured_output_format=told, **kwargs)
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            return answering, PydanticOutputParser(pydantic_object=schema)
        return answering, JsonOutputParser()

    # --- on whose behalf, and the end -------------------------------------------------------------------------

    def on_behalf(self) -> AbstractContextManager[None]:
        """Let every request made inside a `with` block inherit this model's class and agent.

        So an agent's tools ask under the class and the name of the agent: run the agent inside.
        """
        request = self._request([LLMMessage(role="user")], None, {})
        asker = inherited(request)
        return self.gateway.on_behalf_of(request.model_copy(update={"priority": asker.priority, "agent": asker.agent}))

    def close(self) -> None:
        """Shut the gateway down, for all who use it. For programs without an event loop; others await `shutdown`."""
        self._door.ask_and_wait(self.gateway.shutdown)

    # --- what LangChain asks about the model ------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "llm-gateway"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on: a part of the key of LangChain's cache."""
        settings = self._settings_of(self.model)
        named = {"model": self.model, "deployment": f"{settings.provider}/{settings.model}"}
        return named | {"temperature": self.temperature, "max_tokens": self.max_tokens}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop or self.stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """Name the provider and its own name of the model, by which LangSmith knows prices."""
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        models = self.gateway.config.models
        asked = params["ls_model_name"]
        if asked in models:
            params["ls_model_name"] = models[asked].model
            params["ls_provider"] = self._kind(models[asked].provider)
        else:
            params["ls_provider"] = self._llm_type
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        settings = self._settings_of(self.model)
        profile = ModelProfile(structured_output=self._enforces_schemas())
        if settings.context is not None:
            profile["max_input_tokens"] = settings.context
        return profile

    def get_num_tokens(self, text: str) -> int:
        """Return about how many tokens a text has; offline, for every model."""
        return round(estimate_text(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return about how many tokens a conversation has, tools included; offline, for every model."""
        return estimate_input(self._request(gateway_messages(messages), None, {"tools": tools}))

    def _settings_of(self, model: str) -> ModelSettings:
        return self.gateway.config.model(model)

    def _kind(self, provider: str) -> str:
        section = self.gateway.config.providers.get(provider)
        return (section.kind if section is not None else None) or provider

    def _enforces_schemas(self) -> bool:
        """Tell whether every deployment, also of the models that may stand in, takes a schema of the answer."""
        own = self._settings_of(self.model)
        names = own.fallbacks if isinstance(own.fallbacks, list) else list(chain.from_iterable(own.fallbacks.values()))
        settings = [own, *(self._settings_of(name) for name in names)]
        return all(
            self._kind(each.provider) in BUILT_IN_PROVIDERS for model in settings for each in model.all_deployments()
        )


def _unfit(error: InvalidAnswerError) -> LLMResponse:
    """Return the answer that does not fit even after all attempts: LangChain's parsers say so, and keep it."""
    if error.response is None:
        raise error
    return error.response
