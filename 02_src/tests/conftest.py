"""What every test gets: a clean environment, a folder of its own, and providers on loopback where it asks for one."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fakes import deployments
from fakes.emulator import Emulator
from fakes.postgres_server import PostgresServer
from fakes.redis_server import RedisServer
from fakes.warm import warm_programs

# No test is judged by the wall clock, and a failure comes back when the test is run again.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# The libraries read these behind our back: a developer's key or address must not decide what a test sees.
LEAKING = ("OPENAI_", "ANTHROPIC_", "OLLAMA_", "LANGSMITH_", "LANGCHAIN_")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the collector of garbage what was imported: it is most of what lives, and no test leaves it behind."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Trace no line of a test marked `untraced`; pytest-cov's own `no_cover` does nothing in a worker of xdist."""
    tracer = sys.gettrace()
    if item.get_closest_marker("untraced"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(LEAKING):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, so that a default journal never lands in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["lean", "sdk"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once for each transport: `fakes.deployments` then makes all its deployments travel that way."""
    name: str = request.param
    monkeypatch.setattr(deployments, "TRANSPORT", name)
    return name


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator.serve() as serving:
        yield serving


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that leave it as they found it; each has keys of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests, which leave it running; each has jobs of its own."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of `python`, `llm-gateway` and `pytest` that start warm, from one server for the whole run."""
    mine = tmp_path_factory.getbasetemp()
    with warm_programs(mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) as programs:
        yield programs
