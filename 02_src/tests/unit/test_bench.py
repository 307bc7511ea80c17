"""The benchmarks count, wait and judge as their report says they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bench import measure as measuring
from bench.measure import Figures, Neighbours, measure, quantile, slow_neighbour, watch_callers, watch_lists
from bench.memory import growth, is_clean, row
from bench.memory_run import Course
from bench.plot import memory_plot, speed_plot
from bench.report import markdown
from bench.results import COMPARED, OWN_SHARE, STREAMED, Plan, Results
from bench.scene import LONG, LONG_TEXT, Scene
from bench.server import Connection
from bench.subjects import Ask, Tell
from bench.targets import targets_of


def figures(cpu_us: float) -> Figures:
    return Figures(cpu_us=cpu_us, per_second=1e6 / cpu_us, p50_ms=1.0, p99_ms=2.0, peak_mib=64.0, first_ms=cpu_us / 1e3)


# What makes every target reached, to the microsecond.
GOOD = {
    "nothing_with_journal": 148.0,
    "nothing_frozen": 58.0,
    "gateway_request": 118.0,
    "gateway_request_frozen": 118.0,
    "gateway_stream": 1098.0,
    "ainvoke": 3000.0,
    "litellm_router": 4000.0,
    "tensorzero": 119.0,
}


def results(**cpu_us: float) -> Results:
    """Three rounds, each a microsecond slower; a hundred, where nothing else is said."""
    by_name = {name: figures(cpu_us.get(name, GOOD.get(name, 100.0))) for name in measuring.SUBJECTS}
    by_name |= {name: figures(cpu_us.get(name, GOOD.get(name, 100.0))) for name in measuring.STREAMS}
    rounds = {name: [figures(each.cpu_us + turn) for turn in (0, 1, 2)] for name, each in by_name.items()}
    return Results(
        compared={(name, scene): rounds[name] for scene, names in (*COMPARED, *STREAMED) for name in names},
        own_share={name: rounds[subject] for name, (subject, _) in OWN_SHARE.items()},
        imports_s=[0.1, 0.4, 0.2],
        neighbours={"gateway_request": Neighbours(callers=32, slow_s=10.0, median_s=0.1, longest_s=0.2)},
    )


def missed(found: Results) -> list[str]:
    return [each.name for each in targets_of(found) if not each.reached]


def test_a_run_that_keeps_every_promise_misses_none() -> None:
    found = results()
    assert missed(found) == []
    assert len(targets_of(found)) == 22


@pytest.mark.parametrize(
    ("subject", "cpu_us", "words"),
    [
        ("nothing_with_journal", 150.0, "The gateway's own share"),
        ("nothing_frozen", 60.0, "The gateway's own share"),
        ("nothing_with_journal", 196.0, "a part of what `ChatOpenAI.ainvoke` costs"),
        ("nothing_frozen", 79.0, "with `freeze = true`, as a part of what `ChatOpenAI.ainvoke` costs"),
        ("gateway_request_frozen", 481.0, "The same as a part of what `ChatOpenAI.ainvoke` costs with it"),
        ("litellm_router", 830.0, "a multiple of LiteLLM's Router"),
        ("ainvoke", 470.0, "a multiple of `ainvoke` of LangChain's class"),
        ("tensorzero", 98.0, "a multiple of TensorZero's"),
        ("tensorzero", 117.0, "512 calls in flight"),
        ("gateway_request_frozen", 800.0, "21 messages"),
        ("gateway_stream", 1101.0, "First piece of a stream"),
    ],
)
def test_a_target_is_judged_by_the_median_of_its_rounds(subject: str, cpu_us: float, words: str) -> None:
    assert any(words in name for name in missed(results(**{subject: cpu_us})))


def test_the_page_holds_every_table_and_says_what_was_missed() -> None:
    page = markdown(results(nothing_frozen=70.0), Plan(), "a machine", "langchain-core 1")
    assert page.count("**missed**") == 1
    assert "| `LLMGateway.request`, everything on | 119 (118 to 120) |" in page
    assert "a machine" in page
    assert page.count("\n## ") == len(COMPARED) + len(STREAMED) + 4


def test_what_could_not_be_had_is_left_out_of_page_targets_and_picture() -> None:
    found = results()
    for key in [key for key in found.compared if key[0].startswith(("litellm", "tensorzero"))]:
        del found.compared[key]
    shown = markdown(found, Plan(), "m", "v").partition("## How it is measured")[0] + speed_plot(found)
    assert "LiteLLM" not in shown
    assert "TensorZero" not in shown


def test_the_picture_draws_a_bar_for_each_subject_of_both_scenes() -> None:
    assert speed_plot(results()).count("<rect") == 1 + 7 + 6


def course(*mib: float, **left: Any) -> Course:
    return Course(samples=[(number * 10, each) for number, each in enumerate(mib)], **left)


def test_memory_is_judged_by_the_second_and_the_last_tenth() -> None:
    flat = course(50.0, 90.0, *[100.0] * 8, 103.0)
    assert growth(flat) == (90.0, 101.5)
    assert not is_clean(flat)
    assert is_clean(course(50.0, *[100.0] * 10))
    assert "+11.5" in row("lean", flat)


@pytest.mark.parametrize("left", [{"tasks": 1}, {"files": {"socket": 1}}, {"threads": ["journal"]}])
def test_a_run_that_leaves_something_open_is_not_clean(left: dict[str, Any]) -> None:
    assert not is_clean(course(*[100.0] * 11, **left))


def test_the_picture_of_memory_has_a_line_for_each_transport() -> None:
    drawn = memory_plot({"lean": [(0, 90.0), (10, 100.0)], "sdk": [(0, 95.0), (10, 99.0)]})
    assert drawn.count("<polyline") == 2


@pytest.mark.parametrize("watch", [watch_callers, watch_lists])
async def test_every_request_of_a_run_is_asked_once(watch: Any) -> None:
    asked: list[str] = []

    async def ask(prompts: list[str]) -> None:
        await asyncio.sleep(0.001)
        asked.extend(prompts)

    seen = await watch(ask, concurrency=7, warm_up=0.0, seconds=0.01)
    assert len(asked) == len(set(asked))
    assert 0 < len(seen.waited) < len(asked)


@pytest.mark.parametrize("long", [False, True])
def test_a_conversation_ends_with_a_user(long: bool) -> None:  # noqa: FBT001
    said = Scene(long=long).messages("Question 1: " + "why? " * 60)
    assert said[-1][0] == "user"
    if long:
        assert [len(text) for _, text in said] == [LONG_TEXT] * LONG


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([5.0], 0.99) == 5.0


@asynccontextmanager
async def one_that_waits(_server: str, _scene: Scene) -> AsyncIterator[Ask]:
    async def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            for _ in range(50 if "[[wait" in prompt else 1):
                await asyncio.sleep(0.001)

    yield ask


@asynccontextmanager
async def one_that_streams(_server: str, _scene: Scene) -> AsyncIterator[Tell]:
    async def tell(_prompt: str) -> AsyncGenerator[str, None]:
        await asyncio.sleep(0.001)
        yield "-1000.0"
        yield " word"

    yield tell


async def test_the_slow_call_itself_is_not_among_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measuring.SUBJECTS, "ainvoke", one_that_waits)
    found = await slow_neighbour("ainvoke", "", callers=4, seconds=1.0)
    assert found.callers == 4
    assert found.longest_s < found.slow_s


async def test_a_measurement_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measuring.SUBJECTS, "ainvoke", one_that_waits)
    found = await measure("ainvoke", "", Scene(concurrency=2), warm_up=0.0, seconds=0.01)
    assert found.peak_mib > 1
    assert found.p50_ms <= found.p99_ms


async def test_the_first_piece_of_a_stream_is_measured_against_what_the_server_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(measuring.STREAMS, "astream", one_that_streams)
    found = await measure("astream", "", Scene(concurrency=2), warm_up=0.0, seconds=0.01)
    assert found.first_ms >= 1e6


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield reader, writer
    writer.close()
    server.close()
    await server.wait_closed()


def post(path: str, text: str, **more: Any) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": text}], **more}).encode()
    return b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


@pytest.mark.parametrize(
    ("path", "tokens"),
    [("/0ms/v1/chat/completions", "completion_tokens"), ("/1ms/v1/messages", "output_tokens")],
)
async def test_the_server_answers_a_request_that_comes_in_pieces_and_the_next_on_the_same_connection(
    path: str, tokens: str
) -> None:
    asked = post(path, "[[wait 0.0]] hello")
    async with connection() as (reader, writer):
        for _ in range(2):
            for piece in (asked[:20], asked[20:-5], asked[-5:]):
                writer.write(piece)
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["usage"][tokens] == 40


async def test_the_server_says_in_a_stream_how_long_it_took_to_begin() -> None:
    async with connection() as (reader, writer):
        writer.write(post("/0ms/v1/chat/completions", "hello", stream=True))
        body = await reader.readuntil(b"0\r\n\r\n")
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    assert float(events[0]["choices"][0]["delta"]["content"]) >= 0
    assert events[-1]["usage"]["completion_tokens"] == 40
