"""What came out of a stream, for tests that compare it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field

from llm_gateway.clients.base import ChatClient, Completion
from llm_gateway.errors import ProviderError
from llm_gateway.models import LLMRequest, ReasoningDelta, StreamDelta, TextDelta, ToolCallDelta


@dataclass(slots=True)
class Streamed:
    """The pieces of one stream, and how it ended: by a completion or by an error, never by both."""

    pieces: list[StreamDelta] = field(default_factory=list)
    completion: Completion | None = None
    error: ProviderError | None = None

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces if isinstance(piece, TextDelta)]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, ReasoningDelta))

    @property
    def whole(self) -> Completion:
        """The completion of a stream that has one."""
        assert self.error is None, self.error
        assert self.completion is not None
        return self.completion

    @property
    def failure(self) -> ProviderError:
        """The error of a stream that failed."""
        assert self.completion is None
        assert self.error is not None
        return self.error

    def calls(self) -> list[tuple[str | None, str | None, str]]:
        """The tool calls put together: id, name and arguments as JSON text."""
        calls: list[tuple[str | None, str | None, str]] = []
        for piece in self.pieces:
            if not isinstance(piece, ToolCallDelta):
                continue
            if piece.index == len(calls):
                assert piece.id is not None
                calls.append((piece.id, piece.name, piece.arguments))
            else:
                assert (piece.id, piece.name) == (None, None)
                known_id, name, arguments = calls[piece.index]
                calls[piece.index] = (known_id, name, arguments + piece.arguments)
        return calls


async def streamed(client: ChatClient, request: LLMRequest) -> Streamed:
    """Take a stream to its end."""
    seen = Streamed()
    try:
        async with aclosing(client.stream(request)) as stream:
            async for piece in stream:
                assert seen.completion is None, "the completion comes last"
                if isinstance(piece, Completion):
                    seen.completion = piece
                else:
                    seen.pieces.append(piece)
    except ProviderError as error:
        seen.error = error
    return seen
