"""A GGUF file, run in this process by llama.cpp (package xllamacpp) and asked over loopback by its OpenAI API.

Loading starts with the first request. The package holds the interpreter while it loads a file, so the whole process
stands still for that time: about a second for a small model.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_gateway.clients import sendable
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.chat import LangChainClient, check_profile
from llm_gateway.clients.openai import OpenAIDialect, chat_model, lease_http
from llm_gateway.clients.schemas import closed
from llm_gateway.clients.shaping import shaped
from llm_gateway.clients.transport import PoolLease, Pools
from llm_gateway.errors import ConfigurationError, MissingDependencyError, ProviderError
from llm_gateway.local_model import KNOWN, model_path
from llm_gateway.models import LLMRequest, StreamDelta

CONTEXT = 4096  # tokens in each slot
SILENT = -1  # llama.cpp's verbosity at which it writes nothing to the terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is loaded, and how; equal loads share one server."""

    path: Path
    slots: int  # requests at the same time
    context: int  # tokens in each slot


@dataclass(slots=True)
class LocalServer:
    """One loaded model of this process, started by its first request and stopped by its last user."""

    load: Load
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    users: int = 0
    _server: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> str:
        """Load the model unless that is done, and return the server's base_url. Blocks; any thread may call it."""
        with self._lock:
            if self._server is None:
                self._server = _serve(self.load, self.key)
            return f"{self._server.listening_address}/v1"

    def stop(self) -> None:
        """Unload the model. Blocks until the work under way is dropped; safe to call twice."""
        with self._lock:
            self._server = None  # the package stops a server when the last reference goes


def _serve(load: Load, key: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(load.path)
    params.n_parallel = load.slots
    params.n_ctx = load.slots * load.context  # shared out evenly
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # a free one
    params.api_keys = [key]  # or everybody on this machine could use the model
    params.ui = False
    params.cache_ram_mib = 0  # by default it keeps up to 8 GiB of old prompts
    params.verbosity = SILENT
    return xllamacpp.Server(params)


def threads() -> int:
    """Return how many threads compute: half of the CPUs.

    They spin while they wait for each other, so one that gets no CPU holds up all: with as many threads as CPUs, a
    busy neighbour was seen to make answers ten times slower. And of two hyperthreads one does the work.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // 2)


class LocalServers:
    """The loaded models of this process, shared by all event loops and threads."""

    def __init__(self) -> None:
        self._servers: dict[Load, LocalServer] = {}
        self._lock = threading.Lock()

    def lease(self, load: Load) -> ServerLease:
        """Return a share in the server of `load`, which is not started by that."""
        with self._lock:
            server = self._servers.setdefault(load, LocalServer(load))
            server.users += 1
        return ServerLease(self, server)

    def leave(self, server: LocalServer) -> None:
        """Count one user less, and stop the server after the last."""
        with self._lock:
            server.users -= 1
            if server.users > 0:
                return
            self._servers.pop(server.load, None)
        server.stop()

    def stop_all(self) -> None:
        """Stop what was never left, before the interpreter takes the ground from under its threads."""
        with self._lock:
            servers = list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.stop()


SERVERS = LocalServers()
atexit.register(SERVERS.stop_all)


class ServerLease:
    """One user's share in a server."""

    def __init__(self, servers: LocalServers, server: LocalServer) -> None:
        self.server = server
        self._servers = servers
        self._left = False

    async def aclose(self) -> None:
        """Leave, and wait until the model is unloaded if it was the last. Safe to call twice."""
        if not self._left:
            self._left = True
            await asyncio.to_thread(self._servers.leave, self.server)


class LocalDialect(OpenAIDialect):
    """llama.cpp's server, whose grammars know lengths and bounds that OpenAI's strict mode does not."""

    def enforced(self, schema: dict[str, Any], /) -> tuple[dict[str, Any], bool]:
        """Keep all of a schema: a small model needs every bound."""
        return closed(schema), True


class LlamaCppClient:
    """ChatClient over a local server, which the first request starts."""

    def __init__(self, deployment: Deployment, server: ServerLease, http: PoolLease) -> None:
        self._deployment = deployment
        self._server = server
        self._http = http
        self._dialect = LocalDialect()
        self._chat: LangChainClient | None = None
        self._starting = asyncio.Lock()

    def check(self, request: LLMRequest, /) -> None:
        """Raise InvalidRequestError for what cannot be sent; nothing else is known of a file."""
        sendable.check(request)
        shaped(request, self._deployment.settings.structured_output or "native")
        check_profile(request, {}, self._deployment.name)

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Make one call, after loading the model if need be. Raises ProviderError."""
        chat = self._chat or await self._start(request)
        return await chat.generate(request)

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Make one call, after loading the model if need be, and yield the answer's pieces. Raises ProviderError."""
        chat = self._chat or await self._start(request)
        async with aclosing(chat.stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _start(self, request: LLMRequest) -> LangChainClient:
        async with self._starting:
            if self._chat is None:
                server = self._server.server
                try:
                    url = await asyncio.to_thread(server.start)
                except RuntimeError as error:
                    raise self._not_loaded(request) from error
                model = chat_model(self._deployment, self._http, base_url=url, key=server.key)
                self._chat = LangChainClient(model, self._deployment, self._dialect)
            return self._chat

    def _not_loaded(self, request: LLMRequest) -> ProviderError:
        load = self._server.server.load
        return ProviderError(
            f"llama.cpp cannot load {load.path} with {load.slots} slots of {load.context} tokens: the file is no "
            f"GGUF model that it knows, or the memory does not suffice. Check [models.{self._deployment.name}] model, "
            "max_concurrency and context.",
            provider=self._deployment.endpoint.name,
            model=self._deployment.settings.model,
            request_id=request.request_id,
        )

    async def aclose(self) -> None:
        """Leave the connections and the server. Safe to call twice."""
        await self._http.aclose()
        await self._server.aclose()


def connect(deployment: Deployment, pools: Pools) -> LlamaCppClient:
    """Return the client of a GGUF file. Raises MissingDependencyError, ConfigurationError."""
    if find_spec("xllamacpp") is None:
        raise MissingDependencyError("pip install 'llm-gateway[llamacpp]'")
    settings = deployment.settings
    path = model_path(settings.model) if settings.model in KNOWN else Path(settings.model).expanduser()
    if not path.is_file():
        raise ConfigurationError(
            f"Configuration key models.{deployment.name}.model: there is no file {path}; give the path of a GGUF file, "
            f"or one of {', '.join(KNOWN)}."
        )
    load = Load(path=path.resolve(), slots=settings.max_concurrency, context=settings.context or CONTEXT)
    # Loopback needs no proxy, whatever the environment says.
    return LlamaCppClient(deployment, SERVERS.lease(load), lease_http(deployment, pools, trust_env=False))
