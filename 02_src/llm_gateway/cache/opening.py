"""From the configuration to the store."""

from __future__ import annotations

from llm_gateway.cache.store import AnswerStore, Bounds
from llm_gateway.config import CacheSettings, GatewayConfig


def store_of(config: GatewayConfig, settings: CacheSettings) -> tuple[AnswerStore, str]:
    """Return the store of `[cache]`, and its name for sentences. Opens nothing yet. Raises ConfigurationError."""
    bounds = Bounds(max_entries=settings.max_entries, max_bytes=settings.max_bytes, ttl=settings.ttl)
    url = settings.redis_url or config.limits.redis_url
    store = settings.store or ("redis" if url is not None and "path" not in settings.model_fields_set else "sqlite")
    if store == "redis" and url is not None:
        from llm_gateway.cache.redis import RedisAnswerStore

        return RedisAnswerStore(url.get_secret_value(), config.limits.prefix, bounds), "in Redis"
    from llm_gateway.cache.sqlite import SqliteAnswerStore

    if store == "memory":
        return SqliteAnswerStore(None, bounds), "in memory"
    return SqliteAnswerStore(settings.path, bounds), str(settings.path)
