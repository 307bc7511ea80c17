"""The loops that the gateway works in: asyncio's own, one whose clock jumps, and uvloop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest
import uvloop

from fakes.provider import FakeProvider, gateway_over
from llm_gateway import LLMMessage, LLMRequest
from llm_gateway.cli import event_loop
from llm_gateway.clock import LoopClock
from llm_gateway.simulation.virtual_time import VirtualTimeLoop

ASIDE = 0.0004  # seconds; less than half of what uvloop's timers can tell apart


def on(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> object:
    async def main() -> object:
        return work()

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def counts_finely() -> bool:
    """Whether time passes between the milliseconds, too, and within one turn of the loop."""
    clock = LoopClock()
    first = clock.now()
    until = time.monotonic() + ASIDE
    while time.monotonic() < until:
        pass
    return clock.now() - first >= ASIDE and any(clock.now() * 1000 % 1 for _ in range(10))


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_time_on_a_real_loop_is_no_whole_number_of_milliseconds(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    assert on(make(), counts_finely)


def test_a_loop_whose_clock_jumps_keeps_its_own_time() -> None:
    assert not on(VirtualTimeLoop(), counts_finely)


def test_a_clock_that_somebody_put_into_a_loop_is_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "time", lambda: 7.0)
    assert on(loop, lambda: LoopClock().now()) == 7.0


def test_no_timer_rings_before_its_instant_on_uvloop() -> None:
    async def main() -> list[float]:
        clock = LoopClock()
        early: list[float] = []
        rung = asyncio.Event()

        def ring(when: float) -> None:
            early.append(when - clock.now())
            if len(early) == len(instants):
                rung.set()

        instants = [clock.now() + ASIDE * number for number in range(10)]
        for each in instants:
            clock.call_at(each, partial(ring, each))
        await rung.wait()
        return early

    assert max(uvloop.run(main())) <= 0


def test_a_gateway_may_go_from_one_kind_of_loop_to_another() -> None:
    gateway = gateway_over(FakeProvider())

    async def ask() -> str:
        response = await gateway.request(
            LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content="Hello.")])
        )
        return response.content

    assert asyncio.run(ask()) == uvloop.run(ask())
    uvloop.run(gateway.shutdown())


def test_a_command_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def kind() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert event_loop.run(kind()) == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop.run(kind()).startswith("asyncio")
