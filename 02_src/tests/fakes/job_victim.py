"""`python -m fakes.job_victim [batches]`: forks processes that work on a job through the command line, and kills them.

A job in a database gets two at once, and only the first is killed.

Reads a command on each line of standard input and answers each with a line: how the process ended. All that is slow to
import is imported once, here; with `batches`, what the batch lane needs too. The provider is a fake in the process
itself, but its ledger is a file that is written before each answer, as a provider's own books would be. In the batch
lane it is an emulator elsewhere.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import itertools
import json
import os
import select
import signal
import sqlite3
import sys
import traceback
from pathlib import Path
from typing import Any
from zlib import crc32

import psycopg

import llm_gateway.clients.runnable  # noqa: F401 - imported once, not in every process
from fakes import batch_victim
from llm_gateway import LLMMessage, LLMRequest, MockLLMGateway
from llm_gateway.cli import run as run_module
from llm_gateway.cli import running
from llm_gateway.cli import worker as worker_module
from llm_gateway.cli.run import Options, run_file
from llm_gateway.cli.worker import work_on
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.config import load_config
from llm_gateway.errors import ProviderUnavailableError, RequestRejectedError
from llm_gateway.jobs import patience, postgres, runner
from llm_gateway.models import TokenUsage

CALLS = "calls.log"
POINTS = ("before_commit", "after_commit", "called", "answered", "half_written", "written", "synced", "locked")
CONFIG = {
    "logs": {"dir": False},
    "models": {"gpt-4o-mini": {"provider": "openai", "model": "gpt-4o-mini", "max_concurrency": 4}},
    "retry": {"base_delay": 0.0, "quota": 1_000_000},
}


class Fuse:
    """Kills the process at the n-th passing of one point."""

    def __init__(self, point: str | None, nth: int) -> None:
        self._point = point
        self._left = nth

    def burns(self, point: str) -> bool:
        """Whether this is the passing to die at."""
        if point != self._point:
            return False
        self._left -= 1
        return self._left == 0

    def passed(self, point: str) -> None:
        """Die here if it is the time."""
        if self.burns(point):
            os.kill(os.getpid(), signal.SIGKILL)


class Provider:
    """ClientFactory and ChatClient in one, with a ledger on the disk.

    Of the rows, a fifth fail at the first call in each process and a tenth are refused; `fate` tells which.
    """

    def __init__(self, fuse: Fuse, *, gated: bool) -> None:
        self._fuse = fuse
        self._gated = gated  # answers come once there is a file `go`
        self._ledger = os.open(CALLS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = itertools.count(1)
        self._seen: set[str] = set()

    def connect(self, _deployment: Deployment, /) -> Provider:
        return self

    def check(self, _request: LLMRequest, /) -> None:
        return None

    async def aclose(self) -> None:
        return None

    def abandon(self) -> None:
        return None

    async def generate(self, request: LLMRequest, /) -> Completion:
        name, number = request.request_id, next(self._calls)
        os.write(self._ledger, f"{name}\n".encode())
        self._fuse.passed("called")
        await asyncio.sleep(0)
        while self._gated and not Path("go").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.005)
        if fate(name) == "refused":
            raise RequestRejectedError("no", provider="fake", model="m", request_id=name, status=400)
        if fate(name) == "flaky" and name not in self._seen:
            self._seen.add(name)
            raise ProviderUnavailableError("down", provider="fake", model="m", request_id=name, status=503)
        self._fuse.passed("answered")
        usage = TokenUsage(input_tokens=3, output_tokens=2)
        return Completion(content=f"{name} by {os.getpid()}-{number}", finish_reason="stop", usage=usage)


def fate(name: str) -> str:
    """Return what becomes of the calls of a row."""
    place = crc32(name.encode()) % 10
    return "refused" if place == 0 else "flaky" if place in {1, 2} else "fine"


def light_the_fuse_of_postgresql(fuse: Fuse) -> None:
    """Put the points of a commit into its driver."""
    execute = psycopg.Connection.execute

    def executed(connection: Any, query: Any, *given: Any, **named: Any) -> Any:
        if query == "COMMIT":
            fuse.passed("before_commit")
        cursor = execute(connection, query, *given, **named)
        if query == "COMMIT":
            fuse.passed("after_commit")
        return cursor

    psycopg.Connection.execute = executed  # type: ignore[assignment, method-assign]  # the same, and deadly


def light_the_fuse(fuse: Fuse) -> None:
    """Put the points into the libraries below the code that is tested."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                fuse.passed("before_commit")
            cursor = super().execute(sql, *values)
            if sql == "COMMIT":
                fuse.passed("after_commit")
            return cursor

    connect, pwrite, fsync, flock = sqlite3.connect, os.pwrite, os.fsync, fcntl.flock

    def half(file: int, data: Any, place: int) -> int:
        if fuse.burns("half_written"):
            pwrite(file, data[: len(data) // 2], place)
            os.kill(os.getpid(), signal.SIGKILL)
        done = pwrite(file, data, place)
        fuse.passed("written")
        return done

    def synced(fd: Any) -> None:
        fsync(fd)
        fuse.passed("synced")

    def locked(file: Any, how: int) -> None:
        flock(file, how)
        fuse.passed("locked")

    sqlite3.connect = lambda *given, **named: connect(*given, factory=Connection, **named)  # type: ignore[assignment]  # the same but one option
    os.pwrite, os.fsync = half, synced
    fcntl.flock = locked


def victim(command: dict[str, Any]) -> int:
    """Work on the job in a folder until it ends, or the fuse has burnt down."""
    os.chdir(command["folder"])
    told = os.open("told.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(told, 1)
    os.dup2(told, 2)
    fuse = Fuse(command["point"], command["nth"])
    light_the_fuse(fuse)
    if command.get("role") == "batch":
        running.LOOK_PERIOD = 0.01
        return batch_victim.run_in_batches(fuse.passed, late=command["late"])
    light_the_fuse_of_postgresql(fuse)

    class Gateway(MockLLMGateway):
        def __init__(self, _config: object, **options: Any) -> None:
            super().__init__(load_config(CONFIG), **options)

        def _connect(self) -> Any:
            return Provider(fuse, gated=command.get("gated", False))

    for module in (run_module, worker_module):  # where the commands take their gateway from
        vars(module)["LLMGateway"] = Gateway
    running.LOOK_PERIOD = runner.LOOK_PERIOD = patience.STORE_PAUSE = 0.01
    url = command.get("url")
    if url is None:
        return run_file("in.jsonl", "out.jsonl", Options())
    postgres.LEASE_SECONDS = command["lease_seconds"]
    if command["role"] == "worker":
        return work_on(url, config=None, lease_seconds=None)
    return run_file("in.jsonl", None, Options(job=url, load_only=command["role"] == "load"))


def fork(command: dict[str, Any]) -> dict[str, int]:
    """Run one victim, and a helper beside it if that is wished, and return how they ended."""
    helper = start(command | {"role": "worker", "point": None}) if command.get("helped") else None
    ended = end_of(start(command), command)
    if helper is not None:
        _, status = os.waitpid(helper, 0)
        ended["helper"] = os.waitstatus_to_exitcode(status)
    return ended


def start(command: dict[str, Any]) -> int:
    """Begin one victim and return its id."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = victim(command)
        except BaseException:  # noqa: BLE001 - whatever it is, the test must hear of it
            Path("bug.log").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            os._exit(code)
    return process


def end_of(process: int, command: dict[str, Any]) -> dict[str, int]:
    """Return how a victim ended, which is killed after a while if it is to die at random."""
    if command["point"] == "random":
        watch = os.pidfd_open(process)
        if not select.select([watch], [], [], command["delay"])[0]:  # it still works: now
            os.kill(process, signal.SIGKILL)
        os.close(watch)
    _, status = os.waitpid(process, 0)
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"code": os.waitstatus_to_exitcode(status)}


async def warm_up() -> None:
    """Import what a first request imports."""
    async with MockLLMGateway(CONFIG) as gateway:
        await gateway.request(LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content="hi")]))


def main() -> None:
    """Answer each command with how its victim ended."""
    asyncio.run(warm_up())
    if "batches" in sys.argv:
        asyncio.run(batch_victim.warm_up())
    gc.freeze()  # so that victims do not copy what they only look at
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
