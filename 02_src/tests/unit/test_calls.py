"""Who follows the calls of requests hears of them, also where several follow one id."""

from __future__ import annotations

from llm_gateway.calls import CallWatch, Heard
from llm_gateway.events import AttemptBegan


def began(request_id: str, attempt: int) -> AttemptBegan:
    return AttemptBegan(
        request_id=request_id,
        batch_id="b",
        model="m",
        deployment="d",
        provider="openai",
        attempt=attempt,
        queue_wait=0.0,
    )


def test_each_follower_of_an_id_hears_until_it_leaves() -> None:
    watch = CallWatch()
    heard: dict[str, list[Heard]] = {"one": [], "two": [], "three": [], "other": []}
    one, two, three = heard["one"].append, heard["two"].append, heard["three"].append
    for follower in (one, two, three):
        watch.follow("a", follower)
    watch.follow("b", heard["other"].append)
    events = [began("a", attempt) for attempt in range(1, 5)]
    watch.observe(events[0])
    watch.leave("a", two)
    watch.observe(events[1])
    watch.leave("a", one)
    watch.observe(events[2])
    watch.leave("a", three)
    watch.observe(events[3])
    assert heard == {"one": events[:2], "two": events[:1], "three": events[:3], "other": []}
    watch.follow("a", two)
    watch.observe(events[3])
    assert heard["two"] == [events[0], events[3]]
