"""Many requests of one caller: each enters its queue as soon as there is room, and all are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_gateway.batching.asking import inherited
from llm_gateway.batching.lane import Lane
from llm_gateway.errors import GatewayError
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority
from llm_gateway.queue import Ticket

AT_ONCE = 100  # requests that are taken in before others on the loop get their turn


async def answers_of(
    asked: Sequence[LLMRequest], lanes: Sequence[Lane | GatewayError], since: float
) -> list[LLMResponse | BaseException]:
    """Answer requests, each by its lane, and return the outcomes in their order; what has an error already keeps it.

    `since` is the instant from which waits and deadlines count. After a cancel none of them is under way.
    """
    entered: list[Ticket | GatewayError | None] = [None] * len(asked)
    try:
        await _enter_all(asked, lanes, entered, since)
        return [each if isinstance(each, GatewayError) else await _outcome(each) for each in entered]
    finally:
        for each in entered:
            if isinstance(each, Ticket):
                each.home.discard(each)


async def _enter_all(
    asked: Sequence[LLMRequest],
    lanes: Sequence[Lane | GatewayError],
    entered: list[Ticket | GatewayError | None],
    since: float,
) -> None:
    """Submit each request to its lane as soon as there is room, and note its ticket or its error at its place."""
    queues: dict[tuple[Lane, RequestPriority], list[int]] = {}
    for place, (request, lane) in enumerate(zip(asked, lanes, strict=True)):
        if isinstance(lane, Lane):
            queues.setdefault((lane, inherited(request).priority), []).append(place)
        else:
            entered[place] = lane

    async def enter(lane: Lane, places: Sequence[int]) -> None:
        for count, place in enumerate(places, 1):
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
            entered[place] = await _enter(lane, asked[place], since)

    # A full queue must not hold up the items that go to another one.
    async with asyncio.TaskGroup() as group:
        for (lane, _), places in queues.items():
            group.create_task(enter(lane, places))


async def _enter(lane: Lane, request: LLMRequest, since: float) -> Ticket | GatewayError:
    """Submit as soon as there is room."""
    try:
        await lane.room(request)
        return lane.submit(request, since=since)
    except GatewayError as error:
        return error


async def _outcome(ticket: Ticket | None) -> LLMResponse | BaseException:
    """Wait for an answer or an error; our own cancellation is neither."""
    assert ticket is not None  # noqa: S101 - all have entered before any is waited for
    if not ticket.reply.done():
        await asyncio.wait((ticket.reply,))
    return ticket.reply.exception() or ticket.reply.result()
