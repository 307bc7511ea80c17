"""Anthropic: ChatAnthropic over the SDK's aiohttp transport."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import PrivateAttr

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.chat import LangChainClient, PlainDialect, refuse, takes_temperature
from llm_gateway.clients.construction import check_options, constructing, key_of, with_profile
from llm_gateway.clients.messages import plausible
from llm_gateway.clients.transport import Pools, httpx2_options
from llm_gateway.models import LLMRequest

OURS = frozenset({
    "model", "model_name", "base_url", "anthropic_api_url", "api_key", "anthropic_api_key", "max_retries", "timeout",
    "default_request_timeout", "max_tokens", "max_tokens_to_sample", "anthropic_proxy", "cache",
})  # fmt: skip
MAX_TOKENS = 4096  # LangChain's default is the model's maximum, which the provider would reserve
COMPOSITIONS = ("oneOf", "anyOf", "allOf")


class Claude(ChatAnthropic):
    """ChatAnthropic over an HTTP client that is handed in; it has no field for one."""

    _http: Any = PrivateAttr(default=None)

    @cached_property
    def _async_client(self) -> anthropic.AsyncClient:
        own = {"http_client": self._http, "timeout": self._http.timeout}
        return anthropic.AsyncClient(**self._client_params | own)

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

    def tool_arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Send the tools also when none may be called: the API wants them where earlier turns have tool calls."""
        if request.tool_choice != "none":
            return super().tool_arguments(request, model)
        free = request.model_copy(update={"tool_choice": None})
        return super().tool_arguments(free, model) | {"tool_choice": {"type": "none"}}


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
    return LangChainClient(model, deployment, AnthropicDialect(), leases=[lease])
