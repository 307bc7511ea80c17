"""On whose behalf a request is made: what a nested request inherits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.queue import Ticket
from llm_gateway.router import Upstream


@dataclass(slots=True, eq=False)
class Slot:
    """The slot of one call. While the call waits for requests of its own it is idle, and nested requests may go in it.

    So the calls of a deployment that do not wait never outnumber its slots, and none waits for a slot that is held by
    those who wait for it.
    """

    ticket: Ticket  # whose call it is
    upstream: Upstream
    on_lent: Callable[[], None]
    waits: int = 0  # requests that the call waits for
    is_held: bool = True

    def lend(self) -> None:
        """Note that the call waits for one more request."""
        self.waits += 1
        if self.is_held and self.waits == 1:
            self.upstream.lent += 1
            self.on_lent()

    def take_back(self) -> None:
        """Note that it waits for one less."""
        self.waits -= 1
        if self.is_held and not self.waits:
            self.upstream.lent -= 1

    def end(self) -> None:
        """Note that the call ended."""
        if self.waits:
            self.upstream.lent -= 1
        self.is_held = False

    def is_inside(self, ticket: Ticket) -> bool:
        """Whether the call is one of `ticket`, or was asked inside one, at whatever depth."""
        asked_in: Ticket | None = self.ticket
        while asked_in is not None and asked_in is not ticket:
            asked_in = asked_in.parent
        return asked_in is ticket


class Asker(NamedTuple):
    """The class and the agent of whoever asks, and the slot of the call in which that happens, if it happens in one."""

    priority: RequestPriority
    agent: str | None
    slot: Slot | None = None

    @property
    def is_call(self) -> bool:
        """Whether a call that is under way asks."""
        return self.slot is not None and self.slot.is_held


ASKER: ContextVar[Asker | None] = ContextVar("llm_gateway_asker", default=None)


@contextmanager
def on_behalf_of(request: LLMRequest) -> Iterator[None]:
    """Let every request made inside, also by tasks begun inside, inherit the class and the agent of `request`.

    A request that names a priority or an agent of its own keeps it.
    """
    token = ASKER.set(Asker(request.priority, request.agent))
    try:
        yield
    finally:
        ASKER.reset(token)


NO_SLOT = nullcontext()


def lent_slot() -> AbstractContextManager[None]:
    """While the body waits for answers, leave the slot of the call it runs in, if it runs in one, to what it asked."""
    asker = ASKER.get()
    return NO_SLOT if asker is None or asker.slot is None else _lent(asker.slot)


@contextmanager
def _lent(slot: Slot) -> Iterator[None]:
    slot.lend()
    try:
        yield
    finally:
        slot.take_back()


def inherited(request: LLMRequest) -> Asker:
    """Return the class and the agent that `request` is served under, and the slot of the call in which it is asked."""
    asker = ASKER.get()
    if asker is None:
        return Asker(request.priority, request.agent)
    priority = request.priority if "priority" in request.model_fields_set else asker.priority
    return Asker(priority, asker.agent if request.agent is None else request.agent, asker.slot)
