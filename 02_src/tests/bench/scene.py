"""What is asked of a subject: which API, how long a conversation, how many at a time, how slow an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Api = Literal["openai", "anthropic"]
Loop = Literal["asyncio", "uvloop"]

SYSTEM = "You are a careful assistant. Answer in one short paragraph, and say so when you do not know."
PROMPT = "Question {number}: " + "how does a gateway keep a hundred agents within the limits of one provider? " * 4
LONG, LONG_TEXT = 21, 400  # messages of a long conversation, characters of each
KEY = "sk-bench-0000000000000000"
MODELS: dict[Api, str] = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One combination of circumstances."""

    concurrency: int = 64
    api: Api = "openai"
    long: bool = False
    latency_ms: int = 0
    loop: Loop = "asyncio"

    def base_url(self, server: str) -> str:
        """Return where clients of this API look for the server at `server`, as its own package wants it."""
        address = f"{server}/{self.latency_ms}ms"
        return f"{address}/v1" if self.api == "openai" else address

    def messages(self, prompt: str) -> list[tuple[str, str]]:
        """Return the conversation that ends with `prompt`, as roles and texts."""
        if not self.long:
            return [("system", SYSTEM), ("user", prompt)]
        begin, rest = prompt[:24], prompt * 2
        texts = [f"{begin} {number} {rest}"[:LONG_TEXT] for number in range(LONG)]
        return [("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
