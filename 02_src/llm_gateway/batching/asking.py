"""On whose behalf a request is made: what a nested request inherits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.queue import Ticket


class Asker(NamedTuple):
    """The class and the agent of whoever asks, and the ticket in whose call that happens, if it happens in one."""

    priority: RequestPriority
    agent: str | None
    ticket: Ticket | None = None


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


def inherited(request: LLMRequest) -> Asker:
    """Return the class and the agent that `request` is served under, and its parent."""
    asker = ASKER.get()
    if asker is None:
        return Asker(request.priority, request.agent)
    priority = request.priority if "priority" in request.model_fields_set else asker.priority
    return Asker(priority, asker.agent if request.agent is None else request.agent, asker.ticket)
