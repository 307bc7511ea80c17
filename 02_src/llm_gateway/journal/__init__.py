"""The journal: what the gateway did, as lines of JSON, written off the hot path."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from llm_gateway.clock import utc_now
from llm_gateway.config import LogSettings
from llm_gateway.events import Event
from llm_gateway.journal.files import JournalFiles
from llm_gateway.journal.lines import JOURNALLED
from llm_gateway.journal.writer import MOST_WAITING, MOST_WAITING_WITH_TEXT, Writer

__all__ = ["Journal"]


class Journal:
    """An observer that writes events to `settings.dir`, which must not be false: a file a day (UTC) and process.

    The folder is made with the first line, and a thread started with the first event, not before. `observe` costs
    microseconds and never waits for the disk; the lines follow within a quarter of a second, and at the latest when
    the journal is closed, is no longer referenced, or the interpreter ends. `wall` tells the time, aware and in UTC.
    """

    def __init__(self, settings: LogSettings, *, wall: Callable[[], datetime] = utc_now) -> None:
        if settings.dir is False:
            raise ValueError("a journal needs a folder; with `dir` false there is none")
        self._settings = settings
        self._folder = settings.dir.absolute()
        self._wall = wall
        self._begin()

    def observe(self, event: Event, /) -> None:
        """Note one event, with the time of this moment."""
        if type(event) in JOURNALLED:
            if self._writer.pid != os.getpid():
                self._begin_in_child()
            self._writer.take(event)

    def flush(self) -> None:
        """Return when everything observed so far is in the file, unless the disk fails."""
        if self._writer.pid == os.getpid():
            self._writer.flush()

    def close(self) -> None:
        """Write what waits and close the file. Safe to call twice."""
        self._writer.close()

    @property
    def log_path(self) -> Path | None:
        """The file written last; None before the first line."""
        return self._writer.files.path

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost

    def _begin(self) -> None:
        most_waiting = MOST_WAITING_WITH_TEXT if self._settings.text else MOST_WAITING
        files = JournalFiles(self._folder, self._settings)
        self._writer = Writer(files, str(self._folder), wall=self._wall, most_waiting=most_waiting)
        # A gateway that nobody shuts down must not keep its thread and its file for ever.
        self._finalizer = weakref.finalize(self, self._writer.stop)
        self._finalizer.atexit = False

    def _begin_in_child(self) -> None:
        """After a fork: the thread and the file are the parent's, and so are the lines that wait."""
        self._finalizer.detach()
        self._writer.files.close()  # this process's copy of the descriptor
        self._begin()
