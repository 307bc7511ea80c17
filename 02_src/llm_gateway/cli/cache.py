"""`llm-gateway cache`: how much is kept, and letting go of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from llm_gateway.cache import AnswerStore, CacheStoreError, store_of
from llm_gateway.cli.console import count, duration, stderr
from llm_gateway.cli.settings import load
from llm_gateway.cli.summary import print_facts
from llm_gateway.config import CacheSettings, GatewayConfig
from llm_gateway.errors import ConfigurationError

T = TypeVar("T")


def show_cache(file: Path | None, *, as_json: bool) -> None:
    """Print how much the cache holds, and its bounds."""
    config, settings = _settings(file)
    size, where = _with_store(config, settings, lambda store: store.size())
    console = Console(markup=False, highlight=False)
    if as_json:
        told = {"cache": where, "entries": size.entries, "bytes": size.bytes}
        bounds = {name: getattr(settings, name) for name in ("max_entries", "max_bytes", "ttl")}
        console.print(json.dumps(told | bounds, indent=2), soft_wrap=True)
        return
    facts = [
        ("cache", where),
        ("answers", f"{size.entries:,} of {settings.max_entries:,} at most"),
        ("bytes", f"{size.bytes:,} of {settings.max_bytes:,} at most"),
        ("age", "any" if settings.ttl is None else f"{duration(settings.ttl)} at most"),
    ]
    print_facts(console, facts)


def clear_cache(file: Path | None) -> None:
    """Let go every answer, those of all tenants."""
    gone, where = _with_store(*_settings(file), lambda store: store.clear())
    stderr().print(f"{count(gone, 'answer')} removed from the cache {where}.")


def prune_cache(file: Path | None) -> None:
    """Let go the answers that are too old or beyond the bounds."""
    gone, where = _with_store(*_settings(file), lambda store: store.prune())
    stderr().print(f"{count(gone, 'answer')} removed from the cache {where}.")


def _settings(file: Path | None) -> tuple[GatewayConfig, CacheSettings]:
    config = load(file).config
    if config.cache is None:
        raise ConfigurationError("The configuration has no section [cache], so no answer is kept; add one.")
    return config, config.cache


def _with_store(
    config: GatewayConfig, settings: CacheSettings, ask: Callable[[AnswerStore], Awaitable[T]]
) -> tuple[T, str]:
    """Return what `ask` returned, and the name of the store. Makes no file where there is none."""
    store, where = store_of(config, settings)
    if where == "in memory":
        raise ConfigurationError("The cache is in the memory of the process that asks, and ends with it.")
    if where == str(settings.path) and not settings.path.is_file():
        raise ConfigurationError(f"There is no cache {where} yet; the first answer that is kept makes it.")

    async def main() -> T:
        try:
            return await ask(store)
        finally:
            await store.aclose()

    try:
        return asyncio.run(main()), where
    except CacheStoreError as error:
        raise ConfigurationError(f"The cache {where} cannot be used: {error}.") from None
