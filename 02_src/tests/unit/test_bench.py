"""The benchmarks count, wait and judge as their report says they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bench import subjects
from bench.measure import Figures, Neighbours, measure, quantile, run, slow_neighbour
from bench.report import markdown
from bench.results import COMPARED, OWN_SHARE, Plan, Results, targets_of
from bench.server import Connection


def figures(cpu_us: float) -> Figures:
    return Figures(cpu_us=cpu_us, per_second=100.0, p50_ms=1.0, p99_ms=2.0, peak_mib=64.0)


def results(**cpu_us: float) -> Results:
    subjects = (*COMPARED, *OWN_SHARE)
    by_subject = {subject: [figures(cpu_us.get(subject, 100.0) + turn) for turn in (0, 1, 2)] for subject in subjects}
    return Results(
        compared={(subject, 64): by_subject[subject] for subject in COMPARED},
        own_share={subject: by_subject[subject] for subject in OWN_SHARE},
        imports_s=[0.1, 0.4, 0.2],
        neighbours={"gateway_request": Neighbours(callers=32, slow_s=10.0, median_s=0.1, longest_s=0.2)},
    )


@pytest.mark.parametrize(("own", "reached"), [(149.0, True), (150.0, False)])
def test_a_target_is_judged_by_the_median_of_its_rounds(own: float, reached: bool) -> None:  # noqa: FBT001
    targets = targets_of(results(ainvoke=3000.0, nothing_with_journal=own))
    assert [each.reached for each in targets] == [True, reached, True, True]


def test_the_page_holds_every_table_and_says_what_was_missed() -> None:
    page = markdown(results(gateway_request=9000.0), Plan(), "a machine", "langchain-core 1")
    assert page.count("**missed**") == 1
    assert "| `LLMGateway.request`, everything on | 9,001 (9,000 to 9,002) |" in page
    assert "a machine" in page


def test_a_page_without_litellm_leaves_its_row_out() -> None:
    found = results()
    del found.compared["litellm_router", 64]
    assert "LiteLLM" not in markdown(found, Plan(), "m", "v")


@pytest.mark.parametrize("as_lists", [False, True])
async def test_every_request_of_a_run_is_asked_once_and_waits_once(as_lists: bool) -> None:  # noqa: FBT001
    asked: list[str] = []

    async def ask(prompts: list[str]) -> None:
        await asyncio.sleep(0)
        asked.extend(prompts)

    waited = await run(ask, requests=100, concurrency=7, as_lists=as_lists)
    assert len(waited) == len(asked) == len(set(asked)) == 100


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([5.0], 0.99) == 5.0


@asynccontextmanager
async def one_that_waits(_url: str, _concurrency: int) -> AsyncIterator[subjects.Ask]:
    async def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            for _ in range(50 if "[[wait" in prompt else 1):
                await asyncio.sleep(0)

    yield ask


async def test_the_slow_call_itself_is_not_among_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(subjects.SUBJECTS, "ainvoke", one_that_waits)
    found = await slow_neighbour("ainvoke", url="", callers=4, seconds=1.0)
    assert found.callers == 4
    assert found.longest_s < found.slow_s


async def test_a_measurement_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(subjects.SUBJECTS, "ainvoke", one_that_waits)
    found = await measure("ainvoke", url="", concurrency=2, requests=10, warm_up=2)
    assert found.peak_mib > 1
    assert found.p50_ms <= found.p99_ms


async def test_the_server_answers_a_request_that_comes_in_pieces_and_the_next_on_the_same_connection() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    body = json.dumps({"messages": [{"role": "user", "content": "[[wait 0.0]] hello"}]}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(2):
        for piece in (request[:20], request[20:-5], request[-5:]):
            writer.write(piece)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        assert answer["usage"]["total_tokens"] == 160
    writer.close()
    server.close()
    await server.wait_closed()
