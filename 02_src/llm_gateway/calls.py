"""Who follows the provider calls of single requests, as a job does that writes each of them down."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import get_args

from llm_gateway.events import AttemptBegan, AttemptFailed, Event, RequestDone, RetryScheduled

Heard = AttemptBegan | AttemptFailed | RetryScheduled | RequestDone
"""What is told of a request: a call begins, it failed, another one will be made, there will be no more."""
HEARD = frozenset(get_args(Heard))


@dataclass(frozen=True, slots=True)
class CallWatch:
    """Observer that hands the events of a request to those who follow it by its id."""

    _followers: dict[str, list[Callable[[Heard], None]]] = field(default_factory=dict)

    def observe(self, event: Event, /) -> None:
        """Pass on what followers want to hear."""
        if not self._followers:  # as mostly, and every event of the gateway comes by here
            return
        # A look at its class costs a tenth of what `isinstance` of four does.
        if type(event) in HEARD and (followers := self._followers.get(event.request_id)):  # type: ignore[attr-defined]
            for follower in tuple(followers):
                follower(event)  # type: ignore[arg-type]

    def following(self, request_id: str, follower: Callable[[Heard], None]) -> AbstractContextManager[None]:
        """Have `follower` called with every event of `request_id` while the body runs.

        It is called before what the event announces: a `RetryScheduled` comes before its call can be made.
        """
        return Following(self._followers, request_id, follower)


@dataclass(frozen=True, slots=True)
class Following:
    """A follower, for as long as a body runs."""

    followers: dict[str, list[Callable[[Heard], None]]]
    request_id: str
    follower: Callable[[Heard], None]

    def __enter__(self) -> None:
        """Begin."""
        self.followers.setdefault(self.request_id, []).append(self.follower)

    def __exit__(self, *error: object) -> None:
        """End, whatever happened."""
        left = self.followers[self.request_id]
        left.remove(self.follower)
        if not left:
            del self.followers[self.request_id]
