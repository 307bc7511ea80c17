"""Which rows the answer cache would answer: looked up as a run would, and nothing is asked or kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Self

from llm_gateway.cache import CacheStoreError, fits, identity, key_of, qualifies, store_of
from llm_gateway.cache.entries import decoded
from llm_gateway.config import CacheSettings, GatewayConfig
from llm_gateway.jobs.rows import name_of
from llm_gateway.models import LLMRequest
from llm_gateway.router import Deployments

TOGETHER = 500  # rows that are looked up at once


class CachedRows:
    """Looks rows up in the cache of a configuration. Close it in the end.

    Where the cache cannot be read, `problem` says why, and no row is found in it any more.
    """

    def __init__(self, config: GatewayConfig, settings: CacheSettings) -> None:
        """Open nothing yet. Raises ConfigurationError for a store that cannot be used."""
        self.problem: str | None = None
        self._config = config
        self._settings = settings
        self._store, self._where = store_of(config, settings)
        # What is kept in memory is another process's; and a file that is not there is not to be made.
        missing = self._where == str(settings.path) and not settings.path.is_file()
        self._is_empty = missing or self._where == "in memory"
        self._deployments = Deployments(config)
        self._served: dict[str, str | None] = {}

    @classmethod
    def of(cls, config: GatewayConfig) -> Self | None:
        """Return what looks rows up, None where no answer is kept."""
        return None if config.cache is None else cls(config, config.cache)

    def key(self, request: LLMRequest) -> bytes | None:
        """Return the key of a row's answer; None for one whose answer is not kept."""
        model = name_of(request.model)
        if not qualifies(request, self._settings, lambda name: self._config.models[name].cache, model):
            return None
        if model not in self._served:
            self._served[model] = identity(self._deployments[model])
        return key_of(request, self._settings, self._served[model])

    async def found(self, rows: Sequence[tuple[bytes | None, LLMRequest]]) -> list[bool]:
        """Say of each row, and its key, whether its answer is there. Never raises what the store raises."""
        if self._is_empty or self.problem is not None:
            return [False] * len(rows)
        try:
            return await asyncio.gather(*(self._is_there(key, request) for key, request in rows))
        except CacheStoreError as error:
            self.problem = f"The cache {self._where} cannot be read: {error}. No row is counted as answered by it."
            return [False] * len(rows)

    async def aclose(self) -> None:
        """Let go of the store."""
        await self._store.aclose()

    async def _is_there(self, key: bytes | None, request: LLMRequest) -> bool:
        found = None if key is None else await self._store.get(key)
        if found is None or key is None:
            return False
        body, stored = found
        if self._settings.ttl is not None and time.time() - stored > self._settings.ttl:
            return False
        kept = decoded(key, body)
        return kept is not None and fits(kept, request)[0]
