"""Providers' batch APIs: the seam, and what comes over it."""

from llm_gateway.clients.batches.base import (
    BatchAnswer,
    BatchClient,
    BatchLine,
    CreationFailedError,
    Found,
    Sought,
    Standing,
    custom_id,
    number_of,
)

__all__ = [
    "BatchAnswer",
    "BatchClient",
    "BatchLine",
    "CreationFailedError",
    "Found",
    "Sought",
    "Standing",
    "custom_id",
    "number_of",
]
