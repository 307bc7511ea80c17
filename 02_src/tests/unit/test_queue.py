"""Order of the queue, its bound, and what leaves it."""

from __future__ import annotations

import asyncio

import pytest

from fakes.provider import ask
from llm_gateway import QueueFullError, RequestPriority
from llm_gateway.queue import RequestQueue, Ticket

HIGH, NORMAL, LOW = RequestPriority


def ticket(name: str, priority: RequestPriority = NORMAL) -> Ticket:
    return Ticket(request=ask(name, priority), reply=asyncio.get_running_loop().create_future(), submitted=0.0)


def names(queue: RequestQueue) -> list[str]:
    return [queue.pop().request.request_id for _ in range(queue.ready)]


async def test_classes_go_in_order_and_each_by_submission() -> None:
    queue = RequestQueue("m", max_size=10)
    for name, priority in [("l1", LOW), ("n1", NORMAL), ("h1", HIGH), ("l2", LOW), ("h2", HIGH)]:
        queue.put_nowait(ticket(name, priority))
    assert queue.has_ready(HIGH)
    assert names(queue) == ["h1", "h2", "n1", "l1", "l2"]
    assert not queue.has_ready(LOW)


async def test_a_retry_keeps_its_place_and_comes_back_no_earlier_than_allowed() -> None:
    queue = RequestQueue("m", max_size=10)
    first, second = ticket("first"), ticket("second")
    queue.put_nowait(first)
    queue.put_nowait(second)
    assert queue.pop() is first
    queue.put_back(first, not_before=5.0)
    assert (len(queue), queue.ready, first.state) == (2, 1, "pausing before attempt 1")
    assert queue.release_due(4.9) == 5.0
    assert queue.ready == 1
    assert queue.release_due(5.0) is None
    assert names(queue) == ["first", "second"]


async def test_each_class_has_its_own_bound_and_a_full_one_changes_nothing() -> None:
    queue = RequestQueue("m", max_size=1)
    queue.put_nowait(ticket("a", LOW))
    with pytest.raises(QueueFullError, match=r"'m' is full: 1 of 1 requests wait\. Try again in about 2\.5 s"):
        queue.put_nowait(ticket("b", LOW), retry_after=2.5)
    with pytest.raises(QueueFullError, match="Try again later, or use batch"):
        queue.put_nowait(ticket("b", LOW))
    queue.put_nowait(ticket("c", HIGH))
    assert [queue.depth(each) for each in RequestPriority] == [1, 0, 1]


async def test_a_discarded_ticket_is_gone_wherever_it_was() -> None:
    queue = RequestQueue("m", max_size=10)
    ready, delayed, out = ticket("ready"), ticket("delayed"), ticket("out")
    for each in (delayed, ready, out):
        queue.put_nowait(each)
    assert queue.pop() is delayed
    queue.put_back(delayed, not_before=3.0)
    assert queue.discard(ready)
    assert queue.discard(delayed)
    assert not queue.discard(delayed)
    assert queue.release_due(9.0) is None
    assert list(queue) == [out]
    assert names(queue) == ["out"]
    with pytest.raises(IndexError):
        queue.pop()


async def test_memory_stays_with_what_waits_when_many_come_and_leave() -> None:
    queue = RequestQueue("m", max_size=1000)
    stays = ticket("stays")
    queue.put_nowait(stays)
    for n in range(5000):
        passing = ticket(str(n))
        queue.put_nowait(passing)
        if n % 2:
            queue.pop()  # this one, or the one that stays
            queue.put_back(passing if not passing.waiting else stays, not_before=1e9)
            passing = passing if passing.waiting else stays
        queue.discard(passing)
        if not stays.waiting:
            queue.put_nowait(stays)
    entries = sum(len(heap) for heap in queue._ready.values()) + len(queue._delayed)
    assert entries <= 2 * (2 * len(queue) + 64)
