"""What every ChatClient promises of its streams: the real ones, the mock's and the fake of the unit tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from fakes.deployments import KINDS, connected, deployment, request
from fakes.emulator import Emulator, Reply
from fakes.provider import Broken, FakeProvider, Outcome, rate_limited, unavailable
from fakes.streams import streamed
from llm_gateway.clients.base import ChatClient
from llm_gateway.clock import LoopClock
from llm_gateway.errors import ProviderUnavailableError, RateLimitError
from llm_gateway.mock_gateway.calls import Ledger
from llm_gateway.mock_gateway.responses import load_responses
from llm_gateway.mock_gateway.scripted import Script, ScriptedClients
from llm_gateway.models import TextDelta

every_client = pytest.mark.parametrize("kind", [*KINDS, "mock", "fake"])
TEXT = "one two three"


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour of a provider, in the words of each of those who can show it."""

    emulated: Reply
    scripted: object
    faked: Outcome


WHOLE = Case(Reply(text=TEXT), TEXT, TEXT)
EMPTY = Case(Reply(text=""), "", "")
REFUSED = Case(Reply(status=429), {"error": {"status": 429}}, rate_limited())
BROKEN = Case(
    Reply(text=TEXT, fault="error_event", after=2),
    {"content": TEXT, "stream": {"breaks_after": 2, "error": {"kind": "unavailable"}}},
    Broken("one two", unavailable()),
)


@asynccontextmanager
async def answering(kind: str, emulator: Emulator, case: Case) -> AsyncIterator[ChatClient]:
    """A client whose provider shows `case` at every call."""
    if kind == "fake":
        yield FakeProvider(latency=lambda _: 0.0, answer=lambda _: case.faked)
    elif kind == "mock":
        script = Script(load_responses({"rules": [{"reply": case.scripted}]}))
        yield ScriptedClients(script, Ledger(), seed=0, clock=LoopClock()).connect(deployment("openai", None))
    else:
        emulator.default = case.emulated
        async with connected(emulator, kind) as client:
            yield client


@every_client
async def test_a_stream_is_its_pieces_and_then_the_completion_of_a_plain_call(emulator: Emulator, kind: str) -> None:
    async with answering(kind, emulator, WHOLE) as client:
        seen = await streamed(client, request())
        assert seen.pieces == [TextDelta("one"), TextDelta(" two"), TextDelta(" three")]
        assert seen.whole == await client.generate(request())


@every_client
async def test_an_empty_stream_is_an_answer(emulator: Emulator, kind: str) -> None:
    async with answering(kind, emulator, EMPTY) as client:
        seen = await streamed(client, request())
    assert (seen.pieces, seen.whole.content) == ([], "")


@every_client
async def test_a_refusal_comes_before_any_piece(emulator: Emulator, kind: str) -> None:
    async with answering(kind, emulator, REFUSED) as client:
        seen = await streamed(client, request())
    assert (seen.pieces, type(seen.failure)) == ([], RateLimitError)


@every_client
async def test_a_broken_stream_ends_in_an_error_and_has_no_completion(emulator: Emulator, kind: str) -> None:
    async with answering(kind, emulator, BROKEN) as client:
        seen = await streamed(client, request())
    assert seen.texts == ["one", " two"]
    assert isinstance(seen.failure, ProviderUnavailableError)
    assert seen.failure.retryable


@every_client
async def test_a_stream_may_be_left_and_is_over_then(emulator: Emulator, kind: str) -> None:
    async with answering(kind, emulator, WHOLE) as client:
        async with aclosing(client.stream(request())) as stream:
            assert await anext(stream) == TextDelta("one")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert (await streamed(client, request())).text == TEXT
