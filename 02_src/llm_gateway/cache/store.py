"""The seam to where answers are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class CacheStoreError(Exception):
    """The store cannot be used for the moment. Its text is one sentence without its full stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a store keeps. What is over goes, that which was used least recently first."""

    max_entries: int
    max_bytes: int
    ttl: float | None = None  # seconds after which an answer is too old; None: never


@dataclass(frozen=True, slots=True)
class Size:
    """What a store holds."""

    entries: int
    bytes: int


class AnswerStore(Protocol):
    """Bytes under keys of 32 bytes. Instants are seconds since the epoch.

    Every method raises CacheStoreError, and no other. It belongs to the event loop of its first use.
    """

    async def get(self, key: bytes, /) -> tuple[bytes, float] | None:
        """Return what is kept under `key` and the instant it is from, also where that is long ago."""

    async def put(self, key: bytes, body: bytes, /) -> None:
        """Keep `body` in place of what was under `key`, and let go what the bounds leave no room for."""

    async def size(self) -> Size:
        """Return how much is kept."""

    async def prune(self) -> int:
        """Let go what is too old or over the bounds; return how many answers."""

    async def clear(self) -> int:
        """Let go everything; return how many answers."""

    async def aclose(self) -> None:
        """Close it. Safe to call twice."""

    def abandon(self) -> None:
        """Let go of it without the event loop, which may be closed. Safe to call twice."""
