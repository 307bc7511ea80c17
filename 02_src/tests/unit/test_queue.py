"""Order of the queue, its bound, and what leaves it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from fakes.provider import ask
from llm_gateway import QueueFullError, RequestPriority
from llm_gateway.queue import RequestQueue, Ticket

HIGH, NORMAL, LOW = RequestPriority


def ticket(name: str, priority: RequestPriority = NORMAL, *, agent: str | None = None, cost: float = 1.0) -> Ticket:
    request = ask(name, priority).model_copy(update={"agent": agent})
    reply = asyncio.get_running_loop().create_future()
    return Ticket(request=request, reply=reply, submitted=0.0, cost=cost, priority=priority, agent=agent)


def pop(queue: RequestQueue) -> Ticket:
    best = queue.best()
    assert best is not None
    queue.take(best)
    return best


def names(queue: RequestQueue) -> list[str]:
    return [pop(queue).request.request_id for _ in range(queue.ready())]


async def test_classes_go_in_order_and_each_by_submission() -> None:
    queue = RequestQueue("m", max_size=10)
    for name, priority in [("l1", LOW), ("n1", NORMAL), ("h1", HIGH), ("l2", LOW), ("h2", HIGH)]:
        queue.put_nowait(ticket(name, priority))
    assert queue.ready((HIGH,)) == 2
    assert names(queue) == ["h1", "h2", "n1", "l1", "l2"]
    assert queue.best() is None


async def test_a_retry_keeps_its_place_and_comes_back_no_earlier_than_allowed() -> None:
    queue = RequestQueue("m", max_size=10)
    first, second = ticket("first"), ticket("second")
    queue.put_nowait(first)
    queue.put_nowait(second)
    assert pop(queue) is first
    queue.put_back(first, not_before=5.0)
    assert (len(queue), queue.ready(), first.state) == (2, 1, "pausing before attempt 1")
    assert queue.release_due(4.9) == 5.0
    assert queue.ready() == 1
    assert queue.release_due(5.0) is None
    assert names(queue) == ["first", "second"]


async def test_each_class_has_its_own_bound_and_a_full_one_changes_nothing() -> None:
    queue = RequestQueue("m", max_size=1)
    queue.put_nowait(ticket("a", LOW))
    with pytest.raises(QueueFullError, match=r"'m' is full: 1 of 1 requests wait\. Try again in about 2\.5 s"):
        queue.put_nowait(ticket("b", LOW), retry_after=lambda: 2.5)
    with pytest.raises(QueueFullError, match="Try again later, or use batch"):
        queue.put_nowait(ticket("b", LOW))
    queue.put_nowait(ticket("c", HIGH))
    assert [queue.depth(each) for each in RequestPriority] == [1, 0, 1]


async def test_a_discarded_ticket_is_gone_wherever_it_was() -> None:
    queue = RequestQueue("m", max_size=10)
    ready, delayed, out = ticket("ready"), ticket("delayed"), ticket("out")
    for each in (delayed, ready, out):
        queue.put_nowait(each)
    assert pop(queue) is delayed
    queue.put_back(delayed, not_before=3.0)
    assert queue.discard(ready)
    assert queue.discard(delayed)
    assert not queue.discard(delayed)
    assert queue.release_due(9.0) is None
    assert list(queue) == [out]
    assert names(queue) == ["out"]
    assert queue.best() is None


async def test_memory_stays_with_what_waits_when_many_come_and_leave() -> None:
    queue = RequestQueue("m", max_size=1000)
    queue.put_nowait(ticket("stays"))
    for n in range(5000):
        passing = ticket(str(n), agent=f"agent {n % 50}")
        queue.put_nowait(passing)
        if n % 2:
            while (best := queue.best()) is not passing and best is not None:  # the one that stays
                queue.take(best)
                queue.put_back(best, not_before=0.0)
            queue.take(passing)
            queue.put_back(passing, not_before=1e9)
            queue.release_due(0.0)
        queue.discard(passing)
    held = sum(len(line) for line in queue._ready.values()) + len(queue._delayed)
    assert held < 1000
    assert len(queue) == 1


async def test_a_lifted_ticket_goes_with_its_new_class_at_the_place_of_its_submission() -> None:
    queue = RequestQueue("m", max_size=10)
    low, high, pausing = ticket("low", LOW), ticket("high", HIGH), ticket("pausing", LOW)
    for each in (low, pausing, high):
        queue.put_nowait(each)
    queue.lift(low, HIGH)
    queue.lift(high, LOW)  # nothing is ever lowered
    assert [queue.depth(each) for each in RequestPriority] == [2, 0, 1]
    assert pop(queue) is low
    assert pop(queue) is high
    assert pop(queue) is pausing
    queue.put_back(pausing, not_before=1.0)
    queue.lift(pausing, HIGH)
    queue.release_due(1.0)
    assert (pop(queue), len(queue)) == (pausing, 0)


async def test_agents_of_a_class_take_turns_however_many_requests_one_has() -> None:
    queue = RequestQueue("m", max_size=100)
    for n in range(6):
        queue.put_nowait(ticket(f"greedy {n}", agent="greedy"))
    for n in range(2):
        queue.put_nowait(ticket(f"modest {n}", agent="modest"))
    assert names(queue) == [
        "greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3", "greedy 4", "greedy 5",
    ]  # fmt: skip


async def test_an_agent_that_was_idle_brings_no_credit() -> None:
    queue = RequestQueue("m", max_size=100)
    for n in range(4):
        queue.put_nowait(ticket(f"busy {n}", agent="busy", cost=100.0))
    assert [pop(queue).request.request_id for _ in range(3)] == ["busy 0", "busy 1", "busy 2"]
    for n in range(3):
        queue.put_nowait(ticket(f"back {n}", agent="back", cost=100.0))
    assert names(queue) == ["back 0", "busy 3", "back 1", "back 2"]


async def test_what_a_request_took_beyond_its_estimate_is_charged_to_its_agent() -> None:
    queue = RequestQueue("m", max_size=100)
    for n in range(3):
        queue.put_nowait(ticket(f"a {n}", agent="a", cost=10.0))
        queue.put_nowait(ticket(f"b {n}", agent="b", cost=10.0))
    first = pop(queue)
    queue.charge(first, 15.0)
    assert names(queue) == ["b 0", "b 1", "b 2", "a 1", "a 2"]


async def test_lower_classes_get_their_shares_of_an_overload_and_no_more() -> None:
    queue = RequestQueue("m", max_size=10_000)
    for priority in RequestPriority:
        for n in range(3000):
            queue.put_nowait(ticket(f"{priority.name} {n}", priority))
    served = Counter(pop(queue).priority for _ in range(2000))
    assert served[NORMAL] == pytest.approx(400, abs=3)
    assert served[LOW] == pytest.approx(100, abs=3)


async def test_a_class_that_nobody_holds_up_is_owed_nothing() -> None:
    queue = RequestQueue("m", max_size=10_000)
    for n in range(1000):
        queue.put_nowait(ticket(f"low {n}", LOW))
    for _ in range(500):
        pop(queue)
    for n in range(19):
        queue.put_nowait(ticket(f"high {n}", HIGH))
    assert {pop(queue).priority for _ in range(19)} == {HIGH}
    assert pop(queue).priority is LOW
