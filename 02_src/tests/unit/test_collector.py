"""Python's collector of garbage looks more rarely where somebody asked for that, and never more often."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from llm_gateway import collector
from llm_gateway.cli import event_loop


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "meanwhile"),
    [((700, 10, 10), (10_000, 20, 50)), ((50_000, 5, 100), (50_000, 20, 100)), ((0, 10, 10), (0, 10, 10))],
    ids=["default", "higher already", "turned off"],
)
def test_a_command_raises_thresholds_for_as_long_as_it_runs(
    before: tuple[int, int, int], meanwhile: tuple[int, int, int]
) -> None:
    async def thresholds() -> tuple[int, int, int]:
        return gc.get_threshold()

    gc.set_threshold(*before)
    assert event_loop.run(thresholds()) == meanwhile
    assert gc.get_threshold() == before


def test_who_freezes_leaves_out_what_is_there_and_raises_thresholds_for_good() -> None:
    gc.set_threshold(700, 10, 10)
    collector.freeze()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == collector.RARELY
