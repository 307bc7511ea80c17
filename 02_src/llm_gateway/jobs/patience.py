"""Waiting for a store that cannot be written at the moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from llm_gateway.clock import Clock
from llm_gateway.errors import JobStoreBusyError
from llm_gateway.jobs.hooks import Hooks

T = TypeVar("T")
STORE_PAUSE = 2.0  # seconds between attempts to write what the disk has no room for


class Patience:
    """Does what writes, again and again while the disk is full; says once that it waits, and once that it goes on."""

    def __init__(self, clock: Clock, hooks: Hooks, *, went_on: Callable[[], None]) -> None:
        """Take who hears of it; `went_on` is called as soon as everything is written that could not be."""
        self._clock = clock
        self._hooks = hooks
        self._went_on = went_on
        self._failing = 0  # writes that wait for room on the disk
        self._is_gone = False

    @property
    def is_waiting(self) -> bool:
        """Whether something could not be written yet."""
        return self._failing > 0

    def give_up(self) -> None:
        """Wait no more: what cannot be written raises from now on."""
        self._is_gone = True

    async def persisted(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what `action` returned once it could write. Raises JobStoreBusyError after `give_up`."""
        failed = False
        try:
            while True:
                try:
                    return await action()
                except JobStoreBusyError as error:
                    if self._is_gone:
                        raise
                    if not failed:
                        failed = True
                        self._pause(error)
                await self._clock.sleep(STORE_PAUSE)
        finally:
            if failed:
                self._go_on()

    def _pause(self, error: JobStoreBusyError) -> None:
        self._failing += 1
        if self._failing == 1:
            self._hooks.paused(error)

    def _go_on(self) -> None:
        self._failing -= 1
        if not self._failing:
            self._went_on()
            if not self._is_gone:
                self._hooks.resumed()
