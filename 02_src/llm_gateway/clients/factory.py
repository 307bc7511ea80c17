"""Which module knows which kind of provider; each is imported when a model of its kind is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llm_gateway.clients.base import ChatClient, Deployment
from llm_gateway.clients.construction import check_url
from llm_gateway.clients.transport import Pools

MODULES = {kind: f"llm_gateway.clients.{kind}" for kind in ("openai", "anthropic", "ollama", "llamacpp")}
ANY_OTHER = "llm_gateway.clients.other"
EMBEDDINGS = "llm_gateway.clients.embeddings"


class LangChainClients:
    """ClientFactory over LangChain's chat models. Lives in one event loop.

    Deployments of one endpoint share its connections, and nothing is shared between factories but the TLS context and
    the models that run in this process.
    """

    def __init__(self) -> None:
        self._pools = Pools()

    def connect(self, deployment: Deployment, /) -> ChatClient:
        """Return a client. Raises ConfigurationError: no key, no such package, no such provider."""
        kind = deployment.endpoint.kind
        if kind in {"openai", "anthropic"}:
            check_url(deployment)
        embeds = deployment.settings.embedding
        module: Any = import_module(EMBEDDINGS if embeds else MODULES.get(kind, ANY_OTHER))
        client: ChatClient = module.connect(deployment, self._pools)
        return client

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._pools.aclose()

    def abandon(self) -> None:
        """Close all connections at once, for an event loop that is closed and cannot run `aclose`. Safe to call twice.

        Calls under way fail. What is neither closed nor abandoned is abandoned when it is garbage, or at exit.
        """
        self._pools.abandon()
