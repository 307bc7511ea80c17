"""What a test says the provider does, and what the provider says was asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

Api = Literal["openai", "anthropic", "ollama"]
Fault = Literal[
    "reset",  # the TCP connection is reset before any byte of the answer, or `after` some pieces
    "cut_body",  # the headers and half the body, then the connection is closed
    "stall",  # the headers and half the body, then nothing until the client leaves
    "html",  # 200 with an HTML page
    "bad_json",  # 200 with broken JSON; in a stream, one broken event
    "empty_object",  # 200 with {}
    "no_finish",  # the whole text, but no finish reason: a stream that just ends
    "error_event",  # a stream that turns into an error after its first text; for a unary call, 200 with an error body
    "odd_event",  # a stream with an event in its middle that is JSON, but none of this API
    "no_last_event",  # a stream with its finish reason and all, but for the event that ends it
]
STREAM_FAULTS = {"reset", "cut_body", "stall", "bad_json", "no_finish", "error_event", "odd_event"}


class Usage(TypedDict, total=False):
    """Tokens billed. `input` includes the cached ones, as in LangChain; what is left out is estimated or 0."""

    input: int
    output: int
    cache_read: int
    cache_write: int  # written for five minutes
    cache_write_1h: int  # written for an hour, on top of `cache_write`
    reasoning: int  # part of `output`


class ToolCall(TypedDict):
    """A tool that the model wants called. `args` as a string is sent as it stands, which lets it be broken JSON."""

    name: str
    args: Mapping[str, Any] | str
    id: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of the provider.

    `finish_reason` is the API's own word ("length", "max_tokens", …). `error` is the whole body of an error; left out,
    it is what the real provider sends with that status. `headers` come on top of the provider's and replace them.
    A stream tells `reasoning` first. With `after` its fault comes when so many pieces of text, reasoning and arguments
    are out; a "no_finish" ends it there.
    """

    text: str = "ok"
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    latency: float = 0.0  # seconds before the first byte
    fault: Fault | None = None
    after: int | None = None
    reasoning: str = ""
    pace: float = 0.0  # seconds before each further frame of a stream

    def __post_init__(self) -> None:
        if self.after is not None and self.fault not in STREAM_FAULTS:
            raise ValueError(f"after={self.after} needs a fault that comes in the middle, not {self.fault!r}")
        if self.error is not None and self.status < 400 and self.fault != "error_event":
            raise ValueError(f"error= needs an error status or fault='error_event', not status={self.status}")
        if self.status >= 400 and self.fault not in {None, "reset", "cut_body", "stall"}:
            raise ValueError(f"fault={self.fault!r} comes with status 200, not {self.status}")


@dataclass(slots=True, kw_only=True)
class Call:
    """One HTTP request as the provider saw it."""

    number: int  # from 1, in the order of arrival; ids in the answer carry it
    api: Api
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # the parsed JSON; None where there is none
    at: float  # seconds, on the emulator's clock
    status: int = 0  # of the answer; 0 while there is none, and after a reset
    pieces: int = 0  # of text, reasoning and arguments, as far as a stream has sent them
    finished: bool = False  # the answer went out whole to a client that was still there
    disconnected: bool = False  # the client left before the answer was whole
    ended: bool = False  # nothing more happens to this call

    @property
    def streams(self) -> bool:
        """Whether the answer is wanted piece by piece. Ollama streams unless told otherwise."""
        return isinstance(self.body, dict) and bool(self.body.get("stream", self.path == "/api/chat"))

    @property
    def model(self) -> str:
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def key(self) -> str:
        """The credential that came with the call, "" for none."""
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
