"""aimock, a provider emulator that this project did not write, as a process beside the tests.

It speaks the OpenAI, Anthropic and Ollama APIs from one set of fixtures:
`{"match": {"userMessage": "part of the last user message"}, "response": {"content": "…"}}`, where a response may also
hold `toolCalls`, `usage` and `finishReason`, or be `{"error": {…}, "status": 429}`, and a fixture may hold `chaos`.
The first fixture that matches answers; a request that none matches is an error.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson

HOME = Path(__file__).resolve().parent.parent / "aimock"
SCRIPT = Path("node_modules/@copilotkit/aimock/dist/cli.js")
START_TIMEOUT = 60.0  # seconds; a guard against hanging, a start takes less than one
LISTENING = re.compile(r"listening on (http://\S+)")
JSON_HEADERS = {"content-type": "application/json"}


class AimockError(RuntimeError):
    """aimock could not be started; the message says what to do."""


class Aimock:
    """A running aimock."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def serve(cls, *, fixtures: Sequence[Mapping[str, Any]], home: Path = HOME) -> AsyncIterator[Self]:
        """Serve `fixtures` on a free port of loopback until the block is left. Raises AimockError."""
        node, script = _installed(home)
        with tempfile.TemporaryDirectory(prefix="aimock-") as folder:
            path = _written(fixtures, Path(folder))
            process = await asyncio.create_subprocess_exec(
                *(node, script, "--port", "0", "--fixtures", path, "--strict", "--validate-on-load"),
                env={"PATH": os.environ["PATH"]},
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
            )
            async with _reaped(process) as output, aiohttp.ClientSession() as session:
                yield cls(await output.url(), session)

    async def journal(self) -> list[dict[str, Any]]:
        """Return the requests so far, each with method, path, headers (keys redacted), body and response."""
        async with self._session.get(f"{self.url}/__aimock/journal") as answer:
            answer.raise_for_status()
            entries: list[dict[str, Any]] = await answer.json()
            return entries

    async def chaos(
        self,
        *,
        drop: float = 0.0,
        malformed: float = 0.0,
        disconnect: float = 0.0,
        rate_limit: float = 0.0,
        latency: float = 0.0,
    ) -> None:
        """Replace the chaos in force: probabilities of a 500, of broken JSON, of a lost connection and of a 429.

        `latency` is in seconds. Without arguments the chaos ends.
        """
        rates = {
            "dropRate": drop,
            "malformedRate": malformed,
            "disconnectRate": disconnect,
            "rateLimitRate": rate_limit,
        }
        await self._post("chaos", rates | {"latencyMs": round(latency * 1000)})

    async def fail_next(self, status: int, message: str = "Scripted failure.", kind: str = "server_error") -> None:
        """Answer the next request with an error."""
        await self._post("error", {"status": status, "body": {"message": message, "type": kind}})

    async def _post(self, what: str, body: Mapping[str, Any]) -> None:
        url = f"{self.url}/__aimock/{what}"
        async with self._session.post(url, data=orjson.dumps(body), headers=JSON_HEADERS) as answer:
            answer.raise_for_status()


class _Output:
    """What the process prints, read to the end so that it never blocks on a full pipe."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=20)
        self._ready = asyncio.get_running_loop().create_future()

    async def read(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            if not self._ready.done() and (match := LISTENING.search(line)):
                self._ready.set_result(match[1])
        if not self._ready.done():
            self._ready.set_result(None)

    async def url(self) -> str:
        """Wait until the server listens and return its address. Raises AimockError if it ended instead."""
        async with asyncio.timeout(START_TIMEOUT):
            url: str | None = await self._ready
        if url is None:
            raise AimockError(f"aimock ended before it listened; it said: {' / '.join(self._lines)}")
        return url


@asynccontextmanager
async def _reaped(process: Process) -> AsyncIterator[_Output]:
    """Read what `process` prints while the block runs, and leave no process behind."""
    assert process.stdout is not None  # it was started with a pipe
    output = _Output()
    reader = asyncio.create_task(output.read(process.stdout))
    try:
        yield output
    finally:
        if process.returncode is None:
            process.kill()  # it keeps nothing worth a farewell, and a polite stop waits for idle connections
        await process.wait()
        await reader


def _installed(home: Path) -> tuple[str, Path]:
    beside_python = str(Path(sys.executable).parent)  # where the set-up puts one if the system has none
    node = shutil.which("node", path=os.pathsep.join((beside_python, os.environ.get("PATH", os.defpath))))
    if node is None:
        raise AimockError("These tests need Node.js 20.15 or later: install it so that `node` is on the PATH.")
    script = home / SCRIPT
    if not script.is_file():
        raise AimockError(f"The npm package @copilotkit/aimock is missing: run `npm ci` in {home}.")
    return node, script


def _written(fixtures: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    path = folder / "fixtures.json"
    path.write_bytes(orjson.dumps({"fixtures": fixtures}))
    return path
