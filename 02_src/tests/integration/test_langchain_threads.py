"""GatewayChatModel asked from threads and event loops that are not the gateway's."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from langchain_core.tools import tool

from llm_gateway import GatewayClosedError, GatewayError, LLMMessage, LLMRequest, MockLLMGateway, RequestPriority
from llm_gateway.integrations.langchain import GatewayChatModel
from llm_gateway.integrations.loops import Doorway, background_loop

SLOW = {"default": {"content": "one two three", "latency": 3600.0}}
PIECES = {"default": {"content": "one two three", "stream": {"pace": 3600.0}}}


def plain(text: str) -> LLMRequest:
    return LLMRequest(model="claude-haiku", messages=[LLMMessage(role="user", content=text)])


@pytest.fixture
async def gateway() -> AsyncIterator[MockLLMGateway]:
    made = MockLLMGateway(responses={"default": "one two three"})
    yield made
    await made.shutdown()


def test_without_any_loop_calls_wait_for_their_answers() -> None:
    gateway = MockLLMGateway(responses={"default": "one two three"})
    chat = gateway.as_langchain("claude-haiku")
    assert chat.invoke("hi").content == "one two three"
    assert [chunk.content for chunk in chat.stream("hi")] == ["one", " two", " three", ""]
    assert [answer.content for answer in chat.batch(["a", "b"])] == ["one two three"] * 2
    with ThreadPoolExecutor(8) as pool:
        assert [answer.content for answer in pool.map(chat.invoke, "abcdefgh")] == ["one two three"] * 8
    assert gateway.loop is background_loop()
    chat.close()
    with pytest.raises(GatewayClosedError):
        chat.invoke("late")


def test_two_loops_one_after_the_other_and_waiting_calls_between_them() -> None:
    chat = MockLLMGateway().as_langchain("claude-haiku")
    assert (
        asyncio.run(chat.ainvoke("hi")).content == asyncio.run(chat.ainvoke("hi")).content == chat.invoke("hi").content
    )
    chat.close()


async def test_a_waiting_call_inside_a_loop_works_in_the_background_and_so_does_all_that_follows(
    gateway: MockLLMGateway,
) -> None:
    chat = gateway.as_langchain("claude-haiku")
    assert chat.invoke("hi").content == "one two three"
    assert gateway.loop is background_loop()
    assert (await chat.ainvoke("hi")).content == "one two three"
    assert [chunk.content async for chunk in chat.astream("hi")] == ["one", " two", " three", ""]
    with pytest.raises(GatewayError, match="serves another event loop"):
        await gateway.request(plain("hi"))
    await gateway.shutdown()  # from here all the same
    assert gateway.loop is None
    await gateway.shutdown()


async def test_a_thread_asks_in_the_loop_that_the_gateway_works_in(gateway: MockLLMGateway) -> None:
    chat = gateway.as_langchain("claude-haiku")
    await gateway.request(plain("first"))
    answer = await asyncio.to_thread(chat.invoke, "hi")
    pieces = await asyncio.to_thread(lambda: [chunk.content for chunk in chat.stream("hi")])
    assert (answer.content, pieces) == ("one two three", ["one", " two", " three", ""])
    assert gateway.loop is asyncio.get_running_loop()


async def test_a_thread_that_comes_first_asks_in_the_loop_that_the_model_was_made_in(gateway: MockLLMGateway) -> None:
    chat = gateway.as_langchain("claude-haiku")
    await asyncio.to_thread(chat.invoke, "hi")
    assert gateway.loop is asyncio.get_running_loop()
    await gateway.request(plain("the gateway is at home here"))


async def test_a_call_that_would_wait_for_itself_says_what_to_do_instead(gateway: MockLLMGateway) -> None:
    chat = gateway.as_langchain("claude-haiku")
    await chat.ainvoke("hi")
    for ask in (chat.invoke, lambda text: next(chat.stream(text)), lambda text: chat.batch([text])):
        with pytest.raises(GatewayError, match=r"would wait for itself; await `ainvoke`") as caught:
            ask("hi")
        assert "\n" not in str(caught.value)


def test_a_loop_that_stands_still_is_told_at_once() -> None:
    loop = asyncio.new_event_loop()
    chat = MockLLMGateway().as_langchain("claude-haiku")
    loop.run_until_complete(chat.ainvoke("hi"))
    with pytest.raises(GatewayError, match="does not run now"):
        chat.invoke("hi")
    with pytest.raises(GatewayError, match="does not run now"):
        asyncio.run(chat.ainvoke("hi"))
    loop.run_until_complete(chat.gateway.shutdown())
    loop.close()


def test_a_gateway_that_was_used_before_a_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = MockLLMGateway().as_langchain("claude-haiku")
    chat.invoke("hi")
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(GatewayError, match="used before the process forked"):
        chat.invoke("hi")
    monkeypatch.undo()
    chat.close()


def test_a_waiting_call_whose_loop_ends_is_told() -> None:
    gateway = MockLLMGateway(responses=SLOW)
    chat = gateway.as_langchain("claude-haiku")
    told: list[BaseException] = []

    def wait(work: Any) -> None:
        try:
            work()
        except GatewayClosedError as error:
            told.append(error)

    async def ask_and_leave() -> None:
        task = asyncio.create_task(chat.ainvoke("first"))
        while gateway.loop is None:  # noqa: ASYNC110 - nothing tells of it, and it begins within a few turns
            await asyncio.sleep(0)
        threads.append(Thread(target=wait, args=(lambda: chat.invoke("second"),)))
        threads.append(Thread(target=wait, args=(lambda: asyncio.run(chat.ainvoke("third")),)))
        for thread in threads:
            thread.start()
        while len(gateway.calls) < 3:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)
        task.cancel()

    threads: list[Thread] = []
    asyncio.run(ask_and_leave())
    for thread in threads:
        thread.join()
    assert [str(each) for each in told] == [
        "The event loop that the gateway works in ended before the answer came."
    ] * 2


def test_a_loop_that_was_closed_just_now_is_told() -> None:
    loop = asyncio.new_event_loop()
    gateway = MockLLMGateway()
    door = Doorway(gateway)
    loop.close()
    door._home_to_wait_for = lambda: loop  # type: ignore[method-assign]  # it was open when somebody looked
    with pytest.raises(GatewayClosedError, match="ended before the answer came"):
        door.ask_and_wait(gateway.shutdown)


def test_a_stream_that_is_left_ends_its_call() -> None:
    gateway = MockLLMGateway(responses=PIECES)
    chat = gateway.as_langchain("claude-haiku")
    stream = chat.stream("hi")
    assert next(stream).content == "one"
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert [call.outcome for call in gateway.calls] == ["cancelled"]
    chat.close()


async def test_a_stream_of_another_loop_that_is_left_or_cancelled_ends_its_call() -> None:
    gateway = MockLLMGateway(responses=PIECES)
    door = Doorway(gateway)
    chat = gateway.as_langchain("claude-haiku")
    await asyncio.to_thread(lambda: next(chat.stream("hi")))  # the loop is this one's now
    other = Event()

    async def elsewhere() -> None:
        stream = door.stream(lambda: gateway.stream(plain("left")))
        await anext(stream)
        await stream.aclose()
        stream = door.stream(lambda: gateway.stream(plain("cancelled")))
        await anext(stream)
        step = asyncio.create_task(_step(stream))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait([step])
        other.set()

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert other.is_set()
    gc.collect()
    assert {call.outcome for call in gateway.calls} == {"cancelled"}
    await gateway.shutdown()


def _step(stream: Any) -> Coroutine[Any, Any, Any]:
    async def step() -> Any:
        return await anext(stream)

    return step()


async def test_a_stream_that_the_collector_finds_in_the_gateways_own_thread_is_closed_without_waiting() -> None:
    gateway = MockLLMGateway(responses=PIECES)
    chat = gateway.as_langchain("claude-haiku")
    stream = chat.stream("hi")
    await asyncio.to_thread(next, stream)
    stream.close()  # type: ignore[attr-defined]  # as the collector does, here where nobody may wait
    while gateway.calls[0].outcome is None:  # noqa: ASYNC110 - the mock rings no bell
        await asyncio.sleep(0)
    assert gateway.calls[0].outcome == "cancelled"
    await gateway.shutdown()


async def test_class_and_agent_go_along_into_threads(gateway: MockLLMGateway) -> None:
    helper = gateway.as_langchain("claude-haiku")

    @tool
    def look(where: str) -> str:
        """Look somewhere."""
        return str(helper.invoke(where).content)

    with gateway.as_langchain("claude-haiku", priority=RequestPriority.HIGH, agent="boss").on_behalf():
        await look.ainvoke({"where": "up"})
    counts = gateway.get_stats()["queue_wait"]["by_priority"]
    assert (counts["high"]["count"], counts["normal"]["count"]) == (1, 0)


FORGETFUL = """
from llm_gateway import MockLLMGateway
print(MockLLMGateway({"logs": {}}).as_langchain("claude-haiku").invoke("hi").content)
"""


def test_a_program_that_forgets_to_close_ends_all_the_same(warm: Path) -> None:
    command = [str(warm / "python"), "-W", "error", "-c", FORGETFUL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    assert done.stdout.startswith("Mock answer")
    assert done.stderr == ""
    assert "item_done" in "".join(path.read_text() for path in _journals())


def _journals() -> Any:
    return Path("04_logs/gateway").glob("*.jsonl")


def test_a_model_is_what_as_langchain_returns() -> None:
    assert isinstance(MockLLMGateway().as_langchain("claude-haiku"), GatewayChatModel)
