"""A story for each test: an empty folder, and the emulator that answers as the pages tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.pages import Story, provider

from fakes.emulator import Emulator
from fakes.redis_server import RedisServer


@pytest.fixture
def story(emulator: Emulator, tmp_path: Path) -> Story:
    emulator.answer = provider
    return Story(folder=tmp_path, emulator=emulator)


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()
