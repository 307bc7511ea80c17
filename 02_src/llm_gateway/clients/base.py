"""The seam to a chat model: one call, one completion, one tree of errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_gateway.config import Endpoint, ModelSettings
from llm_gateway.models import LLMRequest, LLMToolCall, StreamDelta, TokenUsage
from llm_gateway.price_lanes import PriceLane


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a provider answered to one call."""

    content: str
    tool_calls: tuple[LLMToolCall, ...] = ()
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # of the HTTP answer, as far as they tell of limits
    vectors: Sequence[list[float]] | None = None  # of the texts of an EmbeddingRequest, in their order
    price_lane: PriceLane | None = None  # in which it was made, where the provider says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One model at one endpoint, as the configuration's name `name` stands for it."""

    name: str
    endpoint: Endpoint
    settings: ModelSettings

    @property
    def label(self) -> str:
        """What receipts and logs call it: provider, slash, model id."""
        return f"{self.endpoint.name}/{self.settings.model}"


class ChatClient(Protocol):
    """A connected chat model of one deployment, bound to the event loop it was made in."""

    def check(self, request: LLMRequest, /) -> None:
        """Raise InvalidRequestError for what this model is known to refuse. No I/O; called at admission."""

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Make one provider call, no retry. Raises ProviderError, and nothing else but cancellation.

        A request whose `lane` is "flex" goes there; whoever sets it knows that this deployment has that lane.
        """

    def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Make one provider call, no retry: yield the pieces of the answer as they come, and the whole of it at last.

        The Completion is what `generate` would return, and only an answer that came whole has one. Raises
        ProviderError, before the first piece or after any, and nothing else but cancellation. Leaving early, by
        `aclose` or a cancel, closes the connection before it returns; a generator that is merely dropped closes it
        when the event loop finds it.
        """

    async def aclose(self) -> None:
        """Close the connections. Safe to call twice."""


class ClientFactory(Protocol):
    """Makes the client of a deployment, inside the running loop."""

    def connect(self, deployment: Deployment, /) -> ChatClient:
        """Return a client. Raises ConfigurationError: no key, no such package, no such provider."""

    async def aclose(self) -> None:
        """Close all that is shared between the clients made. Safe to call twice."""

    def abandon(self) -> None:
        """Let go of it all at once, without the event loop, which may be closed. Safe to call twice."""
