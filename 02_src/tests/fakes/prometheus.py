"""A real Prometheus as a process beside the tests, and its promtool."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

PATIENCE = 60.0  # seconds; a guard against hanging, a start takes less than one
PAUSE = 0.05  # seconds between two looks


def installed(program: str) -> str:
    """Return the path of a program of Debian's package prometheus; without it a test is skipped, or fails in CI."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not on the PATH; on Debian and Ubuntu: sudo apt-get install prometheus"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


async def promtool(*arguments: str | Path, given: str = "") -> str:
    """Run promtool and return what it says; fail if it is not content. `given` is its standard input."""
    process = await asyncio.create_subprocess_exec(
        installed("promtool"), *arguments, stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )
    told, _ = await process.communicate(given.encode())
    assert process.returncode == 0, told.decode()
    return told.decode()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def scraping(cls, port: int, *, rules: Path, folder: Path) -> AsyncIterator[Self]:
        """Scrape 127.0.0.1:port ten times a second, with alert rules, until the block is left."""
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 100ms, evaluation_interval: 100ms}\n"
            f"rule_files: ['{rules}']\n"
            "scrape_configs:\n"
            "  - job_name: llm-gateway\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
        )
        address = f"127.0.0.1:{_free_port()}"
        log = folder / "prometheus.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                installed("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                stdout=output,
                stderr=STDOUT,
            )
        try:
            async with aiohttp.ClientSession() as session:
                serving = cls(f"http://{address}", session)
                await serving._ready(process, log)
                yield serving
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query: dicts with `metric` and `value`."""
        answer = await self._get("/api/v1/query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def found(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of a query as soon as it is not empty; a scrape that came late empties all for a while."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = await self.query(expression)
                    if found:
                        return found
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            pytest.fail(f"{expression} stays empty")

    async def value(self, expression: str) -> float:
        """Return the one value of a query, as soon as there is one."""
        found = await self.found(expression)
        assert len(found) == 1, found
        return float(found[0]["value"][1])

    async def becomes(self, expression: str, expected: float) -> None:
        """Return once a query has the `expected` value; fail with the last one."""
        told = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    told = await self.value(expression)
                    if told == expected:
                        return
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            pytest.fail(f"{expression} is {told}, not {expected}")

    async def rules(self) -> list[dict[str, Any]]:
        """Return the alert rules with their health."""
        answer = await self._get("/api/v1/rules")
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    async def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        async with self._session.get(f"{self._url}{path}", params=parameters) as answer:
            told: dict[str, Any] = await answer.json()
            return told

    async def _ready(self, process: asyncio.subprocess.Process, log: Path) -> None:
        async with asyncio.timeout(PATIENCE):
            while process.returncode is None:
                try:
                    async with self._session.get(f"{self._url}/-/ready") as answer:
                        if answer.ok:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(PAUSE)
        pytest.fail(f"Prometheus ended before it was ready: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
