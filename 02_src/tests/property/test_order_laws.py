"""Laws of the queue's order, for any arrivals, departures and costs."""

from __future__ import annotations

from asyncio import Future
from collections import Counter
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.provider import ask
from llm_gateway import LLMResponse, RequestPriority
from llm_gateway.queue import RequestQueue, Ticket

AGENTS = ["a", "b", "c", "d"]
LARGEST = 100.0


def ticket(agent: str, cost: float, priority: RequestPriority = RequestPriority.NORMAL) -> Ticket:
    request = ask("x", priority).model_copy(update={"agent": agent})
    return Ticket(
        request=request,
        reply=cast("Future[LLMResponse]", None),
        submitted=0.0,
        cost=cost,
        priority=priority,
        agent=agent,
    )


def pop(queue: RequestQueue) -> Ticket:
    best = queue.best()
    assert best is not None
    queue.take(best)
    return best


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_the_gap_between_two_agents_that_both_wait_is_at_most_twice_the_largest_cost(seed: int, rounds: int) -> None:
    rng = Random(seed)
    queue = RequestQueue("m", max_size=10_000)
    waiting: Counter[str] = Counter()
    served = dict.fromkeys(AGENTS, 0.0)
    marks: dict[frozenset[str], dict[str, float]] = {}  # what each had when a pair began to wait together
    for _ in range(rounds):
        for agent in rng.choices(AGENTS, k=rng.randint(0, 3)):
            queue.put_nowait(ticket(agent, rng.uniform(0.1, LARGEST)))
            waiting[agent] += 1
        for _ in range(rng.randint(0, 3)):
            pairs = {frozenset((a, b)) for a in AGENTS for b in AGENTS if a < b and waiting[a] and waiting[b]}
            marks = {pair: marks.get(pair) or dict(served) for pair in pairs}
            if not queue.ready():
                break
            taken = pop(queue)
            agent = str(taken.request.agent)
            waiting[agent] -= 1
            served[agent] += taken.cost
            for pair, before in marks.items():
                one, other = (served[each] - before[each] for each in pair)
                assert abs(one - other) <= 2 * LARGEST + 1e-6


@given(st.lists(st.tuples(st.sampled_from(AGENTS), st.floats(0.1, LARGEST)), max_size=50), st.integers(1, 40))
def test_an_agent_that_returns_from_idleness_is_served_at_most_one_request_more_than_its_turn(
    others: list[tuple[str, float]], idle_for: int
) -> None:
    queue = RequestQueue("m", max_size=10_000)
    queue.put_nowait(ticket("returning", 1.0))
    pop(queue)
    for _ in range(idle_for):
        queue.put_nowait(ticket("busy", LARGEST))
        pop(queue)
    for agent, cost in others:
        queue.put_nowait(ticket(agent, cost))
    for _ in range(200):
        queue.put_nowait(ticket("busy", LARGEST))
        queue.put_nowait(ticket("returning", LARGEST))
    served: Counter[str] = Counter()
    while served["busy"] < 20:
        served[str(pop(queue).request.agent)] += 1
    assert served["returning"] <= 22


@pytest.mark.parametrize("seed", range(5))
def test_under_endless_work_of_every_class_each_gets_its_share_whatever_the_costs(seed: int) -> None:
    rng = Random(seed)
    queue = RequestQueue("m", max_size=100_000)
    served = dict.fromkeys(RequestPriority, 0.0)
    for priority in RequestPriority:
        for _ in range(4000):
            queue.put_nowait(ticket(rng.choice(AGENTS), rng.lognormvariate(3, 1), priority))
    while queue.ready((RequestPriority.HIGH,)):
        taken = pop(queue)
        served[taken.priority] += taken.cost
    total = sum(served.values())
    assert served[RequestPriority.NORMAL] / total == pytest.approx(0.20, abs=0.01)
    assert served[RequestPriority.LOW] / total == pytest.approx(0.05, abs=0.01)


@given(st.data())
def test_the_queue_counts_right_and_gives_out_each_ticket_once(data: st.DataObject) -> None:
    queue = RequestQueue("m", max_size=1000)
    inside: list[Ticket] = []
    now = 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        match data.draw(st.sampled_from(["put", "take", "discard", "back", "lift", "time"])):
            case "put":
                new = ticket(data.draw(st.sampled_from(AGENTS)), 1.0, data.draw(st.sampled_from(RequestPriority)))
                queue.put_nowait(new)
                inside.append(new)
            case "take" if queue.ready():
                inside.remove(pop(queue))
            case "back" if queue.ready():
                queue.put_back(pop(queue), not_before=now + data.draw(st.sampled_from([0.0, 1.0, 5.0])))
            case "discard" if inside:
                gone = inside.pop(data.draw(st.integers(0, len(inside) - 1)))
                assert queue.discard(gone)
                assert not queue.discard(gone)
            case "lift" if inside:
                queue.lift(data.draw(st.sampled_from(inside)), data.draw(st.sampled_from(RequestPriority)))
            case _:
                now += 1.0
                queue.release_due(now)
        assert len(queue) == len(inside)
        assert Counter(map(id, queue)) == Counter(map(id, inside))
        for priority in RequestPriority:
            assert queue.depth(priority) == sum(each.priority is priority for each in inside)
    queue.release_due(1e9)
    assert queue.ready() == len(inside)
    assert {id(pop(queue)) for _ in range(len(inside))} == {id(each) for each in inside}
