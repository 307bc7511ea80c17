"""Any other provider: through LangChain's `init_chat_model`, with as much of our own transport as its package takes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import reduce
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages.ai import UsageMetadata, add_usage

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.chat import LangChainClient, PlainDialect
from llm_gateway.clients.construction import check_options, constructing
from llm_gateway.clients.shaping import Way
from llm_gateway.clients.streaming import Assembly
from llm_gateway.clients.transport import PoolLease, Pools, httpx2_options, httpx_options
from llm_gateway.config import Endpoint
from llm_gateway.errors import MissingDependencyError
from llm_gateway.models import LLMRequest

OURS = frozenset({"model", "model_provider", "base_url", "api_key", "max_retries", "timeout", "cache"})


class OtherDialect(PlainDialect):
    """What most partner packages understand."""

    ends_with_reason = False  # where each package puts it is not known

    def __init__(self, *, wired: bool) -> None:
        self.wired = wired

    def way(self, request: LLMRequest, profile: dict[str, Any], model: BaseChatModel, /) -> Way:  # noqa: ARG002 - the seam's signature
        """Have a tool called, which all packages with tools understand alike."""
        has_none = type(model).bind_tools is BaseChatModel.bind_tools or profile.get("tool_calling") is False
        return "prompt" if has_none else "tool"

    def streamed_usage(self, assembly: Assembly, /) -> UsageMetadata | None:
        """Add up what was told: LangChain asks its packages to tell what each chunk adds."""
        return reduce(add_usage, assembly.usages) if assembly.usages else None


def connect(deployment: Deployment, pools: Pools) -> LangChainClient:
    """Return the client of a deployment. Raises MissingDependencyError, ConfigurationError."""
    with constructing(deployment):
        options = check_options(deployment, OURS)
        names = _field_names(type(_init(deployment, options)))
        settings = deployment.settings
        wanted = {
            "max_retries": 0,
            "timeout": deployment.endpoint.timeout,
            "max_tokens": settings.max_tokens,
            "cache": False,
            "stream_usage": True,  # ChatOpenAI's heirs leave it out over connections of ours
            "http_socket_options": (),  # ChatOpenAI's heirs warn of proxies that our connections do heed
        }
        options = {name: value for name, value in wanted.items() if name in names and value is not None} | options
        if "http_async_client" in names and "http_async_client" not in options:
            model, leases = _over_our_http(deployment, options, pools)
        else:
            model, leases = _init(deployment, options), []
    return LangChainClient(model, deployment, OtherDialect(wired=bool(leases)), leases=leases)


def _over_our_http(
    deployment: Deployment, options: dict[str, Any], pools: Pools
) -> tuple[BaseChatModel, list[PoolLease]]:
    """Hand in an HTTP client of the family that the package's SDK takes; the SDKs refuse the other with TypeError."""
    endpoint = deployment.endpoint
    leases: list[PoolLease] = []
    for make in (_httpx2_client, _httpx_client):
        lease = pools.lease((endpoint, make), lambda make=make: make(endpoint))  # type: ignore[misc]
        leases.append(lease)
        try:
            return _init(deployment, {**options, "http_async_client": lease.client}), leases
        except TypeError:
            continue
    return _init(deployment, options), leases


def _httpx2_client(endpoint: Endpoint) -> tuple[Any, Any]:
    from openai import DefaultAioHttpClient

    client = DefaultAioHttpClient(**httpx2_options(endpoint))
    return client, client.aclose


def _httpx_client(endpoint: Endpoint) -> tuple[Any, Any]:
    import httpx

    client = httpx.AsyncClient(**httpx_options(endpoint))
    return client, client.aclose


def _init(deployment: Deployment, options: dict[str, Any]) -> BaseChatModel:
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[providers]'") from None
    endpoint = deployment.endpoint
    access = {
        "base_url": endpoint.base_url,
        "api_key": endpoint.api_key.get_secret_value() if endpoint.api_key else None,
    }
    given = {name: value for name, value in access.items() if value is not None}
    make: Callable[..., BaseChatModel] = init_chat_model
    try:
        return make(deployment.settings.model, model_provider=endpoint.kind, **given, **options)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or f"langchain-{endpoint.kind}").partition(".")[0].replace("_", "-")
        raise MissingDependencyError(f"pip install {package}") from None


def _field_names(cls: type[BaseChatModel]) -> AbstractSet[str]:
    """Return the names and aliases of what a chat model's constructor takes."""
    return cls.model_fields.keys() | {field.alias for field in cls.model_fields.values() if field.alias}
