"""A provider on loopback: the OpenAI, Anthropic and Ollama chat APIs with scripted answers, faults and true limits."""

from fakes.emulator.limits import Limits
from fakes.emulator.script import Call, Reply, ToolCall, Usage
from fakes.emulator.server import Emulator

__all__ = ["Call", "Emulator", "Limits", "Reply", "ToolCall", "Usage"]
