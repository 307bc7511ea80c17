"""Who follows the provider calls of single requests, as a job does that writes each of them down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llm_gateway.events import AttemptBegan, AttemptFailed, Event, RequestDone, RetryScheduled

Heard = AttemptBegan | AttemptFailed | RetryScheduled | RequestDone
"""What is told of a request: a call begins, it failed, another one will be made, there will be no more."""


@dataclass(frozen=True, slots=True)
class CallWatch:
    """Observer that hands the events of a request to those who follow it by its id."""

    _followers: dict[str, list[Callable[[Heard], None]]] = field(default_factory=dict)

    def observe(self, event: Event, /) -> None:
        """Pass on what followers want to hear."""
        if self._followers and isinstance(event, AttemptBegan | AttemptFailed | RetryScheduled | RequestDone):
            for follower in tuple(self._followers.get(event.request_id, ())):
                follower(event)

    @contextmanager
    def following(self, request_id: str, follower: Callable[[Heard], None]) -> Iterator[None]:
        """Have `follower` called with every event of `request_id` while the body runs.

        It is called before what the event announces: a `RetryScheduled` comes before its call can be made.
        """
        followers = self._followers.setdefault(request_id, [])
        followers.append(follower)
        try:
            yield
        finally:
            followers.remove(follower)
            if not followers:
                self._followers.pop(request_id, None)
