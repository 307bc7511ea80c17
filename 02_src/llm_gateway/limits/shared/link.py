"""The talk of one pace with the store: one word at a time, in the background."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import suppress
from typing import Any

from llm_gateway.clock import Clock, Timer
from llm_gateway.limits.shared.limiter import PATIENCE
from llm_gateway.limits.shared.pace import SharedPace
from llm_gateway.limits.shared.protocol import Reply, Said, Store, StoreError

log = logging.getLogger("llm_gateway")

PROBE = 0.5  # seconds between two tries to reach a store that is gone
HANDOVER = 1.5  # seconds for which a process goes on alone after the store is back, until all others know it, too
WHILE_ALONE = 0.1  # seconds between two words in that time
HEARTBEAT = 1.0  # seconds between two words at most, so that all know how many they are
TOGETHER = 0.02  # seconds between two words while news comes
VIEWS = 0.25  # seconds between two views of one process; a refusal is told at once


class Link:
    """Tells the store what its pace did and asks for what it wants; tells the pace what it heard.

    After a failure the pace goes on alone, and the link tries again until the store answers. Nothing here waits
    longer than `PATIENCE` for it. `run` ends when it is cancelled; `say_bye` gives everything back before that.
    """

    def __init__(self, pace: SharedPace, store: Store, *, key: str, name: str, clock: Clock, lease: float) -> None:
        self._pace = pace
        self._limiter = pace.limiter
        self._store = store
        self._key = key
        self._name = name
        self._clock = clock
        self._lease = lease
        self._me = uuid.uuid4().hex[:12]
        self._version = 0
        self._override = False
        self._alone_until: float | None = None  # after the store was found again
        self._talked = clock.now()
        self._viewed = clock.now() - VIEWS
        self._ring = asyncio.Event()
        self._timer: Timer | None = None
        self._rings_at = 0.0
        self._busy = False
        self._limiter.on_due = self._schedule

    @property
    def state(self) -> dict[str, Any]:
        """How it stands, for statistics."""
        return {"state": "alone" if self._limiter.alone else "shared", "processes": self._limiter.peers}

    async def run(self) -> None:
        """Talk whenever there is something to say, until cancelled."""
        task = asyncio.current_task()
        try:
            self._ring.set()  # the first word is a greeting
            # A cancel that comes in the middle of a word can end as an error of the connection, and nothing more.
            while task is not None and not task.cancelling():
                await self._ring.wait()
                self._ring.clear()
                self._busy = True
                await self._talk()
                self._busy = False
                self._schedule()
        finally:
            self._busy = True  # nobody is there to hear a ring
            if self._timer is not None:
                self._timer.cancel()

    def ended(self, task: asyncio.Task[None]) -> None:
        """Go on alone after a bug, and let it be heard of."""
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._limiter.go_alone(self._clock.now())
            self._pace.changed()
            context = {"message": "the talk with the store of the limits failed", "exception": bug, "task": task}
            task.get_loop().call_exception_handler(context)

    async def say_bye(self) -> None:
        """Give everything back, if the store can be reached."""
        said = self._say(self._clock.now())
        said.pop("ask", None)
        said["bye"] = True
        with suppress(StoreError, TimeoutError):
            async with self._clock.timeout(PATIENCE):
                await self._store.decide(self._key, said)

    # --- when ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Ring when there is something to say."""
        if self._busy:
            return
        due = self._due_at()
        if self._timer is not None:
            if self._rings_at <= due:
                return  # it rings early, and finds out then
            self._timer.cancel()
        self._rings_at = due
        self._timer = self._clock.call_at(due, self._rung)

    def _rung(self) -> None:
        self._timer = None
        if self._due_at() > self._clock.now():
            self._schedule()
        else:
            self._ring.set()

    def _due_at(self) -> float:
        if self._limiter.alone:
            return self._talked + (PROBE if self._alone_until is None else WHILE_ALONE)
        report, due = self._limiter.report, min(self._limiter.due_at(), self._talked + HEARTBEAT)
        if report.is_urgent:
            return self._talked
        if report.has_news:
            due = min(due, self._talked + TOGETHER)
        return min(due, self._viewed + VIEWS) if self._limiter.changed_limits else due

    # --- one word and its answer --------------------------------------------------------------------------------

    async def _talk(self) -> None:
        now = self._clock.now()
        learned = self._pace.snapshot_of_learning()
        if self._limiter.alone and self._alone_until is None:
            self._return(now)
        said = self._say(now)
        try:
            async with self._clock.timeout(PATIENCE):
                reply = await self._store.decide(self._key, said)
        except (StoreError, TimeoutError) as error:
            self._lost(said, error)
        else:
            self._heard(said, reply, now)
            if "view" in said and reply.get("view") in {None, said["view"]}:
                self._pace.accepted(learned)
        self._talked = self._clock.now()
        self._pace.changed()

    def _return(self, now: float) -> None:
        """Report as one who comes back: nobody knows what was used meanwhile, so nothing is there but what flows."""
        report = self._limiter.report
        report.only_days()
        report.empty_at = max(report.empty_at, now)
        if "requests_per_day" in self._limiter.seen:
            report.lower("requests_per_day", self._limiter.seen["requests_per_day"])

    def _say(self, now: float) -> Said:
        report, limiter = self._limiter.report, self._limiter
        said: Said = {"me": self._me, "born": report.born, "version": self._version, "ttl": self._lease, "busy": 0}
        if limiter.slots is not None:
            said["slots"] = limiter.slots
        share = limiter.give_back(now)
        if share is not None:
            granted = share.granted
            said["share"] = {"number": granted["number"], "takes": granted["takes"], "unspent": share.unspent}
        ask = limiter.ask(now)
        if ask is not None:
            said["ask"] = ask
        if limiter.changed_limits or self._override or self._version == 0:
            self._add_view(said, now)
        report.tell(said, now)
        return said

    def _add_view(self, said: Said, now: float) -> None:
        self._viewed = now
        self._limiter.changed_limits = False
        said["view"] = self._pace.view()
        said["flows"] = [
            (resource, rate, burst, burst if resource == "requests_per_day" else 0.0)
            for resource, rate, burst in self._limiter.flows()
        ]
        if self._override:
            said["override"] = True

    def _heard(self, said: Said, reply: Reply, sent: float) -> None:
        now = self._clock.now()
        limiter = self._limiter
        if self._alone_until is None and limiter.alone:
            self._alone_until = now + HANDOVER
        if reply["born"] != said["born"]:
            self._met(reply, known=bool(said["born"]))
        self._pace.hear(reply, sent, now)
        self._read(said, reply, now)
        limiter.hear(reply, sent, now)
        if limiter.alone and self._alone_until is not None and now >= self._alone_until:
            self._alone_until = None
            limiter.go_together(now)
            log.info("%s: the shared limits are back; %d processes share them", self._name, limiter.peers)

    def _met(self, reply: Reply, *, known: bool) -> None:
        """Note that this state of the store is new to this process."""
        report = self._limiter.report
        report.born = reply["born"]
        if known:
            log.warning("%s: the store of the shared limits was emptied; permits come at their rate again", self._name)
            if "requests_per_day" in self._limiter.seen:
                report.lower("requests_per_day", self._limiter.seen["requests_per_day"])
                report.is_urgent = True

    def _read(self, said: Said, reply: Reply, now: float) -> None:
        """Learn which limits hold for all."""
        self._version = reply["version"]
        view = reply.get("view")
        if view is None or view == said.get("view"):
            self._override = False
        elif not said["born"] and self._pace.is_newer_than(view):
            self._override = True  # this process began later than whoever wrote that
        else:
            self._override = False
            self._pace.adopt(view, now)
        if self._version == 0 or self._override:
            self._limiter.report.is_urgent = True

    def _lost(self, said: Said, error: Exception) -> None:
        now = self._clock.now()
        limiter = self._limiter
        limiter.report.untold(said, now)
        limiter.changed_limits = limiter.changed_limits or "view" in said
        self._alone_until = None
        if not limiter.alone:
            limiter.go_alone(now)
            log.warning(
                "%s: the store of the shared limits does not answer (%s); until it does, this process takes 1/%d of "
                "each limit",
                self._name,
                error if isinstance(error, StoreError) else "no answer in time",
                limiter.peers,
            )
