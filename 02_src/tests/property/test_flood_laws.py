"""Laws of the whole gateway under more work than its limits let through: who waits how long, and that nobody idles."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from random import Random
from typing import Any

import pytest

from fakes.provider import FakeProvider, ask, gateway_over
from fakes.virtual_time import run_virtual
from llm_gateway import LLMGateway, RequestPriority

HIGH, NORMAL, LOW = RequestPriority
SET_ASIDE = 3  # permits that only a HIGH request finds in a bucket of fifty or more
EPSILON = 1e-4  # seconds that rounding may cost


def limited(per_second: float, *, slots: int = 10_000) -> dict[str, Any]:
    limits = {"rpm": round(per_second * 60), "safety": 1.0, "burst_seconds": 1.0}
    return {
        "models": {"gpt-4o-mini": {"max_concurrency": slots, "limits": limits}},
        "batching": {"max_queue_size": 100_000},
    }


@pytest.mark.parametrize("seed", range(8))
def test_a_user_waits_for_users_ahead_for_a_permit_and_for_a_slot_however_much_background_waits(seed: int) -> None:
    rng = Random(seed)
    per_second, slots, takes = rng.choice([1.0, 5.0, 20.0]), rng.randint(1, 6), rng.uniform(0.1, 3.0)
    provider = FakeProvider(latency=lambda _: takes)
    came: dict[str, tuple[float, int]] = {}  # when each user came, and how many waited before

    async def user(gateway: LLMGateway, name: str, at: float) -> None:
        await asyncio.sleep(at)
        ahead = len(came) - sum(name.startswith("user") for name in provider.sent)
        came[name] = at, ahead
        await gateway.request(ask(name, HIGH))

    async def main() -> None:
        gateway = gateway_over(provider, **limited(per_second, slots=slots))
        background = asyncio.create_task(gateway.batch([ask(f"low {n}", LOW) for n in range(1500)]))
        arrivals = [rng.uniform(1.0, 50.0) for _ in range(10)] + [25.0] * 5
        await asyncio.gather(*(user(gateway, f"user {n}", at) for n, at in enumerate(arrivals)))
        assert gateway.get_stats()["queued"]["low"] > 0  # it never ended
        background.cancel()
        await gateway.shutdown(timeout=0.0)

    run_virtual(main(), seed=seed)
    began = {entry.request.request_id: entry.began for entry in provider.ledger}
    assert len(came) == 15
    for name, (at, ahead) in came.items():
        own = (ahead + 1) / per_second + takes * math.ceil((ahead + 1) / slots)
        assert began[name] - at <= own + EPSILON


def test_under_endless_work_of_every_class_each_has_its_share_in_every_minute() -> None:
    provider = FakeProvider(latency=lambda _: 0.1)

    async def main() -> None:
        gateway = gateway_over(provider, **limited(10.0))
        many = [ask(f"{each.name} {n}", each) for n in range(1500) for each in RequestPriority]
        waiting = asyncio.create_task(gateway.batch(many))
        await asyncio.sleep(180.0)
        waiting.cancel()
        await gateway.shutdown(timeout=0.0)

    run_virtual(main())
    began = [(entry.began, entry.request.priority) for entry in provider.ledger]
    for start in range(2, 120):
        served = Counter(priority for at, priority in began if start <= at < start + 60)
        assert served.total() == pytest.approx(600, abs=2)
        assert served[NORMAL] == pytest.approx(120, rel=0.05)
        assert served[LOW] == pytest.approx(30, rel=0.05)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("priority", RequestPriority)
def test_no_call_begins_before_its_permit_has_come_and_none_later(priority: RequestPriority, seed: int) -> None:
    rng = Random(seed)
    per_second = rng.choice([0.5, 3.0, 20.0, 60.0, 200.0])
    burst = max(1.0, per_second)
    provider = FakeProvider(latency=lambda _: rng.choice([0.0, 0.5, 5.0]))

    async def main() -> None:
        async with gateway_over(provider, **limited(per_second)) as gateway:
            await gateway.batch([ask(str(n), priority) for n in range(int(burst) + rng.randint(10, 200))])

    run_virtual(main(), seed=seed)
    kept = SET_ASIDE if priority is not HIGH and burst >= 50 else 0
    for number, entry in enumerate(provider.ledger, start=1):
        assert entry.began >= (number - burst) / per_second - EPSILON
        assert entry.began <= max(0.0, (number + kept - burst) / per_second) + EPSILON


def test_background_work_that_has_to_leave_permits_holds_up_nobody_who_may_take_them() -> None:
    provider = FakeProvider(latency=lambda _: 1.0)
    limits = {"rpd": 40, "safety": 1.0}  # of which LOW leaves 16

    async def main() -> None:
        gateway = gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 1, "limits": limits}})
        # What NORMAL is served credits LOW with more than its next call, so that it is LOW's turn again and again.
        texts = {NORMAL: "a long prompt " * 50, LOW: "short"}
        many = [ask(f"{each.name} {n}", each, text=texts[each]) for n in range(40) for each in texts]
        waiting = asyncio.create_task(gateway.batch(many))
        await asyncio.sleep(60.0)
        waiting.cancel()
        await gateway.shutdown(timeout=0.0)

    run_virtual(main())
    assert [entry.began for entry in provider.ledger] == [float(n) for n in range(40)]  # no slot was idle
    assert sum(entry.request.priority is LOW for entry in provider.ledger[:24]) > 0
    assert all(entry.request.priority is NORMAL for entry in provider.ledger[25:])
