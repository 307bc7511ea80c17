"""How a run from the command line is interrupted, in its own process."""

from __future__ import annotations

import asyncio
import io
import signal
from typing import Any, cast

import pytest
from rich.console import Console

from llm_gateway.cli.running import Run
from llm_gateway.jobs.records import Ledger


class Working:
    """Job and gateway in one: their rows have no answer before the job is abandoned."""

    under_way = 3

    def __init__(self) -> None:
        self.abandoned = asyncio.Event()
        self.patience: list[float | None] = []

    def stop(self) -> None:
        return None

    def abandon(self) -> None:
        self.abandoned.set()

    async def shutdown(self, timeout: float | None) -> None:  # noqa: ASYNC109 - the gateway's own
        self.patience.append(timeout)
        await asyncio.sleep(30.0 if timeout is None else timeout)


class Hanging(Run):
    async def _work(self, before: Ledger, after: int) -> None:  # noqa: ARG002 - nothing is read
        await cast("Working", self._job).abandoned.wait()


@pytest.mark.parametrize("turns", range(6))
async def test_a_second_ctrl_c_counts_however_soon_it_comes(turns: int) -> None:
    working, said, nothing = Working(), io.StringIO(), cast("Any", None)
    whole = cast("Any", working)
    console = Console(file=said, width=200)
    run = Hanging(whole, whole, rows=nothing, reader=nothing, writer=nothing, tally=nothing, console=console)
    ending = asyncio.create_task(run._all(nothing, 0))
    await asyncio.sleep(0)
    run._interrupt(signal.SIGINT)
    for _ in range(turns):
        await asyncio.sleep(0)
    run._interrupt(signal.SIGINT)
    await ending
    assert asyncio.get_running_loop().time() == 0.0
    assert working.abandoned.is_set()
    assert working.patience in ([], [None], [0.0])  # cancelled before its first step, after it, or never patient
    assert "Ctrl-C again does not wait" in said.getvalue()
