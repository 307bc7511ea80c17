"""`llm-gateway run`: a file of requests in, a file of results out."""

from __future__ import annotations

import asyncio
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from llm_gateway.cli.background import in_background
from llm_gateway.cli.console import FAILED, INTERRUPTED, OK, TERMINATED, USAGE, count, stderr
from llm_gateway.cli.lines import Input
from llm_gateway.cli.output import Output
from llm_gateway.cli.progress import Display, display_on
from llm_gateway.cli.results import answered, failed
from llm_gateway.cli.rows import Malformed, Row, RowReader
from llm_gateway.cli.settings import load
from llm_gateway.cli.summary import print_summary
from llm_gateway.cli.tally import Tally
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError, GatewayClosedError, GatewayError
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import ModelProvider, RequestPriority

ROWS_A_SLOT = 4  # rows under way for each call that a model may have at once: enough that no slot waits for a row
FEWEST_ROWS = 16
MOST_COMPLAINTS = 10  # malformed lines that are told one by one
SIGNALS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def run_file(
    source: str,
    output: str,
    *,
    config: Path | None,
    model: str | None,
    priority: RequestPriority | None,
    force: bool,
) -> int:
    """Answer the rows of `source` into `output` and return the exit code.

    Raises GatewayError, before anything is sent, for a configuration, a file or an option that is at fault.
    """
    loaded = load(config)
    if model is not None:
        loaded.check_model(model)
    rows = Input(source)
    try:
        results = Output(output, force=force, source=rows.status)
        try:
            reader = RowReader(loaded, model=model, priority=priority)
            return asyncio.run(_run(LLMGateway(loaded.config), loaded.config, rows, reader, results))
        finally:
            results.close()
    finally:
        rows.close()


async def _run(gateway: LLMGateway, config: GatewayConfig, rows: Input, reader: RowReader, results: Output) -> int:
    console = stderr()
    tally = Tally()
    display = display_on(console, answers_may_show=results.may_show)
    began = time.monotonic()
    run = Run(
        gateway, windows=Windows(config), source=rows, reader=reader, results=results, tally=tally, console=console
    )
    helpers = [asyncio.create_task(_show(display, tally)), asyncio.create_task(_count(rows, tally))]
    try:
        await run.to_the_end()
    finally:
        for helper in helpers:
            helper.cancel()
        display.close()
    print_summary(
        console,
        tally,
        stats=gateway.get_stats(),
        seconds=time.monotonic() - began,
        output=results.name,
        journal=gateway.log_path,
    )
    return run.verdict()


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends before its input does."""

    sentence: str
    code: int
    patience: float | None  # seconds for what is under way; None: as the configuration says


class Windows:
    """How many rows of each model may be under way, so that memory stays bounded and no call waits for a row."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._slots: dict[str, asyncio.Semaphore] = {}

    def of(self, model: str) -> asyncio.Semaphore:
        """Return the window of `model`, which must be configured."""
        if model not in self._slots:
            rows = max(FEWEST_ROWS, ROWS_A_SLOT * self._config.model(model).max_concurrency)
            # With more than this the gateway's queue could be full.
            self._slots[model] = asyncio.Semaphore(min(rows, self._config.batching.max_queue_size))
        return self._slots[model]


