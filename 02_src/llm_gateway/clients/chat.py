"""One deployment's chat model: a request in, a completion or a ProviderError out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata

from llm_gateway.clients import blocks, hints, sendable
from llm_gateway.clients.asking import generated, invoked, streamed
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.failures import Failures
from llm_gateway.clients.messages import completion_of, langchain_messages, langchain_tools
from llm_gateway.clients.shaping import AnswerTool, Way, shaped
from llm_gateway.clients.streaming import Assembly, let_go, unwind
from llm_gateway.clients.transport import Exchange, Lease, exchange
from llm_gateway.errors import InvalidRequestError
from llm_gateway.formats import ResponseFormat, asked_schema, name_of
from llm_gateway.models import LLMRequest, StreamDelta

if TYPE_CHECKING:
    from llm_gateway.clients.batches import BatchClient
    from llm_gateway.clients.batches.reading import Translator

LONGEST_WORDS = 120  # characters of what a package says of a malformed block; it may quote the block


class Dialect(Protocol):
    """How one kind of provider wants to be asked. Stateless between calls."""

    ends_with_reason: bool  # an answer without a finish reason is cut off
    wired: bool  # it asks in JSON and over connections of ours, which note every HTTP answer

    def check(self, request: LLMRequest, profile: dict[str, Any], /) -> None:
        """Raise InvalidRequestError for what this kind is known to refuse."""

    def rehearse(self, messages: list[BaseMessage], model: BaseChatModel, /) -> None:
        """Raise whatever translating these messages for the wire raises. No I/O."""

    def arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Return the arguments of `model.ainvoke` for this request, but messages, temperature and tools."""

    def tool_arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Return the arguments that carry the request's tools and its choice among them."""

    def way(self, request: LLMRequest, profile: dict[str, Any], model: BaseChatModel, /) -> Way:
        """Return how this model is best made to answer in the request's format."""

    def recover(self, error: Exception, /) -> Completion | None:
        """Return the answer that an error holds, None if it holds none."""

    def streaming(self, arguments: dict[str, Any], model: BaseChatModel, /) -> dict[str, Any]:
        """Return the arguments of `model.astream` that ask for the same as these do of `model.ainvoke`."""

    def streamed_usage(self, assembly: Assembly, /) -> UsageMetadata | None:
        """Return the usage of a streamed answer that came whole."""


