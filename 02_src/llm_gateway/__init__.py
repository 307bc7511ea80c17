"""One door to every LLM for a system of many agents."""

__version__ = "0.1.0"
