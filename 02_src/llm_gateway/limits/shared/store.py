"""The connection to Redis or Valkey."""

from __future__ import annotations

import json
from typing import Any

from llm_gateway.errors import ConfigurationError
from llm_gateway.limits.shared.protocol import Lending, Lent, Reply, Said, StoreError, lending_script, script

PATIENCE = 0.5  # seconds for a connection or an answer


class RedisStore:
    """Runs the script on one server. Connects at the first decision, in the running loop.

    Raises ConfigurationError where the package `redis` is missing or the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigurationError(
                "Configuration key limits.redis_url needs the package redis; install llm-gateway[redis]."
            ) from None
        # One try, then we do without: whoever connects anew may meet an older state.
        retry = Retry(NoBackoff(), 0)
        try:
            self._redis: Any = Redis.from_url(
                url, retry=retry, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, decode_responses=True
            )
        except ValueError as error:
            raise ConfigurationError(f"Configuration key limits.redis_url cannot be used: {error}.") from None
        self._deciding: Any = self._redis.register_script(script())
        self._lending: Any = self._redis.register_script(lending_script())

    async def decide(self, key: str, said: Said, /) -> Reply:
        """Take one decision atomically. Raises StoreError."""
        reply: Reply = await self._run(self._deciding, key, said)
        return reply

    async def lend(self, key: str, said: Lending, /) -> Lent:
        """Lend money of the budgets that are asked for, as far as it is there. Raises StoreError."""
        lent: Lent = await self._run(self._lending, key, said)
        return lent

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""
        await self._redis.aclose()

    async def _run(self, script: Any, key: str, said: object) -> Any:
        from redis.exceptions import RedisError

        try:
            return json.loads(await script(keys=[key], args=[json.dumps(said)]))
        except (RedisError, OSError) as error:
            # Its words may repeat the address with the password.
            raise StoreError(type(error).__name__) from error
