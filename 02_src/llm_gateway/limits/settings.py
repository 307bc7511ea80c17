"""How the kinds of providers charge."""

from __future__ import annotations

from llm_gateway.config import Charge


def charge_of(kind: str) -> Charge:
    """Return how providers of `kind` charge."""
    return "admission_max" if kind in {"openai", "azure_openai"} else "actual"
