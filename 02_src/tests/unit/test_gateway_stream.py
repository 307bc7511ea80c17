"""The gateway's streams, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from fakes.provider import Broken, FakeProvider, Recorder, ask, gateway_over, unavailable
from llm_gateway import (
    DeadlineExceededError,
    GatewayClosedError,
    LLMGateway,
    LLMResponse,
    ProviderUnavailableError,
    RequestRejectedError,
    StreamInterruptedError,
    TextDelta,
    UnknownModelError,
)
from llm_gateway.events import RequestDone
from llm_gateway.models import LLMRequest, StreamDelta
from llm_gateway.queue.pieces import MOST_WAITING

LIMITED = {"gpt-4o-mini": {"max_concurrency": 1, "limits": {"rpm": 600, "tpm": 100_000}}}


Pieces = list[StreamDelta | LLMResponse]


async def pieces_of(gateway: LLMGateway, request: LLMRequest, into: Pieces | None = None) -> Pieces:
    pieces: Pieces = [] if into is None else into
    async for piece in gateway.stream(request):
        pieces.append(piece)
    return pieces


async def test_pieces_come_first_and_the_whole_answer_last() -> None:
    provider, seen = FakeProvider(script=["one two three"]), Recorder()
    async with gateway_over(provider, observers=[seen]) as gateway:
        *pieces, answer = await pieces_of(gateway, ask("a"))
    assert pieces == [TextDelta("one"), TextDelta(" two"), TextDelta(" three")]
    assert isinstance(answer, LLMResponse)
    assert answer.content == "one two three"
    assert answer.receipt is not None
    assert (answer.receipt.attempts, answer.receipt.time_to_first_token) == (1, 1.0)
    done = [event for event in seen.events if isinstance(event, RequestDone)]
    assert [(event.outcome, event.time_to_first_token) for event in done] == [("ok", 1.0)]


async def test_identical_streams_make_a_call_each_also_where_requests_share_theirs() -> None:
    provider = FakeProvider(script=["one two", "one two", "one two"])
    async with gateway_over(provider, coalesce=True) as gateway:
        both = await asyncio.gather(
            pieces_of(gateway, ask("a")), pieces_of(gateway, ask("b")), gateway.request(ask("c"))
        )
    assert [len(pieces) for pieces in both[:2]] == [3, 3]
    assert len(provider.ledger) == 3


async def test_statistics_tell_the_time_to_the_first_token() -> None:
    async with gateway_over(FakeProvider()) as gateway:
        await pieces_of(gateway, ask("a"))
        await gateway.request(ask("b"))
        stats = gateway.get_stats()
    assert (stats["completed"], stats["time_to_first_token"]["count"]) == (2, 1)


async def test_a_failure_before_the_first_piece_is_retried() -> None:
    provider = FakeProvider(script=[unavailable(), "at last"])
    async with gateway_over(provider) as gateway:
        answer = (await pieces_of(gateway, ask("a")))[-1]
    assert isinstance(answer, LLMResponse)
    assert answer.receipt is not None
    assert (answer.content, answer.receipt.attempts) == ("at last", 2)


async def test_a_failure_before_the_first_piece_falls_back() -> None:
    provider = FakeProvider(script=[unavailable(), "from the other"])
    models = {"gpt-4o-mini": {"fallbacks": ["claude-haiku"]}}
    async with gateway_over(provider, models=models, retry={"max_attempts": 1}) as gateway:
        answer = (await pieces_of(gateway, ask("a")))[-1]
    assert isinstance(answer, LLMResponse)
    assert (answer.content, answer.model) == ("from the other", "claude-haiku")


async def test_what_breaks_off_after_the_first_piece_is_not_asked_again() -> None:
    provider = FakeProvider(script=[Broken("half an", unavailable())])
    got: Pieces = []
    async with gateway_over(provider) as gateway:
        with pytest.raises(StreamInterruptedError) as caught:
            await pieces_of(gateway, ask("a"), got)
        assert gateway.get_stats()["failures"] == {"stream_interrupted": 1}
    assert got == [TextDelta("half"), TextDelta(" an")]
    assert caught.value.partial == "half an"
    assert isinstance(caught.value.__cause__, ProviderUnavailableError)
    assert len(provider.ledger) == 1


async def test_an_error_that_no_retry_helps_is_raised_as_it_is() -> None:
    refusal = RequestRejectedError("no", provider="fake", model="m", status=400)
    async with gateway_over(FakeProvider(script=[refusal])) as gateway:
        with pytest.raises(RequestRejectedError):
            await pieces_of(gateway, ask("a"))
        with pytest.raises(UnknownModelError):
            await pieces_of(gateway, ask("b", model="gpt-5o-mini"))


async def test_leaving_the_loop_ends_the_call_and_settles_the_reservation() -> None:
    provider = FakeProvider(script=["a long answer"], pace=lambda _: 10.0)
    async with gateway_over(provider, models=LIMITED) as gateway:
        async with aclosing(gateway.stream(ask("a"))) as stream:
            async for _ in stream:
                break
        assert (provider.under_way, provider.ledger[0].outcome) == (0, "cancelled")
        assert gateway.get_stats()["in_flight"] == 0
        assert gateway.get_stats()["pace"]["gpt-4o-mini"]["limits"]["tokens"]["reserved"] == 0
        assert (await gateway.request(ask("b"))).content == "ok"  # the only slot is free again


async def test_a_cancelled_caller_cancels_its_call() -> None:
    provider = FakeProvider()
    async with gateway_over(provider) as gateway:
        task = asyncio.create_task(pieces_of(gateway, ask("a")))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert provider.ledger[0].outcome == "cancelled"


async def test_a_slow_caller_makes_its_provider_wait() -> None:
    words = 2 * MOST_WAITING
    provider = FakeProvider(script=["w " * words])
    async with gateway_over(provider) as gateway, aclosing(gateway.stream(ask("a"))) as stream:
        await anext(stream)
        await asyncio.sleep(60)
        assert provider.ledger[0].pieces <= MOST_WAITING
        rest = [piece async for piece in stream]
    assert isinstance(rest[-1], LLMResponse)
    assert len(rest) >= words


async def test_a_deadline_ends_a_stream_wherever_it_is() -> None:
    provider = FakeProvider(script=["one two three"], pace=lambda _: 1.0)
    got: Pieces = []
    async with gateway_over(provider) as gateway:
        with pytest.raises(DeadlineExceededError):
            await pieces_of(gateway, ask("a", deadline=2.5), got)
    assert got == [TextDelta("one"), TextDelta(" two")]


async def test_a_shutdown_lets_a_stream_end_or_cuts_it_off() -> None:
    for patience, outcome in ((10.0, LLMResponse), (1.5, GatewayClosedError)):
        gateway = gateway_over(FakeProvider(script=["one two three"], pace=lambda _: 1.0))
        task = asyncio.create_task(pieces_of(gateway, ask("a")))
        await asyncio.sleep(0.1)
        await gateway.shutdown(patience)
        (result,) = await asyncio.gather(task, return_exceptions=True)
        last = result[-1] if isinstance(result, list) else result
        assert isinstance(last, outcome)


async def test_a_stream_holds_its_slot_until_its_end() -> None:
    provider = FakeProvider(script=["one two"], pace=lambda _: 1.0)
    async with gateway_over(provider, models=LIMITED) as gateway:
        streamed, waited = await asyncio.gather(pieces_of(gateway, ask("a")), gateway.request(ask("b")))
    assert isinstance(streamed[-1], LLMResponse)
    assert waited.receipt is not None
    assert waited.receipt.queue_wait == pytest.approx(3.0)
