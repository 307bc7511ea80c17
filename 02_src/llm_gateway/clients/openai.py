"""OpenAI, and every server that speaks its API: ChatOpenAI over the SDK's aiohttp transport."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.chat import LangChainClient, PlainDialect
from llm_gateway.clients.construction import check_options, constructing, key_of, with_profile
from llm_gateway.clients.messages import plausible, usage_of
from llm_gateway.clients.schemas import closed
from llm_gateway.clients.text import readable
from llm_gateway.clients.transport import PoolLease, Pools, httpx2_options
from llm_gateway.models import LLMRequest

OURS = frozenset({
    "model", "model_name", "base_url", "openai_api_base", "api_key", "openai_api_key", "max_retries", "timeout",
    "request_timeout", "max_tokens", "max_completion_tokens", "http_client", "http_async_client", "openai_proxy",
    "cache",
})  # fmt: skip


class GPT(ChatOpenAI):
    """ChatOpenAI that takes an answer also where the usage that comes with it is nonsense; it is unknown then."""

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        usage = getattr(response, "usage", None)
        if usage is not None and not plausible(usage):
            response = response.model_copy(update={"usage": None})
        return super()._create_chat_result(response, generation_info)


class OpenAIDialect(PlainDialect):
    """OpenAI's chat completions and responses."""

    def arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Close the objects of a schema, as strict mode demands."""
        arguments = super().arguments(request, model)
        if request.response_format is not None:
            form = arguments["response_format"]["json_schema"]
            form["schema"] = closed(form["schema"])
        return arguments

    def recover(self, error: Exception, /) -> Completion | None:
        """Return the answer that the SDK refuses to give since, cut or filtered, it cannot follow the schema."""
        if not isinstance(error, openai.LengthFinishReasonError | openai.ContentFilterFinishReasonError):
            return None
        answer = error.completion
        if answer is None or not answer.choices:
            return None
        choice, usage = answer.choices[0], answer.usage
        counted = None
        if usage is not None:
            into, out = usage.prompt_tokens_details, usage.completion_tokens_details
            counted = usage_of(
                input_tokens=[usage.prompt_tokens],
                output_tokens=[usage.completion_tokens],
                cache_read_tokens=[(into.cached_tokens if into else None) or 0],
                reasoning_tokens=[(out.reasoning_tokens if out else None) or 0],
            )
        content = readable(choice.message.content or "")
        return Completion(content=content, finish_reason=choice.finish_reason, usage=counted)


def lease_http(deployment: Deployment, pools: Pools, *, trust_env: bool = True) -> PoolLease:
    """Return a share in the endpoint's HTTP client."""

    def make() -> tuple[Any, Any]:
        client = openai.DefaultAioHttpClient(**httpx2_options(deployment.endpoint, trust_env=trust_env))
        return client, client.aclose

    return pools.lease(deployment.endpoint, make)


def chat_model(deployment: Deployment, lease: PoolLease, *, base_url: str | None, key: str) -> GPT:
    """Return the chat model of a deployment at `base_url`."""
    settings = deployment.settings

    async def current_key() -> str:  # given as a coroutine, since no synchronous client is made for one
        return key

    def build(name: str) -> GPT:
        return GPT(
            # It uses our connections, which heed the proxies of the environment; with socket options of its own it
            # would warn that they do not.
            **{"stream_usage": True, "http_socket_options": ()} | check_options(deployment, OURS),
            model=name,
            base_url=base_url,
            api_key=current_key,
            max_retries=0,
            timeout=lease.client.timeout,
            http_async_client=lease.client,
            cache=False,
            **({"max_tokens": settings.max_tokens} if settings.max_tokens else {}),
        )

    with constructing(deployment):
        return with_profile(build, settings.model)


def connect(deployment: Deployment, pools: Pools) -> LangChainClient:
    """Return the client of an OpenAI deployment. Raises MissingApiKeyError, ConfigurationError."""
    key = key_of(deployment)
    lease = lease_http(deployment, pools)
    model = chat_model(deployment, lease, base_url=deployment.endpoint.base_url, key=key)
    return LangChainClient(model, deployment, OpenAIDialect(), leases=[lease])
