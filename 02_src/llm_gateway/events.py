"""What happened, one frozen event a fact, and who wants to know.

Events carry no text of a prompt or an answer but in the two fields named so, which are None unless the configuration
asks for them. Durations in seconds; `at` is an instant on the gateway's clock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, dataclass_transform

from llm_gateway.models import RequestPriority, TokenUsage

log = logging.getLogger("llm_gateway")

CloseReason = Literal["idle", "size", "slots", "permits", "wait", "drain"]
"""Why a batch left: nothing more was queued; it was full; it took the last free slots, or the last permits of a limit
or a budget; its oldest request had waited `max_wait_ms`; the gateway drains."""


C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def event(cls: type[C]) -> type[C]:
    """Make an event of a class: frozen for the type checker, but not when it runs.

    Freezing is done attribute by attribute and would triple the time of an event; each request makes two or more.
    """
    return dataclass(slots=True, kw_only=True)(cls)


@event
class Event:
    """A fact. `name` is what the journal calls it."""

    name: ClassVar[str] = "event"


@event
class RequestQueued(Event):
    """A request was accepted."""

    name: ClassVar[str] = "request_queued"
    request_id: str
    model: str
    priority: RequestPriority
    operation: Literal["chat", "embeddings"] = "chat"  # what is asked of the model


@event
class BatchOpened(Event):
    """The first request went into a new batch of a lane."""

    name: ClassVar[str] = "batch_opened"
    batch_id: str
    model: str
    deployment: str | None  # None: one of several, chosen when it leaves


@event
class BatchClosed(Event):
    """A batch left for its provider; nothing more joins it."""

    name: ClassVar[str] = "batch_closed"
    batch_id: str
    model: str
    deployment: str
    size: int
    why: CloseReason
    classes: Mapping[RequestPriority, int]  # how many requests of each priority it holds


@event
class AttemptBegan(Event):
    """A provider call begins. Told in the call's own task: what an observer puts into its context, the call sees."""

    name: ClassVar[str] = "attempt_began"
    request_id: str
    batch_id: str
    model: str
    deployment: str
    provider: str  # its kind, as in `providers.<name>.kind`
    attempt: int
    queue_wait: float  # so far


@event
class AttemptFailed(Event):
    """A provider call failed. A retry or the end of the request follows as an event of its own."""

    name: ClassVar[str] = "error"
    request_id: str
    batch_id: str
    model: str
    deployment: str
    attempt: int
    kind: str  # the `kind` of the error's class
    status: int | None
    message: str  # without the provider's own words, which may repeat the prompt, unless texts are asked for
    provider_time: float


@event
class RetryScheduled(Event):
    """A failed request went back into its queue."""

    name: ClassVar[str] = "retry_scheduled"
    request_id: str
    model: str
    attempt: int  # the attempt that failed; the next one is attempt + 1
    wait: float
    kind: str


@event
class RequestDone(Event):
    """A request ended: with an answer (`outcome` "ok"), an error's kind, or because its caller left ("cancelled")."""

    name: ClassVar[str] = "item_done"
    request_id: str
    batch_id: str | None  # None: it never left the queue
    model: str
    deployment: str
    priority: RequestPriority
    outcome: str
    attempt: int  # provider calls made
    queue_wait: float
    provider_time: float
    time_to_first_token: float | None = None  # from the beginning of its last call; None: it was not streamed
    agent: str | None = None
    usage: TokenUsage | None = None
    cost_usd: float | None = None
    price_lane: Literal["flex", "batch"] | None = None  # of its answer; None: the standard one, or there is no answer
    cached: Literal[True] | None = None  # an answer that was kept: no call was made
    saved_usd: float | None = None  # what that answer cost when it was made; None: unknown
    finish_reason: str | None = None
    metadata: Mapping[str, Any] | None = None
    prompt: Any = None
    answer: str | None = None


@event
class ProviderBatchChanged(Event):
    """A batch at a provider, of requests in the price lane "batch", was made, went on to another state, or ended."""

    name: ClassVar[str] = "provider_batch"
    batch_id: str  # the gateway's own; its requests bear it, too
    provider_batch_id: str | None  # the provider's; None: it was not made, or nobody knows
    model: str
    deployment: str
    state: str  # "made", the provider's word, or "not made", "refused", "lost", "left" (the gateway was shut down)
    size: int  # requests
    waiting: int  # of those, how many have no outcome and a caller, or a job, that waits for one
    served: int  # as the provider told last


@event
class ShutdownBegan(Event):
    """No request is accepted any more."""

    name: ClassVar[str] = "shutdown_began"
    queued: int
    in_flight: int


@event
class ShutdownEnded(Event):
    """Everything accepted is answered or was cancelled."""

    name: ClassVar[str] = "shutdown"
    cancelled: int
    drained: int = 0


class Observer(Protocol):
    """Hears every event, on the gateway's loop. It must be quick; what it raises is logged and does no harm."""

    def observe(self, event: Event, /) -> None:
        """Take note of one event."""


@dataclass(frozen=True, slots=True)
class Observers:
    """Several observers as one; each hears every event in turn."""

    all: tuple[Observer, ...]

    @classmethod
    def of(cls, observers: Iterable[Observer]) -> Observers:
        """Bundle `observers` in their order."""
        return cls(tuple(observers))

    def observe(self, event: Event, /) -> None:
        """Tell each of them, also when one before it fails."""
        for observer in self.all:
            try:
                observer.observe(event)
            except Exception:
                log.exception("%s failed to take note of %s", type(observer).__name__, event.name)
