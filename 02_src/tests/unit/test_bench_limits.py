"""The benches with limits enforce, count and judge as their pages say they do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from bench import cost_bench, limits_bench, limits_redis, paced_run, paper, priority_bench, stolen
from bench.cost_run import Flood, Order, flood, order
from bench.limited_server import Connection, Ledger
from bench.paced_run import Run
from bench.paced_subjects import TITLES, Pacer
from bench.paced_suite import Outcome, jain, outcome_of
from bench.stolen import Stolen
from bench.workload import HIGH, HIGH_EVERY_S, MEAN_TOKENS, Work, endless, input_tokens, least_seconds

from fakes.emulator.limits import Limits


def chat(prompt: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}]}


def outcome(**figures: object) -> Outcome:
    seen: dict[str, Any] = {
        "began": 10.0,
        "ended": 30.0,
        "offered": 2000,
        "answered": 2000,
        "failed": {},
        "high_offered": 100,
        "high_waits": [0.004] * 100,
        "high_queued": [0.002] * 100,
        "served": {"careful": 10, "busy": 10, "greedy": 10, "greediest": 10},
    }
    ledger: dict[str, list[Any]] = {"arrived": [9.0, 10.0, 11.0, 12.0], "statuses": [429, 200, 200, 200]}
    return outcome_of(seen | figures, ledger)


def test_every_subject_is_asked_the_same_and_a_prompt_says_what_its_answer_will_be() -> None:
    first, again = (list(islice(endless(), 500)) for _ in range(2))
    assert first == again
    mean = sum(each.tokens for each in first) / len(first)
    assert mean == pytest.approx(2 * MEAN_TOKENS, rel=0.15)
    ledger = Ledger(Limits(rpm=60_000))
    admitted = ledger.admit(chat(first[0].prompt), ledger.began)
    assert isinstance(admitted, tuple)
    assert (admitted[0], admitted[1] + admitted[2]) == (first[0].answer_s, first[0].tokens)


def test_the_server_lets_in_what_its_bucket_holds_and_says_when_the_next_call_passes() -> None:
    ledger = Ledger(Limits(rpm=60, burst_seconds=2.0))
    now = ledger.began
    outcomes = [ledger.admit(chat("[[answer 0.1 5]] hello"), now) for _ in range(3)]
    assert outcomes[2] == pytest.approx(1.0)
    assert ledger.statuses == [200, 200, 429]


def test_an_answer_is_charged_when_it_has_been_produced_and_the_warm_up_is_not_counted() -> None:
    ledger = Ledger(Limits(tpm=6000))
    now = ledger.began
    assert isinstance(ledger.admit(chat("no mark"), now), tuple)
    assert isinstance(ledger.admit(chat("[[answer 0.1 500]] hello"), now), tuple)
    ledger.produced(500, now)
    assert ledger.admit(chat("[[answer 0.1 5]] hello"), now) == pytest.approx(4.1, abs=0.2)
    assert ledger.statuses == [200, 429]


async def test_the_server_speaks_http_and_tells_its_ledger() -> None:
    ledger = Ledger(Limits(rpm=60))
    server = await asyncio.get_running_loop().create_server(partial(Connection, ledger), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    async def ask(first_line: bytes, body: bytes = b"") -> tuple[bytes, dict[str, object]]:
        writer.write(first_line + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, json.loads(await reader.readexactly(length))

    body = json.dumps(chat("[[answer 0.0 7]] hello")).encode()
    head, answer = await ask(b"POST /v1/chat/completions HTTP/1.1", body)
    assert head.startswith(b"HTTP/1.1 200")
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13}
    head, _ = await ask(b"POST /v1/chat/completions HTTP/1.1", body)
    assert head.startswith(b"HTTP/1.1 429")
    assert b"retry-after-ms: " in head
    assert (await ask(b"GET /ledger HTTP/1.1"))[1]["statuses"] == [200, 429]
    writer.close()
    server.close()
    await server.wait_closed()


def test_the_least_time_is_what_the_limit_takes_beyond_its_full_bucket() -> None:
    assert least_seconds([1.0] * 2000, per_minute=6000, burst_seconds=1.0) == pytest.approx(19.0)


def test_jains_index_is_one_for_equal_shares_and_a_quarter_for_one_of_four() -> None:
    assert jain([5, 5, 5, 5]) == 1.0
    assert jain([8, 0, 0, 0]) == 0.25


def test_calls_before_what_counts_are_told_apart_and_a_high_one_without_an_answer_waits_for_ever() -> None:
    found = outcome(high_offered=200)
    assert (found.took, found.calls, found.refused, found.calls_before, found.refused_before) == (20.0, 3, 0, 1, 1)
    assert found.high_ms(0.4) == pytest.approx(4.0)
    assert found.high_ms(0.99) == float("inf")


def answering(failing: str = "-") -> Callable[[Work], Awaitable[float | None]]:
    async def ask(work: Work) -> float:
        if work.agent == failing:
            raise ValueError
        await asyncio.sleep(work.answer_s)
        return 0.0

    return ask


async def test_every_request_is_offered_once_and_a_failed_one_is_counted_by_its_error() -> None:
    run = Run(answering(failing="agent-1"))
    await run.through(islice(endless(), 128), callers=8)
    assert (run.seen.offered, run.seen.answered, run.seen.failed) == (128, 126, {"ValueError": 2})


async def test_high_comes_at_its_pace_until_all_low_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", asyncio.get_running_loop().time)
    run = Run(answering())
    await run.beside_high(list(islice(endless(), 200)), callers=8)
    assert run.seen.high_offered == len(run.seen.high_waits) == int(200 * 0.125 / 8 / HIGH_EVERY_S)
    assert max(run.seen.high_waits) == pytest.approx(0.0, abs=1e-6)


async def test_the_pacer_lets_low_go_at_even_intervals_and_high_at_once() -> None:
    pacer, loop = Pacer(per_second=10.0), asyncio.get_running_loop()
    began = loop.time()

    async def gone(work: Work) -> float:
        await pacer.turn(work)
        return loop.time() - began

    low = [gone(each) for each in islice(endless(), 4)]
    high = gone(Work(prompt="", answer_s=0.0, output_tokens=1, agent="user", priority=HIGH))
    assert await asyncio.gather(*low, high) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.0])


def test_stolen_time_is_a_part_of_the_time_that_was_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(stolen, "STAT", stat)
    assert "does not tell" in Stolen().told()
    stat.write_text("cpu  10 0 10 900 5 0 0 20 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    counted = Stolen()
    stat.write_text("cpu  60 0 30 999 9 0 0 30 0 0\n")
    assert counted.share() == pytest.approx(10 / 80)
    assert "12.5%" in counted.told()


async def test_what_agents_are_served_counts_after_the_first_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_run, "AGENTS", {"one": (2, 50.0), "two": (4, 50.0)})
    run = Run(answering())
    await run.agents(10.0)
    assert 1.5 < run.seen.served["two"] / run.seen.served["one"] < 2.5


@pytest.mark.parametrize(("took", "missed"), [(19.2, 0), (21.0, 1)])
def test_the_page_of_limits_judges_the_worst_round(took: float, missed: int) -> None:
    results = {(each, subject): [outcome()] for each in limits_bench.SCENARIOS for subject in each.subjects}
    results[limits_bench.SCENARIOS[0], "gateway"] = [outcome(ended=29.0), outcome(ended=10.0 + took)]
    for scenario in limits_bench.SCENARIOS[1:]:
        results[scenario, "gateway"] = [outcome(ended=29.0)]
    page = "\n".join(map(str, limits_bench.tables(results, 2000)))
    assert page.count("**missed**") == missed


def test_the_page_of_priority_names_every_subject_and_what_was_missed() -> None:
    results = priority_bench.Results(
        high={(offered, each): [outcome()] for offered in priority_bench.offers(5000) for each in TITLES},
        agents={"gateway": [outcome(served={"careful": 10, "busy": 0, "greedy": 10, "greediest": 10})]},
    )
    tables = priority_bench.tables(results, 5000)
    text = paper.markdown("Title", head="Head.", machine="m", versions="v", tables=tables, method="Method.")
    assert text.count("**missed**") == 1
    assert text.count(TITLES["litellm_router"]) == 2


async def test_the_cost_of_order_and_of_many_that_wait_has_every_figure() -> None:
    found = await order(100)
    assert found.queue_us >= 0
    tables = cost_bench.tables(
        [Order(queue_us=10.0, limits_us=60.0)],
        {
            kind: [Flood(tickets=100, queued_s=1.0, stall_s=0.5, cancel_stall_s=0.5, bytes_a_ticket=1000.0)]
            for kind in cost_bench.FLOODS
        },
        limits_redis.Shared(reservations=4000.0, scripts=80.0, bare=2000.0),
    )
    assert str(tables).count("**missed**") == 2


@pytest.mark.parametrize("as_batch", [False, True])
async def test_a_flood_waits_and_ends_with_the_gateway(as_batch: bool) -> None:  # noqa: FBT001
    found = await flood(200, as_batch=as_batch)
    assert found.tickets == 200


def test_tokens_are_counted_by_characters() -> None:
    assert input_tokens("12345") == 2
