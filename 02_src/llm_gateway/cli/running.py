"""One run of a job from the command line: signals, progress, the output, and what is said in the end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from llm_gateway.cli.console import FAILED, INTERRUPTED, OK, TERMINATED, USAGE, count
from llm_gateway.cli.progress import Display, display_on
from llm_gateway.cli.rows import RowReader, stored
from llm_gateway.cli.sources import Source
from llm_gateway.cli.summary import print_summary
from llm_gateway.cli.tally import Tally
from llm_gateway.cli.writing import Writer
from llm_gateway.errors import BudgetExceededError, ConfigurationError, JobStoreBusyError
from llm_gateway.gateway import LLMGateway
from llm_gateway.jobs.job import Job
from llm_gateway.jobs.lending import PURSE
from llm_gateway.jobs.records import Ledger, NewRow, StoredResult

LOOK_PERIOD = 1.0  # seconds between two looks whether the job was cancelled from elsewhere
SIGNALS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends before its input does."""

    sentence: str
    code: int
    patience: float | None  # seconds for what is under way; None: as the configuration says


class Run:
    """One pass over a job.

    The first Ctrl-C ends the reading and lets the gateway drain; the second cancels what is under way. Either way all
    that is known is recorded, if there is a state.
    """

    def __init__(
        self,
        gateway: LLMGateway,
        job: Job,
        *,
        rows: Source,
        reader: RowReader,
        writer: Writer,
        tally: Tally,
        console: Console,
        has_budget: bool = False,
    ) -> None:
        """Take what works together; `has_budget`: what the job may cost is counted."""
        self._gateway = gateway
        self._job = job
        self._rows = rows
        self._reader = reader
        self._writer = writer
        self._tally = tally
        self._console = console
        self._has_budget = has_budget
        self._counted = 0  # id of the last result that is in the tally
        self._unwritten = 0  # results that nobody could be given
        self._stop: Stop | None = None
        self._stopped = asyncio.Event()
        self._shutdown: asyncio.Task[None] | None = None

    async def to_the_end(self, before: Ledger, *, after: int, state: str | None) -> int:
        """Write the results above `after`, say what it came to, and return the exit code.

        An error of the reading is raised once all that was under way has ended.
        """
        self._counted = before.last_result
        began = time.monotonic()
        display = display_on(self._console, answers_may_show=self._writer.may_show)
        helpers = [asyncio.create_task(self._show(display)), asyncio.create_task(self._look())]
        try:
            await self._all(before, after)
        finally:
            for helper in helpers:
                helper.cancel()
            display.close()
        ledger = await self._job.ledger()
        print_summary(
            self._console,
            ledger,
            new=ledger.ended - before.ended,
            seconds=time.monotonic() - began,
            output=self._writer.name,
            journal=self._gateway.log_path,
            state=state,
        )
        return self._verdict(ledger, resumable=state is not None)

    def _verdict(self, ledger: Ledger, *, resumable: bool) -> int:
        """Say why the run stopped, if it did, and return the exit code."""
        if self._stop is None:
            return OK if ledger.done == ledger.rows else FAILED
        without = self._job.broken_off + self._unwritten
        total = self._tally.total
        facts = []
        if total is not None and (unsent := total - self._tally.done - without - ledger.leased) > 0:
            facts.append(f"{count(unsent, 'row')} of the input were not sent")
        if ledger.leased:
            leased = count(ledger.leased, "row")
            others = f"{leased} are being asked by other workers"
            facts.append(
                others if self._job.store.shared else f"{leased} wait in batches at the provider, which go on there"
            )
        if without:
            facts.append(f"{count(without, 'row')} under way have no result")
        rest = f" {'; '.join(facts)}." if facts else ""
        again = " The same command goes on from here." if resumable and rest else ""
        self._console.print(f"llm-gateway: {self._stop.sentence}{rest}{again}", style="red")
        return self._stop.code

    # --- rows and results -------------------------------------------------------------------------------------

    async def _work(self, before: Ledger, after: int) -> None:
        try:
            await self._answer(before, after)
        except ConfigurationError as error:
            self._halt(Stop(str(error), USAGE, 0.0))
        except BudgetExceededError as error:
            self._halt(Stop(str(error), FAILED, None))
        if not self._unwritten:
            await self._guarded(self._writer.end())

    async def _answer(self, before: Ledger, after: int) -> None:
        """Have the rows answered and their results written."""
        async for results in self._job.results(self._new_rows(before), after):
            await self._take(results)

    async def _new_rows(self, before: Ledger) -> AsyncIterator[NewRow]:
        """Yield the rows that the job has not taken in."""
        number, after = before.rows, await self._job.last_number()
        if (await self._job.facts()).get("sampled"):
            number, after = 0, 0  # a plan has asked rows from anywhere; those that are there are known
        async for line, text in self._rows.rows(after):
            row = self._reader.read(line, text)
            if row is not None:
                number += 1
                yield stored(row)
        self._tally.total = number
        if not self._job.store.shared:  # there the last rows have to be in first
            await self._job.note({"read": True})

    async def _take(self, results: Sequence[StoredResult]) -> None:
        """Write results, and count those that are new."""
        if self._unwritten or not await self._guarded(self._writer.write(results)):
            self._unwritten += len(results)
            return
        self._tally.count([result for result in results if result.id > self._counted])

    async def _guarded(self, writing: Awaitable[None]) -> bool:
        """Write; False, and the run ends, if that is impossible: a paid answer must have a place."""
        try:
            await writing
        except BrokenPipeError:
            self._halt(Stop(f"Nobody reads {self._writer.name} any more.", FAILED, 0.0))
        except OSError as error:
            self._halt(Stop(f"The output {self._writer.name} cannot be written: {error.strerror}.", USAGE, 0.0))
        else:
            return True
        return False

    # --- beside it --------------------------------------------------------------------------------------------

    async def _show(self, display: Display) -> None:
        while True:
            await asyncio.sleep(display.period)
            display.show(self._tally)

    async def _look(self) -> None:
        """Stop if another process has cancelled the job."""
        while self._stop is None:
            await asyncio.sleep(LOOK_PERIOD)
            try:
                facts = await self._job.store.facts()
            except JobStoreBusyError:
                continue
            if facts.get("cancelled"):
                self._halt(Stop("The job was cancelled.", FAILED, None))
            elif PURSE in facts and not self._has_budget:
                self._halt(Stop("The job was given a budget meanwhile; start this again to keep it.", FAILED, None))

    # --- the end ----------------------------------------------------------------------------------------------

    async def _all(self, before: Ledger, after: int) -> None:
        """Return when all is written and the gateway is shut down; an error is raised after that."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupt, number)
        work = asyncio.create_task(self._work(before, after))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self._job.stop()
            self._shutdown = asyncio.create_task(self._gateway.shutdown(self._stop.patience if self._stop else None))
            await asyncio.wait((work, self._shutdown))
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        if not self._shutdown.cancelled():
            self._shutdown.result()
        work.result()

    def _halt(self, stop: Stop) -> None:
        if self._stop is None:
            self._stop = stop
            self._stopped.set()

    def _interrupt(self, number: signal.Signals) -> None:
        if self._stop is None:
            self._halt(Stop("Interrupted.", SIGNALS[number], None))
            if self._job.under_way:
                under_way = count(self._job.under_way, "row")
                self._console.print(f"Stopping once {under_way} under way have an answer; Ctrl-C again does not wait.")
            return
        self._stop = replace(self._stop, patience=0.0)  # of a shutdown that is yet to begin
        if self._shutdown is not None:
            self._shutdown.cancel()
        self._job.abandon()


class Loading(Run):
    """A pass that takes rows in and leaves them to workers."""

    async def _answer(self, before: Ledger, after: int) -> None:  # noqa: ARG002 - nothing is answered
        await self._job.take_in(self._new_rows(before))

    def _verdict(self, ledger: Ledger, *, resumable: bool) -> int:
        return OK if self._stop is None else super()._verdict(ledger, resumable=resumable)


class Helping(Run):
    """A pass of a worker: another process feeds the job, and the results stay where they are."""

    async def _answer(self, before: Ledger, after: int) -> None:  # noqa: ARG002 - all of the job
        await self._job.work()

    def _verdict(self, ledger: Ledger, *, resumable: bool) -> int:
        """Return OK also where rows have failed: a worker that is started again could not mend that."""
        own = f"{count(self._tally.done, 'row')} by this worker"
        self._console.print(f"{own}, {count(self._tally.errors, 'error')}.")
        return OK if self._stop is None else super()._verdict(ledger, resumable=resumable)
