"""Embedding models: a list of texts in, their vectors out, through LangChain's classes and our transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from langchain_core.embeddings import Embeddings

from llm_gateway.clients import hints
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.construction import check_options, constructing, key_of
from llm_gateway.clients.failures import Failures
from llm_gateway.clients.messages import UnreadableAnswerError, usage_of
from llm_gateway.clients.transport import Exchange, Lease, PoolLease, Pools, exchange, tls
from llm_gateway.config import Endpoint
from llm_gateway.errors import ConfigurationError, InvalidRequestError, MissingDependencyError
from llm_gateway.models import EmbeddingRequest, LLMRequest, StreamDelta

OURS = frozenset({
    "model", "provider", "base_url", "openai_api_base", "api_key", "openai_api_key", "max_retries", "timeout",
    "request_timeout", "http_client", "http_async_client", "openai_proxy", "chunk_size", "check_embedding_ctx_length",
    "client_kwargs", "async_client_kwargs", "sync_client_kwargs",
})  # fmt: skip
WITHOUT = {
    "anthropic": "Anthropic has no embedding models",
    "llamacpp": "a model in this process makes no vectors",
}
MOST_AT_ONCE = 1_000_000  # texts; the lane has cut them already, LangChain shall not cut them again
LARGEST_ANSWER = 256 * 1024 * 1024  # bytes; 2048 vectors of 3072 numbers, as text, have 140 MB


@dataclass(slots=True)
class Told:
    """What LangChain drops of an answer."""

    tokens: object = None


told: ContextVar[Told] = ContextVar("told")


class EmbeddingClient:
    """ChatClient over one of LangChain's embedding models; it answers EmbeddingRequests, and nothing else."""

    def __init__(self, model: Embeddings, deployment: Deployment, *, wired: bool, leases: Sequence[Lease] = ()) -> None:
        self._model = model
        self._name = deployment.name
        self._failures = Failures(deployment, wired=wired)
        self._leases = leases

    def check(self, request: LLMRequest, /) -> None:
        """Raise InvalidRequestError for a request that wants words."""
        check(request, self._name)

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Make one provider call, no retry. Raises ProviderError, and nothing else but cancellation."""
        seen, heard = Exchange(), Told()
        tokens = exchange.set(seen), told.set(heard)
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            vectors = await self._vectors([str(each.content) for each in request.messages])
            usage = None if heard.tokens is None else usage_of(input_tokens=[heard.tokens])
            headers = hints.limits_told(seen.headers)
            return Completion(content="", vectors=vectors, finish_reason="stop", usage=usage, headers=headers)
        except Exception as error:
            if task and task.cancelling() > cancels:
                raise asyncio.CancelledError from error  # whoever swallowed it below, the caller asked for it
            failure, cause = self._failures.translate(error, seen, request.request_id)
        finally:
            exchange.reset(tokens[0])
            told.reset(tokens[1])
        raise failure from cause  # outside `except`: an error that holds the key must not be its context either

    async def _vectors(self, texts: list[str]) -> list[list[float]]:
        vectors = await self._model.aembed_documents(texts)
        if len(vectors) != len(texts) or not all(vectors):
            raise UnreadableAnswerError(f"it has {sum(map(bool, vectors))} vectors for {len(texts)} texts")
        return vectors

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Yield the whole answer; vectors do not come in pieces."""
        yield await self.generate(request)

    async def aclose(self) -> None:
        """Leave what is shared. Safe to call twice."""
        for lease in self._leases:
            await lease.aclose()


def check(request: LLMRequest, name: str) -> None:
    """Raise InvalidRequestError for a request that an embedding model, `name`, cannot answer."""
    if not isinstance(request, EmbeddingRequest):
        reason = (
            f"'{name}' is configured with `embedding` and makes vectors; ask it with gateway.embed(texts, model=…)."
        )
        raise InvalidRequestError(reason, field="model", record="LLMRequest")


def note_usage(count: object) -> None:
    """Remember what the provider counted of the call under way."""
    heard = told.get(None)
    if heard is not None:
        heard.tokens = count


def connect(deployment: Deployment, pools: Pools) -> EmbeddingClient:
    """Return the client of an embedding model. Raises ConfigurationError: no key, no such package, no vectors there."""
    kind = deployment.endpoint.kind
    if kind in WITHOUT:
        raise ConfigurationError(
            f"Configuration key models.{deployment.name}.embedding: {WITHOUT[kind]}; use another provider, such as "
            "openai or ollama."
        )
    make = {"openai": _openai, "ollama": _ollama}.get(kind, _other)
    with constructing(deployment):
        return make(deployment, pools, check_options(deployment, OURS))