class Run:
    """One pass over an input: reads rows while there is room for them, and writes each result as it comes.

    The first Ctrl-C ends the reading and lets the gateway drain; the second cancels what is under way.
    """

    def __init__(
        self,
        gateway: LLMGateway,
        *,
        windows: Windows,
        source: Input,
        reader: RowReader,
        results: Output,
        tally: Tally,
        console: Console,
    ) -> None:
        self._gateway = gateway
        self._windows = windows
        self._source = source
        self._reader = reader
        self._results = results
        self._tally = tally
        self._console = console
        self._under_way: set[asyncio.Task[None]] = set()
        self._stop: Stop | None = None
        self._stopped = asyncio.Event()
        self._shutdown: asyncio.Task[None] | None = None

    async def to_the_end(self) -> None:
        """Return when all is written and the gateway is shut down; an error of the reading is raised after that."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupt, number)
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            stopped.cancel()
            await self._end()
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        with suppress(asyncio.CancelledError):
            await work

    def verdict(self) -> int:
        """Say why the run stopped, if it did, and return the exit code."""
        tally = self._tally
        if self._stop is None:
            return FAILED if tally.errors else OK
        facts = []
        if tally.total is not None and tally.total > tally.read:
            facts.append(f"{count(tally.total - tally.read, 'row')} of the input were not sent")
        if tally.without_result:
            facts.append(f"{count(tally.without_result, 'row')} under way have no result")
        rest = f" {'; '.join(facts)}." if facts else ""
        self._console.print(f"llm-gateway: {self._stop.sentence}{rest}", style="red")
        return self._stop.code

    # --- rows -------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        async for number, text in self._source.lines():
            row = self._reader.read(number, text)
            if row is None:
                continue
            if isinstance(row, Malformed):
                self._tally.read += 1
                self._complain(row)
                await self._record(failed(row, row.error), self._tally.count_malformed)
            else:
                await self._start(row)
        self._tally.total = self._tally.read
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _start(self, row: Row) -> None:
        window = self._windows.of(_name(row.request.model))
        await window.acquire()
        self._tally.read += 1
        task = asyncio.create_task(self._answer(row, window))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _answer(self, row: Row, window: asyncio.Semaphore) -> None:
        tally = self._tally
        try:
            response = await self._gateway.request(row.request)
        except GatewayClosedError:
            tally.without_result += 1
        except ConfigurationError as error:
            if tally.answered:
                await self._fail(row, error)
            else:  # nothing works; where other rows were answered, it is this row that fails
                tally.without_result += 1
                self._halt(Stop(str(error), USAGE, 0.0))
        except GatewayError as error:
            await self._fail(row, error)
        except Exception as error:  # noqa: BLE001 - a bug that one row meets must not cost the others their answers
            self._console.print(f"line {row.line} met a bug:\n{''.join(traceback.format_exception(error))}")
            await self._fail(row, error)
        else:
            await self._record(answered(row, response), lambda: tally.count_answer(response))
        finally:
            window.release()

    async def _fail(self, row: Row, error: Exception) -> None:
        await self._record(failed(row, error), lambda: self._tally.count_failure(error))

    async def _record(self, line: bytes, note: Callable[[], None]) -> None:
        """Write one result, then count it. If it cannot be written the run ends: a paid answer must have a place."""
        try:
            await self._results.write(line)
        except BrokenPipeError:
            self._tally.without_result += 1
            self._halt(Stop(f"Nobody reads {self._results.name} any more.", FAILED, 0.0))
        except OSError as error:
            self._tally.without_result += 1
            self._halt(Stop(f"The output {self._results.name} cannot be written: {error.strerror}.", USAGE, 0.0))
        else:
            note()

    def _complain(self, row: Malformed) -> None:
        told = self._tally.malformed
        if told < MOST_COMPLAINTS:
            self._console.print(f"line {row.line}: {row.error}", style="yellow")
        elif told == MOST_COMPLAINTS:
            self._console.print("More lines are malformed; the output names them all.", style="yellow")

    # --- the end ----------------------------------------------------------------------------------------------

    def _halt(self, stop: Stop) -> None:
        if self._stop is None:
            self._stop = stop
            self._stopped.set()

    def _interrupt(self, number: signal.Signals) -> None:
        if self._stop is None:
            self._halt(Stop("Interrupted.", SIGNALS[number], None))
            if self._under_way:
                under_way = count(len(self._under_way), "row")
                self._console.print(f"Stopping once {under_way} under way have an answer; Ctrl-C again does not wait.")
        elif self._shutdown is not None:
            self._shutdown.cancel()

    async def _end(self) -> None:
        """Shut the gateway down, with the patience that the reason for the end allows; then all rows have ended."""
        patience = self._stop.patience if self._stop else None
        self._shutdown = asyncio.create_task(self._gateway.shutdown(patience))
        await asyncio.wait((self._shutdown,))
        while self._under_way:
            await asyncio.wait(self._under_way)
        if not self._shutdown.cancelled():
            self._shutdown.result()


def _name(model: ModelProvider | str) -> str:
    return model.value if isinstance(model, ModelProvider) else model


async def _show(display: Display, tally: Tally) -> None:
    while True:
        await asyncio.sleep(display.period)
        display.show(tally)


async def _count(rows: Input, tally: Tally) -> None:
    """Find out how many rows there are, while the first of them are under way."""
    total = await in_background(rows.count)
    if tally.total is None:
        tally.total = total
