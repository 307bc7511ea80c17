"""Which configuration a command works with, and which model where none is named."""

from __future__ import annotations

import asyncio
import tomllib
from dataclasses import dataclass
from pathlib import Path

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.config import GatewayConfig, load_config, read_config
from llm_gateway.errors import ConfigurationError, UnknownModelError
from llm_gateway.router import Deployments

DEFAULT_FILE = Path("llm-gateway.toml")
BUILT_IN_MODEL = "smollm2-135m"  # needs no key and no server


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and where it came from."""

    config: GatewayConfig
    file: Path | None  # None: all is as built in
    only_model: str | None  # the one model that the file has a section for, if it is one

    def check_model(self, model: str) -> None:
        """Raise ConfigurationError for a model that could not be asked: unknown, no key, no package, no file.

        Connects to nothing, and must not be called in an event loop.
        """
        try:
            deployments = Deployments(self.config)[model]
        except UnknownModelError as error:
            raise ConfigurationError(f"--model: {error.reason}") from None
        asyncio.run(_make_clients(deployments))


async def _make_clients(deployments: list[Deployment]) -> None:
    clients = LangChainClients()
    try:
        for deployment in deployments:
            await clients.connect(deployment).aclose()
    finally:
        await clients.aclose()


def load(path: Path | None) -> Loaded:
    """Read `path`, else llm-gateway.toml of the working directory if there is one. Raises ConfigurationError."""
    file = path or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    if file is None:
        return Loaded(config=load_config({}), file=None, only_model=None)
    config = read_config(file)
    named = list(tomllib.loads(file.read_text(encoding="utf-8")).get("models", {}))
    return Loaded(config=config, file=file, only_model=named[0] if len(named) == 1 else None)
