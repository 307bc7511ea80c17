"""Deployments that point at the emulator, one for each kind of provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fakes.emulator import Emulator
from llm_gateway.clients.base import ChatClient, Deployment
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.config import endpoint_of, load_config
from llm_gateway.models import LLMMessage, LLMRequest, LLMTool

KINDS = ("openai", "anthropic", "ollama")
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "ollama": "llama3.2"}
CANARY = "sk-canary-0123456789abcdef"
TRANSPORT: str | None = None  # of deployments that name none; the fixture `transport` sets it


def base_url(url: str, kind: str) -> str:
    """Where a kind's API is on the emulator."""
    return url if kind in {"anthropic", "ollama"} else f"{url}/v1"


def deployment(
    kind: str,
    url: str | None,
    *,
    model: str | None = None,
    key: str | None = CANARY,
    timeout: float = 20.0,
    environ: Mapping[str, str] | None = None,
    provider: str | None = None,
    transport: str | None = None,
    **settings: Any,
) -> Deployment:
    """A deployment named "m"."""
    name = provider or kind
    section = {"kind": kind, "base_url": url, "api_key": key, "timeout": timeout}
    section["transport"] = (transport or TRANSPORT) if kind in KINDS else None
    given = {key: value for key, value in section.items() if value is not None}
    known = MODELS.get(kind, "some-model")
    model_section = {"provider": name, "model": model or known, **settings}
    config = load_config({"providers": {name: given}, "models": {"m": model_section}})
    return Deployment(name="m", endpoint=endpoint_of(config, name, environ or {}), settings=config.models["m"])


@asynccontextmanager
async def connected(emulator: Emulator, kind: str, **options: Any) -> AsyncIterator[ChatClient]:
    """A client of the emulator; everything is closed at the end."""
    clients = LangChainClients()
    try:
        yield clients.connect(deployment(kind, base_url(emulator.url, kind), **options))
    finally:
        await clients.aclose()


def request(*messages: LLMMessage, **fields: Any) -> LLMRequest:
    """A request to "m"; "hello" from a user if no message is given."""
    return LLMRequest(model="m", messages=list(messages) or [said("user", "hello")], **fields)


def said(role: Any, content: Any = "", **fields: Any) -> LLMMessage:
    """A message."""
    return LLMMessage(role=role, content=content, **fields)


def tool(name: str, properties: Mapping[str, Any] | None = None, **schema: Any) -> LLMTool:
    """A tool that describes itself by its name."""
    form = {"type": "object", "properties": dict(properties or {}), **schema}
    return LLMTool(name=name, description=f"Calls {name}.", input_schema=form)
