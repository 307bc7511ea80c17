"""Ollama: ChatOllama over the lean transport, or over one client of its SDK for all models of a host."""

from __future__ import annotations

from typing import Any

import ollama
from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_ollama import ChatOllama

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.chat import LangChainClient, PlainDialect, refuse, takes_temperature
from llm_gateway.clients.construction import check_options, constructing
from llm_gateway.clients.lean import http, seams
from llm_gateway.clients.lean import ollama as lean
from llm_gateway.clients.shaping import Way
from llm_gateway.clients.transport import PoolLease, Pools, httpx_options, tls
from llm_gateway.config import Endpoint
from llm_gateway.errors import ConfigurationError
from llm_gateway.formats import asked_schema
from llm_gateway.models import LLMRequest

OURS = frozenset({"model", "base_url", "client_kwargs", "async_client_kwargs", "sync_client_kwargs", "cache"})


# Of all that its API has no place for.
TEXT_AND_IMAGES: ModelProfile = {"pdf_inputs": False, "audio_inputs": False, "video_inputs": False}


class LeanOllama(ChatOllama):
    """ChatOllama that is handed an answer in one part, which `lean.Chat` puts together for less than LangChain does."""

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await super()._agenerate(messages, stop, run_manager, **kwargs, whole=True)


class OllamaDialect(PlainDialect):
    """Ollama's chat API, whose `options` replace those of the constructor as a whole."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def check(self, request: LLMRequest, profile: dict[str, Any], /) -> None:  # noqa: ARG002 - the seam's signature
        """Refuse to promise a tool call."""
        if request.tool_choice not in {None, "auto", "none"}:
            refuse("tool_choice", f"Ollama cannot be made to call a tool ('{request.tool_choice}'); use 'auto'.")

    def rehearse(self, messages: list[BaseMessage], model: BaseChatModel, /) -> None:
        """Translate the messages, as the package does it."""
        model._convert_messages_to_ollama_messages(messages)  # type: ignore[attr-defined]  # noqa: SLF001 - a test watches

    def arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Put the parameters over those of the constructor."""
        options = self._options.copy()
        if takes_temperature(model.profile):
            options["temperature"] = request.temperature
        if request.max_tokens is not None:
            options["num_predict"] = request.max_tokens
        if request.stop:
            options["stop"] = request.stop
        arguments: dict[str, Any] = {"options": options}
        if request.response_format is not None:
            arguments["format"] = asked_schema(request.response_format)
        return arguments

    def way(self, request: LLMRequest, profile: dict[str, Any], model: BaseChatModel, /) -> Way:  # noqa: ARG002 - the seam's signature
        """Tell the model where it has tools: with a format, Ollama lets it write nothing else, and call none."""
        return "prompt" if request.tools and request.tool_choice != "none" else "native"

    def tool_arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Leave the tools out where none may be called: the API has no choice to offer."""
        if request.tool_choice == "none":
            return {}
        return super().tool_arguments(request.model_copy(update={"tool_choice": None}), model)


def constructor_options(model: ChatOllama, deployment: Deployment) -> dict[str, Any]:
    """Return the options that the constructor was given, as the API names them, with our settings as defaults."""
    given = {name: getattr(model, name, None) for name in ollama.Options.model_fields}
    options = {name: value for name, value in given.items() if value is not None}
    settings = deployment.settings
    if settings.max_tokens is not None:
        options.setdefault("num_predict", settings.max_tokens)
    if settings.context is not None:
        options.setdefault("num_ctx", settings.context)
    return options


async def _without_key(request: Any) -> None:
    """Take out the key that the SDK adds from OLLAMA_API_KEY, whatever the host; the event hook of keyless clients."""
    request.headers.pop("authorization", None)


def _new_client(endpoint: Endpoint) -> ollama.AsyncClient:
    options = httpx_options(endpoint)
    if endpoint.api_key is None:
        options["event_hooks"]["request"] = [_without_key]
        return ollama.AsyncClient(host=endpoint.base_url, **options)
    headers = {"Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    return ollama.AsyncClient(host=endpoint.base_url, headers=headers, **options)


def lease_sdk(endpoint: Endpoint, pools: Pools) -> PoolLease:
    """Return a share in the SDK's client of a host."""

    def make() -> tuple[Any, Any]:
        client = _new_client(endpoint)
        return client, client.close

    return pools.lease(endpoint, make)


def _lean_chat(endpoint: Endpoint, pool: http.Http) -> lean.Chat:
    headers = {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"} if endpoint.api_key else {}
    return lean.Chat(pool, http.Target(f"{lean.address(endpoint.base_url or '')}/api/chat", headers))


def connect(deployment: Deployment, pools: Pools) -> LangChainClient:
    """Return the client of an Ollama deployment. Raises ConfigurationError."""
    endpoint = deployment.endpoint
    if deployment.settings.structured_output == "tool":
        raise ConfigurationError(
            f"Configuration key models.{deployment.name}.structured_output: Ollama cannot be made to call a tool; set "
            "'native' or 'prompt'."
        )
    is_lean = endpoint.transport == "lean" and seams.fits(ChatOllama, lean.SEAM, lean.FIELDS)
    with constructing(deployment):
        model = (LeanOllama if is_lean else ChatOllama)(
            **check_options(deployment, OURS),
            model=deployment.settings.model,
            base_url=endpoint.base_url,
            client_kwargs={"verify": tls()},
            cache=False,
        )
        lease = http.lease(endpoint, pools) if is_lean else lease_sdk(endpoint, pools)
        client: Any = _lean_chat(endpoint, lease.client) if is_lean else lease.client
    model.profile = {**TEXT_AND_IMAGES, **(model.profile or {})}
    model._async_client = client  # noqa: SLF001 - a test fails when ChatOllama names it otherwise
    dialect = OllamaDialect(constructor_options(model, deployment))
    return LangChainClient(model, deployment, dialect, leases=[lease], lean=is_lean)
