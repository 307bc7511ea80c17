"""Who follows the provider calls of single requests, as a job does that writes each of them down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from llm_gateway.events import AttemptBegan, AttemptFailed, Event, RequestDone, RetryScheduled

Heard = AttemptBegan | AttemptFailed | RetryScheduled | RequestDone
"""What is told of a request: a call begins, it failed, another one will be made, there will be no more."""
HEARD = frozenset(get_args(Heard))
Follower = Callable[[Heard], None]


@dataclass(frozen=True, slots=True)
class CallWatch:
    """Observer that hands the events of a request to those who follow it by its id."""

    _followers: dict[str, Follower] = field(default_factory=dict)

    def observe(self, event: Event, /) -> None:
        """Pass on what followers want to hear."""
        if not self._followers:  # as mostly, and every event of the gateway comes by here
            return
        # A look at its class costs a tenth of what `isinstance` of four does.
        if type(event) in HEARD and (follower := self._followers.get(event.request_id)) is not None:  # type: ignore[attr-defined]
            follower(event)  # type: ignore[arg-type]

    def follow(self, request_id: str, follower: Follower, /) -> None:
        """Have `follower` called with every event of `request_id` until it leaves.

        It is called before what the event announces: a `RetryScheduled` comes before its call can be made.
        """
        others = self._followers.get(request_id)
        self._followers[request_id] = follower if others is None else Several((*_all(others), follower))

    def leave(self, request_id: str, follower: Follower, /) -> None:
        """Call it no more. Raises KeyError if nobody follows that id."""
        known = self._followers.pop(request_id)
        if known is not follower:  # which is rare: several requests under way have one id
            self._followers[request_id] = Several(tuple(each for each in _all(known) if each is not follower))


@dataclass(frozen=True, slots=True)
class Several:
    """Followers of requests that have one id."""

    followers: tuple[Follower, ...]

    def __call__(self, event: Heard, /) -> None:
        """Tell all of them."""
        for follower in self.followers:
            follower(event)


def _all(follower: Follower) -> tuple[Follower, ...]:
    return follower.followers if isinstance(follower, Several) else (follower,)