class PlainDialect:
    """What LangChain's own parameters say; the others differ from it."""

    ends_with_reason = True
    wired = True

    def check(self, request: LLMRequest, profile: dict[str, Any], /) -> None:
        """Refuse nothing."""

    def rehearse(self, messages: list[BaseMessage], model: BaseChatModel, /) -> None:
        """Translate nothing: content blocks go to the server as they are, which refuses a malformed one itself."""

    def arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Set temperature, limit, stop words and the answer's schema by their names in OpenAI's API."""
        arguments: dict[str, Any] = {}
        if takes_temperature(model.profile):
            arguments["temperature"] = request.temperature
        if request.max_tokens is not None:
            arguments["max_tokens"] = request.max_tokens
        if request.stop:
            arguments["stop"] = request.stop
        if request.response_format is not None:
            arguments["response_format"] = json_schema(request.response_format)
        return arguments

    def way(self, request: LLMRequest, profile: dict[str, Any], model: BaseChatModel, /) -> Way:  # noqa: ARG002 - the seam's signature
        """Leave it to the provider, unless the model's profile denies that it can."""
        if profile.get("structured_output") is not False:
            return "native"
        return "prompt" if profile.get("tool_choice") is False else "tool"

    def tool_arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Let the partner package translate tools and choice."""
        choice = request.tool_choice
        bound = model.bind_tools(langchain_tools(request.tools or ()), **({"tool_choice": choice} if choice else {}))
        return dict(getattr(bound, "kwargs", {}))

    def recover(self, error: Exception, /) -> Completion | None:  # noqa: ARG002 - the seam's signature
        """Find nothing."""
        return None

    def streaming(self, arguments: dict[str, Any], model: BaseChatModel, /) -> dict[str, Any]:  # noqa: ARG002 - the seam's signature
        """Ask for the same."""
        return arguments

    def streamed_usage(self, assembly: Assembly, /) -> UsageMetadata | None:
        """Take what was told last: where usage comes several times in one answer, it counts from its beginning."""
        return assembly.usages[-1] if assembly.usages else None


def takes_temperature(profile: Any) -> bool:
    """Tell whether a model takes a temperature; one of which nothing is known does."""
    return (profile or {}).get("temperature") is not False


def json_schema(given: ResponseFormat) -> dict[str, Any]:
    """Return a format as OpenAI's API wants it; Anthropic's package translates from that form."""
    form = {"name": name_of(given), "schema": asked_schema(given), "strict": True}
    return {"type": "json_schema", "json_schema": form}


class LangChainClient:
    """ChatClient over one LangChain chat model.

    `leases` are what it shares with others (connections, a local server); it leaves them when it is closed. `lean`
    calls the model without what LangChain does for handlers and tracers, where there are none. `batches` makes the
    client of its provider's batches.
    """

    def __init__(
        self,
        model: BaseChatModel,
        deployment: Deployment,
        dialect: Dialect,
        *,
        leases: Sequence[Lease] = (),
        lean: bool = False,
        batches: Callable[[Translator], BatchClient] | None = None,
    ) -> None:
        self._batches = batches
        self._ask = generated if lean else invoked
        self._lean = lean
        self._model = model
        self._dialect = dialect
        self._name = deployment.name
        self._failures = Failures(deployment, wired=dialect.wired)
        self._profile: dict[str, Any] = dict(model.profile or {})
        self._way = deployment.settings.structured_output
        self._leases = leases

    def check(self, request: LLMRequest, /) -> None:
        """Raise InvalidRequestError for what the model's profile or its provider's API is known to refuse."""
        sendable.check(request, json_only=self._dialect.wired)
        request, _ = self._shaped(request)
        check_profile(request, self._profile, self._name)
        if not texts_alone(request):
            self._check_pictures(request)
        self._dialect.check(request, self._profile)

    def _check_pictures(self, request: LLMRequest) -> None:
        """Translate a user's content blocks as the call will, to find what the partner package stumbles over."""
        for number, message in enumerate(request.messages):
            if isinstance(message.content, str) or message.role != "user":
                continue
            if all(block.get("type") == "text" for block in message.content):
                continue
            try:
                self._dialect.rehearse(langchain_messages([message]), self._model)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                words = f"{type(error).__name__}: {str(error)[:LONGEST_WORDS]}".rstrip(".")
                refuse(f"messages[{number}].content", f"a content block is malformed ({words}).")

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Make one provider call, no retry. Raises ProviderError, and nothing else but cancellation."""
        seen = Exchange()
        token = exchange.set(seen)
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            completion = await self._call(request)
            told = hints.limits_told(seen.headers)
            return replace(completion, headers=told) if told else completion
        except Exception as error:
            if task and task.cancelling() > cancels:
                raise asyncio.CancelledError from error  # whoever swallowed it below, the caller asked for it
            failure, cause = self._failures.translate(error, seen, request.request_id)
        finally:
            exchange.reset(token)
        raise failure from cause  # outside `except`: an error that holds the key must not be its context either

    def batch_client(self) -> BatchClient | None:
        """Return the client of the provider's batches, None where it has none. It lives as long as this one."""
        if self._batches is None:
            return None
        from llm_gateway.clients.batches.reading import Translator

        return self._batches(
            Translator(
                model=self._model,
                check=self.check,
                arguments=self._arguments,
                completed=self._completion,
                failures=self._failures,
                shape=self._shaped,
            )
        )

    def _arguments(self, request: LLMRequest) -> dict[str, Any]:
        arguments = self._dialect.arguments(request, self._model)
        if request.tools:
            arguments |= self._dialect.tool_arguments(request, self._model)
        return arguments

    def _shaped(self, request: LLMRequest) -> tuple[LLMRequest, AnswerTool | None]:
        if request.response_format is None:
            return request, None
        return shaped(request, self._way or self._dialect.way(request, self._profile, self._model))

    async def _call(self, request: LLMRequest) -> Completion:
        request, tool = self._shaped(request)
        arguments = self._arguments(request)
        try:
            message = await self._ask(self._model, request.messages, arguments)
        except Exception as error:
            recovered = self._dialect.recover(error)
            if recovered is None:
                raise
            return recovered
        completion = self._completion(message, tool)
        return completion if request.lane != "flex" else as_served(completion, message)

    def _completion(self, message: AIMessage, tool: AnswerTool | None = None) -> Completion:
        if tool is None:
            return completion_of(message, needs_reason=self._dialect.ends_with_reason)
        return tool.answer(completion_of(tool.mended(message), needs_reason=self._dialect.ends_with_reason))

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Make one provider call: yield the pieces of the answer, and at last the whole. Raises ProviderError."""
        seen = Exchange()
        assembly = Assembly()
        request, tool = self._shaped(request)
        chunks = self._chunks(request, seen)
        failure = cause = None
        try:
            try:
                async for chunk in chunks:
                    for delta in assembly.take(chunk) if tool is None else tool.deltas(assembly.take(chunk)):
                        yield delta
            finally:
                await unwind(chunks)
            for delta in assembly.rest() if tool is None else tool.deltas(assembly.rest()):
                yield delta
            whole = assembly.message(self._dialect.streamed_usage(assembly))
            completion = self._completion(whole, tool)
            if request.lane == "flex":
                completion = as_served(completion, whole)
        except Exception as error:  # noqa: BLE001 - whatever it is, `translate` has a name for it
            let_go(error)
            recovered = self._dialect.recover(error)
            if recovered is None:
                failure, cause = self._failures.translate(error, seen, request.request_id)
            else:
                completion = recovered
        if failure is not None:
            raise failure from cause  # outside `except`, as in `generate`
        yield replace(completion, headers=hints.limits_told(seen.headers))

    async def _chunks(self, request: LLMRequest, seen: Exchange) -> AsyncIterator[AIMessage]:
        """Yield what LangChain streams."""
        arguments = self._dialect.streaming(self._arguments(request), self._model)
        stream = streamed(self._model, langchain_messages(request.messages), arguments, lean=self._lean)
        try:
            while True:
                token = exchange.set(seen)  # for each step anew: between two of them this is somebody else's context
                try:
                    chunk = await anext(stream, None)
                finally:
                    exchange.reset(token)
                if chunk is None:
                    return
                yield chunk
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody asked for it: something below gave up, and that is a failure like others.
            raise ConnectionAbortedError("the call was cancelled from below") from None

    async def aclose(self) -> None:
        """Leave what is shared; it is closed after its last user. Safe to call twice."""
        for lease in self._leases:
            await lease.aclose()


def as_served(completion: Completion, message: AIMessage) -> Completion:
    """Note that a call of the flex lane was served in another one, where the answer says so."""
    tier = message.response_metadata.get("service_tier")
    return replace(completion, price_lane="standard") if tier not in {None, "flex"} else completion


def texts_alone(request: LLMRequest) -> bool:
    """Tell whether no message has content blocks."""
    for message in request.messages:  # noqa: SIM110 - on everybody's way, and a generator takes twice as long
        if type(message.content) is not str:
            return False
    return True


def check_profile(request: LLMRequest, profile: dict[str, Any], model: str) -> None:
    """Raise InvalidRequestError for content and a forced choice that the profile of `model` explicitly denies.

    What profiles say of tools and schemas is wrong for some models; there the provider's own refusal counts.
    """
    if not texts_alone(request):
        blocks.check(request.messages, profile, model)
    if request.tool_choice not in {None, "auto", "none"} and profile.get("tool_choice") is False:
        refuse("tool_choice", f"this model cannot be forced ('{request.tool_choice}'); use 'auto' or another model.")


def refuse(field: str, reason: str) -> None:
    """Raise InvalidRequestError."""
    raise InvalidRequestError(reason, field=field, record="LLMRequest")
