"""A story for each test: an empty folder, and the emulator that answers as the pages tell it."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs.pages import Story, provider

from fakes.emulator import Emulator


@pytest.fixture
def story(emulator: Emulator, warm: Path, tmp_path: Path) -> Story:
    emulator.answer = provider
    return Story(folder=tmp_path, programs=warm, emulator=emulator)