def _http_pool(endpoint: Endpoint, pools: Pools) -> PoolLease:
    """Return a share in connections of their own: these answers may be larger than words ever are."""
    from llm_gateway.clients.lean.http import Http

    def make() -> tuple[Any, Any]:
        pool = Http(endpoint, largest=LARGEST_ANSWER)
        return pool, pool.aclose

    return pools.lease((endpoint, Http, "embeddings"), make)


def _openai(deployment: Deployment, pools: Pools, options: Mapping[str, Any]) -> EmbeddingClient:
    from langchain_openai import OpenAIEmbeddings

    from llm_gateway.clients.lean import embeddings as lean
    from llm_gateway.clients.lean import http, seams
    from llm_gateway.clients.openai import lease_http

    endpoint, key = deployment.endpoint, key_of(deployment)
    lease = lease_http(deployment, pools)

    async def current_key() -> str:  # given as a coroutine, since no synchronous client is made for one
        return key

    model = OpenAIEmbeddings(
        **options,
        model=deployment.settings.model,
        openai_api_base=endpoint.base_url,
        openai_api_key=current_key,
        max_retries=0,
        request_timeout=lease.client.timeout,
        http_async_client=lease.client,
        check_embedding_ctx_length=False,  # it would download a tokenizer
        chunk_size=MOST_AT_ONCE,
    )
    sdk, leases = model.async_client, [lease]
    if endpoint.transport == "lean" and seams.fits(OpenAIEmbeddings, lean.SEAM, lean.OPENAI_FIELDS):
        leases.insert(0, _http_pool(endpoint, pools))
        client = sdk._client  # noqa: SLF001 - what it was made from has no other name
        headers = {"authorization": f"Bearer {key}"} | http.sdk_headers(client.default_headers)
        url = f"{str(client.base_url).rstrip('/')}/embeddings"
        target = http.Target(url, headers).varied({}, client.default_query)
        model.async_client = lean.OpenAIVectors(leases[0].client, target, note_usage)
    else:
        model.async_client = Noting(sdk, "create", _in_order)
    return EmbeddingClient(model, deployment, wired=True, leases=leases)


def _in_order(answer: Any) -> object:
    """Put the vectors into the order of the texts, which LangChain does not look at; return what was counted."""
    answer.data.sort(key=lambda row: row.index)
    return answer.usage.prompt_tokens


def _ollama(deployment: Deployment, pools: Pools, options: Mapping[str, Any]) -> EmbeddingClient:
    from langchain_ollama import OllamaEmbeddings

    from llm_gateway.clients.lean import embeddings as lean
    from llm_gateway.clients.lean import http, seams
    from llm_gateway.clients.lean.ollama import address
    from llm_gateway.clients.ollama import lease_sdk

    endpoint = deployment.endpoint
    url = endpoint.base_url
    model = OllamaEmbeddings(**options, model=deployment.settings.model, base_url=url, client_kwargs={"verify": tls()})
    client: Any
    if endpoint.transport == "lean" and seams.fits(OllamaEmbeddings, lean.SEAM, lean.OLLAMA_FIELDS):
        lease = _http_pool(endpoint, pools)
        headers = {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"} if endpoint.api_key else {}
        client = lean.OllamaVectors(lease.client, http.Target(f"{address(url or '')}/api/embed", headers), note_usage)
    else:
        lease = lease_sdk(endpoint, pools)
        client = Noting(lease.client, "embed", lambda answer: answer.prompt_eval_count)
    model._async_client = client  # noqa: SLF001 - a test fails when OllamaEmbeddings names it otherwise
    return EmbeddingClient(model, deployment, wired=True, leases=[lease])


def _other(deployment: Deployment, pools: Pools, options: Mapping[str, Any]) -> EmbeddingClient:  # noqa: ARG001 - as the others
    """Connect any other provider through LangChain's `init_embeddings`; its own package retries and tells no usage."""
    try:
        from langchain.embeddings import init_embeddings
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[providers]'") from None
    endpoint = deployment.endpoint
    key = endpoint.api_key.get_secret_value() if endpoint.api_key else None
    given = {name: value for name, value in {"base_url": endpoint.base_url, "api_key": key}.items() if value}
    try:
        model = init_embeddings(deployment.settings.model, provider=endpoint.kind, **given, **options)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or f"langchain-{endpoint.kind}").partition(".")[0].replace("_", "-")
        raise MissingDependencyError(f"pip install {package}") from None
    return EmbeddingClient(model, deployment, wired=False)


class Noting:
    """Stands before an SDK's client and notes the usage that LangChain drops."""

    def __init__(self, client: Any, method: str, count: Callable[[Any], object]) -> None:
        self._call = getattr(client, method)
        self._count = count
        setattr(self, method, self._noted)

    async def _noted(self, *values: Any, **fields: Any) -> Any:
        answer = await self._call(*values, **fields)
        try:
            note_usage(self._count(answer))
        except AttributeError:  # some servers tell none
            note_usage(None)
        return answer
