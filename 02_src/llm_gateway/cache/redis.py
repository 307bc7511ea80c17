"""Answers in Redis or Valkey, shared by many processes and hosts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llm_gateway.cache.store import Bounds, CacheStoreError, Size
from llm_gateway.errors import ConfigurationError

PATIENCE = 3.0  # seconds for a connection or an answer; who asks on a request's behalf gives up sooner
CONNECTIONS = 16  # of one process
STAMP = 8  # bytes before each body: the instant it is from, in milliseconds
AT_ONCE = 1000  # answers that one call of the script looks at

# KEYS: the index (a sorted set by last use), the sizes (a hash), the total (a number). An answer is a key of its own,
# so that the server lets go what is too old; what the index still says of it is swept up later.
COMMON = """
local index, sizes, total, entries = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local function forget(name)
    redis.call('DEL', entries .. name)
    redis.call('ZREM', index, name)
    redis.call('DECRBY', total, tonumber(redis.call('HGET', sizes, name) or 0))
    redis.call('HDEL', sizes, name)
end
local function sweep(max_entries, max_bytes, first, count)
    local gone = 0
    for _, name in ipairs(redis.call('ZRANGE', index, first, first + count - 1)) do
        local over = redis.call('ZCARD', index) > max_entries or tonumber(redis.call('GET', total) or 0) > max_bytes
        if over or redis.call('EXISTS', entries .. name) == 0 then
            forget(name)
            gone = gone + 1
        end
    end
    return gone
end
"""
GET = """
local body = redis.call('GET', entries .. ARGV[2])
if body then redis.call('ZADD', index, 'XX', ARGV[3], ARGV[2])
elseif redis.call('HEXISTS', sizes, ARGV[2]) == 1 then forget(ARGV[2]) end
return body
"""
PUT = """
local name, size = ARGV[2], #ARGV[4]
redis.call('INCRBY', total, size - tonumber(redis.call('HGET', sizes, name) or 0))
redis.call('HSET', sizes, name, size)
redis.call('ZADD', index, ARGV[3], name)
if ARGV[5] == '' then redis.call('SET', entries .. name, ARGV[4])
else redis.call('SET', entries .. name, ARGV[4], 'PX', ARGV[5]) end
for _ = 1, 100 do  -- most at once: the server does nothing else meanwhile
    if sweep(tonumber(ARGV[6]), tonumber(ARGV[7]), 0, 8) < 8 then break end
end
return 0
"""
SIZE = "return {redis.call('ZCARD', index), tonumber(redis.call('GET', total) or 0)}"
SWEEP = (
    f"return {{sweep(tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), {AT_ONCE}), redis.call('ZCARD', index)}}"
)


class RedisAnswerStore:
    """AnswerStore on one server. Connects at its first use, in the running loop.

    Raises ConfigurationError where the package `redis` is missing or the URL cannot be used.
    """

    def __init__(self, url: str, prefix: str, bounds: Bounds, *, now: Callable[[], float] = time.time) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigurationError(
                "Configuration key cache.redis_url needs the package redis; install llm-gateway[redis]."
            ) from None
        try:
            pool: Any = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=None,  # whoever waits for a connection has patience of his own
                retry=Retry(NoBackoff(), 0),  # one try, then we do without
                socket_timeout=PATIENCE,
                socket_connect_timeout=PATIENCE,
            )
        except ValueError as error:
            raise ConfigurationError(f"Configuration key cache.redis_url cannot be used: {error}.") from None
        self._redis: Any = Redis.from_pool(pool)
        self._bounds = bounds
        self._now = now
        self._name = f"{{{prefix}:cache}}"  # in braces, so that a cluster keeps all of it on one node
        self._keys = [f"{self._name}:{each}" for each in ("used", "sizes", "bytes")]
        self._scripts = {text: self._redis.register_script(COMMON + text) for text in (GET, PUT, SIZE, SWEEP)}

    async def get(self, key: bytes, /) -> tuple[bytes, float] | None:
        """Return what is kept under `key` and the instant it is from, also where that is long ago."""
        stamped: bytes | None = await self._run(GET, key, self._now())
        if stamped is None:
            return None
        return stamped[STAMP:], int.from_bytes(stamped[:STAMP], "big") / 1000

    async def put(self, key: bytes, body: bytes, /) -> None:
        """Keep `body` in place of what was under `key`, and let go what the bounds leave no room for."""
        now, bounds = self._now(), self._bounds
        stamped = int(now * 1000).to_bytes(STAMP, "big") + body
        ttl = "" if bounds.ttl is None else max(1, int(bounds.ttl * 1000))
        await self._run(PUT, key, now, stamped, ttl, bounds.max_entries, bounds.max_bytes)

    async def size(self) -> Size:
        """Return how much is kept; answers that grew too old a short while ago may be counted."""
        return Size(*await self._run(SIZE))

    async def prune(self) -> int:
        """Let go what is too old or over the bounds; return how many answers."""
        return await self._sweep(self._bounds.max_entries, self._bounds.max_bytes)

    async def clear(self) -> int:
        """Let go everything; return how many answers."""
        return await self._sweep(0, -1)

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""
        await self._redis.aclose()

    def abandon(self) -> None:
        """Do nothing: the sockets close with their loop."""

    async def _sweep(self, max_entries: int, max_bytes: int) -> int:
        """Sweep from what was used least recently on, in steps that leave the server its turns."""
        whole, first, left = 0, 0, 1
        while first < left:
            gone, left = await self._run(SWEEP, max_entries, max_bytes, first)
            whole += gone
            first += AT_ONCE - gone  # those that stay are passed over
        return whole

    async def _run(self, script: str, *arguments: bytes | str | float) -> Any:
        from redis.exceptions import RedisError

        try:
            return await self._scripts[script](keys=self._keys, args=[f"{self._name}:", *arguments])
        except (RedisError, OSError) as error:
            # Its words may repeat the address with the password.
            raise CacheStoreError(type(error).__name__) from error
