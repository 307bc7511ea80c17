"""Anthropic: ChatAnthropic over the lean transport, or the SDK's over aiohttp."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.chat_models import _create_usage_metadata
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatResult
from pydantic import PrivateAttr

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.batches.anthropic import AnthropicBatches
from llm_gateway.clients.chat import LangChainClient, PlainDialect, refuse, takes_temperature
from llm_gateway.clients.construction import check_options, constructing, key_of, with_profile
from llm_gateway.clients.lean import anthropic as lean
from llm_gateway.clients.lean import http, seams
from llm_gateway.clients.messages import plausible
from llm_gateway.clients.schemas import is_recursive, strict
from llm_gateway.clients.shaping import Way
from llm_gateway.clients.streaming import Assembly
from llm_gateway.clients.transport import Pools, httpx2_options
from llm_gateway.formats import all_required, asked_schema
from llm_gateway.models import LLMRequest

OURS = frozenset({
    "model", "model_name", "base_url", "anthropic_api_url", "api_key", "anthropic_api_key", "max_retries", "timeout",
    "default_request_timeout", "max_tokens", "max_tokens_to_sample", "anthropic_proxy", "cache",
})  # fmt: skip
MAX_TOKENS = 4096  # LangChain's default is the model's maximum, which the provider would reserve
BEGUN = "usage_at_start"  # our own key in LangChain's metadata
CACHE_LIFETIMES = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
COMPOSITIONS = ("oneOf", "anyOf", "allOf")


class Claude(ChatAnthropic):
    """ChatAnthropic over an HTTP client that is handed in; it has no field for one."""

    _http: Any = PrivateAttr(default=None)
    _lean: lean.Messages | None = PrivateAttr(default=None)  # what to call instead of the SDK, where it can

    @cached_property
    def _async_client(self) -> anthropic.AsyncClient:
        own = {"http_client": self._http, "timeout": self._http.timeout}
        return anthropic.AsyncClient(**self._client_params | own)

    async def _acreate(self, payload: dict[str, Any]) -> Any:
        if self._lean is not None and self._lean.takes(payload):
            return await self._lean.create(payload)
        return await super()._acreate(payload)

    def _format_output(self, data: Any, **kwargs: Any) -> ChatResult:
        """Take an answer also where the usage that comes with it is nonsense; it is unknown then."""
        usage = getattr(data, "usage", None)
        if usage is None or plausible(usage):
            return super()._format_output(data, **kwargs)
        nothing = anthropic.types.Usage(input_tokens=0, output_tokens=0)
        result = super()._format_output(data.model_copy(update={"usage": nothing}), **kwargs)
        for generation in result.generations:
            generation.message.usage_metadata = None  # type: ignore[attr-defined]  # it is an AIMessage
        return result

    def _make_message_chunk_from_anthropic_event(self, event: Any, **kwargs: Any) -> tuple[AIMessageChunk | None, Any]:
        """Keep the usage that a stream begins with, which LangChain drops, and leave out one that is nonsense."""
        nonsense = event.type == "message_delta" and not (event.usage and plausible(event.usage))
        if nonsense:
            event = event.model_copy(update={"usage": anthropic.types.MessageDeltaUsage(output_tokens=0)})
        chunk, block_start = super()._make_message_chunk_from_anthropic_event(event, **kwargs)
        if chunk is not None and nonsense:
            chunk.usage_metadata = None
        if chunk is not None and event.type == "message_start":
            begun = event.message.usage
            if begun and plausible(begun):
                chunk.response_metadata[BEGUN] = _create_usage_metadata(begun)
        return chunk, block_start


class AnthropicDialect(PlainDialect):
    """Anthropic's messages."""

    def check(self, request: LLMRequest, profile: dict[str, Any], /) -> None:
        """Refuse what the API answers with a 400, or LangChain with an exception."""
        roles = [message.role for message in request.messages]
        if all(role == "system" for role in roles):
            refuse("messages", "only system messages; Anthropic wants at least one of role 'user'.")
        if not profile.get("mid_conversation_system_messages"):
            began = next(number for number, role in enumerate(roles) if role != "system")
            if "system" in roles[began:]:
                late = roles.index("system", began)
                refuse(f"messages[{late}].role", "'system' after the first turn, which this model does not take there.")
        if request.temperature > 1 and takes_temperature(profile):
            refuse("temperature", f"{request.temperature:g} is more than 1, the most that Anthropic takes.")
        for number, tool in enumerate(request.tools or ()):
            composed = [key for key in COMPOSITIONS if key in tool.input_schema]
            if composed:
                reason = f"Anthropic takes no '{composed[0]}' at the top of a schema; move it under 'properties'."
                refuse(f"tools[{number}].input_schema", reason)

    def rehearse(self, messages: list[BaseMessage], model: BaseChatModel, /) -> None:
        """Build the call's payload, as the package does it."""
        model._get_request_payload(messages)  # type: ignore[attr-defined]  # noqa: SLF001 - a test watches over it

    def way(self, request: LLMRequest, profile: dict[str, Any], model: BaseChatModel, /) -> Way:
        """Leave it to the provider where it takes the model's schema: no open dictionaries, nothing recursive."""
        schema = asked_schema(request.response_format or {})
        fits = strict(all_required(schema)) is not None and not is_recursive(schema)
        way = super().way(request, profile if fits else profile | {"structured_output": False}, model)
        thinks = (getattr(model, "thinking", None) or {}).get("type", "disabled") != "disabled"
        return "prompt" if way == "tool" and thinks else way  # who thinks cannot be forced

    def tool_arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Send the tools also when none may be called: the API wants them where earlier turns have tool calls."""
        if request.tool_choice != "none":
            return super().tool_arguments(request, model)
        free = request.model_copy(update={"tool_choice": None})
        return super().tool_arguments(free, model) | {"tool_choice": {"type": "none"}}

    def streamed_usage(self, assembly: Assembly, /) -> UsageMetadata | None:
        """Fill up what was told last with what was told first: there alone stand the lifetimes of cache writes.

        And some servers count the input there alone.
        """
        ended, begun = super().streamed_usage(assembly), assembly.metadata.get(BEGUN)
        if ended is None or begun is None:
            return ended
        whole = ended.copy()
        whole["input_tokens"] = max(begun["input_tokens"], ended["input_tokens"])
        told: Mapping[str, Any] = ended.get("input_token_details", {})
        details: dict[str, Any] = {**begun.get("input_token_details", {})}
        details |= {part: count for part, count in told.items() if count}
        if any(details.get(part) for part in CACHE_LIFETIMES):
            details["cache_creation"] = 0  # it is their sum
        whole["input_token_details"] = cast("InputTokenDetails", details)
        return whole


def connect(deployment: Deployment, pools: Pools) -> LangChainClient:
    """Return the client of an Anthropic deployment. Raises MissingApiKeyError, ConfigurationError."""
    key = key_of(deployment)
    endpoint, settings = deployment.endpoint, deployment.settings

    def make() -> tuple[Any, Any]:
        client = anthropic.DefaultAioHttpClient(**httpx2_options(endpoint))
        return client, client.aclose

    def build(name: str) -> Claude:
        return Claude(
            **check_options(deployment, OURS),
            model_name=name,
            base_url=endpoint.base_url,
            api_key=key,
            max_retries=0,
            max_tokens_to_sample=settings.max_tokens or MAX_TOKENS,
            cache=False,
        )

    lease = pools.lease(endpoint, make)
    with constructing(deployment):
        model = with_profile(build, settings.model)
    model._http = lease.client  # noqa: SLF001 - our own subclass
    leases = [lease]
    is_lean = endpoint.transport == "lean" and seams.fits(ChatAnthropic, lean.SEAM)
    if is_lean:
        # The SDK stays below for what is in beta; it opens no connection before its first call.
        leases.insert(0, http.lease(endpoint, pools))
        sdk = model._async_client  # noqa: SLF001 - a test watches over it
        headers = http.sdk_headers(sdk.default_headers)
        target = http.Target(f"{str(sdk.base_url).rstrip('/')}/v1/messages", headers, too_long=lean.TOO_LONG)
        model._lean = lean.Messages(leases[0].client, target.varied({}, sdk.default_query))  # noqa: SLF001 - see above
    return LangChainClient(model, deployment, AnthropicDialect(), leases=leases, lean=is_lean, batches=AnthropicBatches)
