"""Lines on their way to the disk: a bounded queue, and the thread that empties it.

An event becomes its line at once, on the caller's thread: that takes a few microseconds, fewer than handing a live
object to another thread, and a line is nothing that the garbage collector has to look at. Files, and whatever can
wait for a disk, are the thread's.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from llm_gateway.events import Event
from llm_gateway.journal.files import JournalFiles
from llm_gateway.journal.lines import line_of, lost_line

logger = logging.getLogger("llm_gateway.journal")

LONGEST_DELAY = 0.25  # seconds between an event and its line
ENOUGH = 1000  # waiting events that are written without further delay
MOST_WAITING = 20_000  # lines kept while the disk does not take them
MOST_WAITING_WITH_TEXT = 2_000  # the same where each holds a prompt and an answer
RETRY_AFTER = 1.0  # seconds between tries of a disk that fails
CHUNK = 256 * 1024  # bytes handed to the system at once
PATIENCE = 5.0  # seconds that closing waits for a disk that hangs


class Finalizer(Protocol):
    """What `multiprocessing` calls when a worker ends."""

    def cancel(self) -> None:
        """Do not call it."""


class Writer:
    """Writes what it is given in a thread of its own, which starts with the first event.

    If the disk is full, unwritable or too slow, lines wait in memory, `most_waiting` of them; further ones are lost,
    counted in `lost`, and a line `lines_lost` tells how many as soon as lines can be written again. A process that is
    killed loses the last quarter of a second; a machine that loses power, what its kernel had not yet written.
    """

    def __init__(self, files: JournalFiles, folder: str, *, wall: Callable[[], datetime], most_waiting: int) -> None:
        self.pid = os.getpid()
        self.files = files
        self.lost = 0
        self._folder = folder
        self._wall = wall
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[date, bytes]] = deque()
        self._lines: list[bytes] = []  # of `_day`, not yet in the file
        self._day = date.min
        self._reported = 0  # lost lines that a line, or at the end a warning, speaks of
        self._failing = False
        self._thread: Thread | None = None
        self._idle = True
        self._closing = False
        self._worker_end: Finalizer | None = None
        # Its put() may be called at any point of the program, also by the garbage collector; Event.set() may not.
        self._signals: SimpleQueue[None] = SimpleQueue()
        self._writing = Lock()
        self._counting = Lock()

    def take(self, event: Event) -> None:
        """Keep `event` for writing. Never waits, never raises."""
        waiting = self._waiting
        depth = len(waiting)
        if depth >= self._most_waiting:
            self._lose(1)
            return
        now = self._wall()
        try:
            line = line_of(now, event)
        except (TypeError, ValueError, RuntimeError) as error:  # somebody's metadata is no JSON after all
            logger.warning("A line of the journal cannot be written: %s.", error)
            self._lose(1)
            line = b""
        waiting.append((now.date(), line))
        if self._idle:
            self._rouse()
        elif depth == ENOUGH:
            self._signals.put(None)

    def flush(self) -> None:
        """Write what waits, in the calling thread. If the disk fails, it goes on waiting."""
        with self._writing:
            self._drain()

    def stop(self) -> None:
        """Have the thread write what waits and end; return at once."""
        self._closing = True
        self._signals.put(None)

    def close(self) -> None:
        """Write what waits and close the file. A later event is written at once, in the thread that it comes from."""
        if self.pid != os.getpid():
            return  # a forked child must not write its parent's lines a second time
        thread, self._thread = self._thread, None
        self.stop()
        if self._writing.acquire(timeout=PATIENCE):
            try:
                self._end()
            finally:
                self._writing.release()
            if thread is not None:
                thread.join(PATIENCE)
        else:
            logger.warning("The disk under the journal in %s hangs; its last lines may be missing.", self._folder)

    def _rouse(self) -> None:
        """Have the waiting event written: by the thread, or here and now where there can be none."""
        if self._thread is None and not self._closing:
            self._start()
        if self._thread is None:
            self.flush()
        else:
            self._idle = False
            self._signals.put(None)

    def _start(self) -> None:
        with self._counting:  # two threads may bring the first event together
            if self._thread is not None:
                return
            thread = Thread(target=self._run, name="llm-gateway-journal", daemon=True)
            with suppress(RuntimeError):  # no thread any more: the interpreter ends, or the system has no room
                thread.start()
                self._thread = thread
                # A daemon thread ends with the interpreter whatever it still has to do, so we are asked before that.
                atexit.register(self.close)
                self._worker_end = _before_a_worker_ends(self.close)

    def _run(self) -> None:
        while not self._closing:
            self._idle = True
            if not self._waiting and not self._lines:
                self._signals.get()
            self._idle = False
            if not self._closing:
                with suppress(Empty):
                    self._signals.get(timeout=RETRY_AFTER if self._failing else LONGEST_DELAY)
            self.flush()
        with self._writing:
            self._end()

    def _end(self) -> None:
        self._idle = True  # before the last look: an event that comes later writes itself
        self._drain()
        if self._failing:
            self._lose(len(self._lines) + len(self._waiting))
            self._lines.clear()
            self._waiting.clear()
            self._failing = False
            logger.warning("The journal in %s lost %d lines.", self._folder, self.lost - self._reported)
            self._reported = self.lost
        self.files.close()
        atexit.unregister(self.close)
        if self._worker_end is not None:
            self._worker_end.cancel()

    def _drain(self) -> None:
        """Write until nothing waits or the disk fails."""
        while self._lines or self._collect():
            try:
                self.files.append(self._day, self._lines)
            except OSError as error:
                self._tell(error)
                return
            self._failing = False

    def _collect(self) -> bool:
        """Gather the next lines, all of one day; return whether there are any."""
        size = 0
        while self._waiting and size < CHUNK:
            day, line = self._waiting[0]
            if self._lines and day != self._day:
                break
            self._waiting.popleft()
            self._day = day
            if line:  # an empty one only rouses the thread, to tell of the line that is missing
                self._lines.append(line)
                size += len(line)
        if not self._lines and self.lost > self._reported:
            now = self._wall()
            self._day = now.date()
            self._lines.append(lost_line(now, self.lost - self._reported))
            self._reported = self.lost
        return bool(self._lines)

    def _tell(self, error: OSError) -> None:
        """Warn once for each time that the disk begins to fail."""
        if not self._failing:
            logger.warning(
                "The journal cannot be written in %s: %s. Make the folder writable or free space, or set [logs] dir to "
                "another folder or to false; the gateway works on and keeps the last %d lines for later.",
                self._folder,
                error.strerror or error,
                self._most_waiting,
            )
        self._failing = True

    def _lose(self, lines: int) -> None:
        with self._counting:
            self.lost += lines


def _before_a_worker_ends(callback: Callable[[], None]) -> Finalizer | None:
    """Have `callback` called at the end of a worker of `multiprocessing`, which may skip `atexit`."""
    multiprocessing: Any = sys.modules.get("multiprocessing.util")  # loaded wherever there is a worker
    if multiprocessing is None:
        return None
    finalizer: Finalizer = multiprocessing.Finalize(None, callback, exitpriority=0)
    return finalizer
