"""Simulations: a trace through the real gateway in virtual time, and what is found out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llm_gateway import (
    ConfigurationError,
    GatewayError,
    InvalidRequestError,
    LLMRequest,
    RequestPriority,
    UnknownModelError,
)
from llm_gateway.config import load_config
from llm_gateway.simulation import (
    Acceleration,
    Latency,
    LogNormal,
    SimulatedGateway,
    SimulationResult,
    TracedRequest,
    TraceReader,
    Trouble,
    read_trace,
    simulate,
)
from llm_gateway.simulation.analysis import slice_width
from llm_gateway.simulation.slices import Slices, united
from llm_gateway.simulation.trace import prompt_of, works_of
from llm_gateway.tokens import estimate_input

QUICK = Latency(first_token=LogNormal(0.1, 0.2), speed=1000.0)


def traced(at: float = 0.0, **given: Any) -> TracedRequest:
    sizes = {"model": "gpt-4o-mini", "input_tokens": 100, "output_tokens": 50, "max_tokens": 100}
    return TracedRequest(**{"at": at, **sizes, **given})


def every(seconds: float, number: int, **given: Any) -> list[TracedRequest]:
    return [traced(seconds * place, **given) for place in range(number)]


# --- what is found out ------------------------------------------------------------------------------------------


def test_traffic_below_the_limits_waits_for_nothing() -> None:
    result = simulate(every(2.0, 50), limits={"rpm": 60}, latency=QUICK)
    assert (result.requests, result.answered, result.calls, result.refused) == (50, 50, 50, 0)
    assert result.classes["normal"].wait.largest == 0.0
    assert result.waited == 0.0
    assert result.binding is None
    assert result.trace_duration == 98.0
    assert 98.1 < result.duration < 99.0


def test_a_flood_takes_as_long_as_the_limit_says_and_names_it() -> None:
    result = simulate(every(0.0, 300), limits={"rpm": 60, "tpm": 1_000_000}, latency=QUICK)
    assert result.answered == 300
    assert result.refused == 0
    assert result.duration == pytest.approx(300 / 0.99, rel=0.02)
    assert result.binding is not None
    assert (result.binding.owner, result.binding.key) == ("model 'gpt-4o-mini'", "rpm")
    assert result.binding.share == pytest.approx(0.99, abs=0.02)
    assert result.classes["normal"].wait.quantile(0.5) == pytest.approx(151, rel=0.05)


@pytest.mark.parametrize(
    ("limits", "config", "key"),
    [
        ({"rpm": 10_000, "tpm": 6000}, {}, "tpm"),
        ({"rpm": 10_000}, {"models": {"gpt-4o-mini": {"max_concurrency": 1}}}, "max_concurrency"),
        ({"rpd": 100}, {}, "rpd"),
    ],
)
def test_what_binds_is_what_is_used_up_while_requests_wait(
    limits: dict[str, int], config: dict[str, Any], key: str
) -> None:
    result = simulate(every(0.0, 120), config, limits=limits, latency=Latency(first_token=LogNormal(1, 1)))
    assert result.binding is not None
    assert result.binding.key == key
    assert sum(each.waited for each in result.limits) + result.paused == pytest.approx(result.waited)


def test_output_tokens_are_used_as_answers_are_produced() -> None:
    config = {"seed": 5, "models": {"claude-haiku": {"limits": {"itpm": 50_000, "otpm": 6000}}}}
    trace = every(0.5, 200, model="claude-haiku", output_tokens=100)
    uses = {each.key: each for each in simulate(trace, config, latency=QUICK).limits}
    assert uses["otpm"].used == pytest.approx(200 * 100)
    assert uses["itpm"].used == 200 * 100
    assert uses["otpm"].waited > uses["itpm"].waited == 0.0


def test_what_waits_because_of_an_outage_waits_for_no_limit() -> None:
    trouble = Trouble(kind="unavailable", start=10.0, end=200.0)
    result = simulate(every(1.0, 60), troubles=[trouble], latency=QUICK)
    assert set(result.errors) == {"unavailable"}
    assert result.calls == result.answered + result.errors.total()
    assert all(each.wait == 0.0 for each in result.endings[:10])
    assert result.binding is None
    assert result.paused > 0


def test_the_classes_wait_in_their_order() -> None:
    trace = [traced(0.0, priority=name) for name in ("low", "normal", "high") * 40]
    result = simulate(trace, limits={"rpm": 60}, latency=QUICK)
    high, normal, low = (result.classes[name].wait.quantile(0.5) or 0.0 for name in ("high", "normal", "low"))
    assert high < normal < low


def test_limits_that_the_gateway_was_told_wrongly_meet_429s_and_all_is_answered() -> None:
    config = {"models": {"gpt-4o-mini": {"limits": {"rpm": 120}}}}
    result = simulate(every(0.0, 100), config, limits={"rpm": 60}, latency=QUICK)
    assert result.refused > 0
    assert result.answered == 100
    assert sum(result.timeline.errors["rate_limit"]) == result.refused


def test_limits_that_nobody_told_are_learned_from_the_headers_or_from_the_429s() -> None:
    config: dict[str, Any] = {"models": {"gpt-4o-mini": {"limits": {}}}}
    told = simulate(every(0.0, 200), config, limits={"rpm": 120}, latency=QUICK)
    untold = simulate(every(0.0, 200), config, limits={"rpm": 120}, latency=QUICK, headers=False, hints=False)
    assert told.answered == untold.answered == 200
    assert told.refused < untold.refused
    assert told.duration < 150


def test_the_limits_of_an_account_bind_its_models_together() -> None:
    config = {"providers": {"anthropic": {"limits": {"rpm": 60}}}}
    trace = [traced(0.0, model=model) for model in ("claude-haiku", "claude-sonnet") * 30]
    result = simulate(trace, config, latency=QUICK)
    assert result.binding is not None
    assert (result.binding.owner, result.binding.used) == ("provider 'anthropic'", 60)
    assert result.answered == 60


def test_a_sudden_rise_that_the_provider_dislikes_meets_429s() -> None:
    result = simulate(every(0.01, 100), acceleration=Acceleration(floor=5), latency=QUICK)
    assert result.refused > 0
    assert result.answered == 100


def test_deadlines_and_full_queues_are_failures_by_their_kind() -> None:
    config = {"batching": {"max_queue_size": 10}, "models": {"gpt-4o-mini": {"max_concurrency": 1}}}
    slow = Latency(first_token=LogNormal(10, 10))
    late = simulate([traced(), traced(0.5, deadline=3.0)], config, latency=slow)
    assert late.failures == {"deadline": 1}
    assert [each.ended for each in late.endings][1] == 3.5
    full = simulate(every(0.1, 30), config, latency=slow)
    assert full.failures == {"queue_full": 19}


def test_requests_of_one_instant_enter_as_a_batch_that_waits_for_room() -> None:
    config = {"batching": {"max_queue_size": 10}}
    assert simulate(every(0.0, 200), config, limits={"rpm": 600}, latency=QUICK).answered == 200


def test_load_lets_the_same_requests_come_faster() -> None:
    calm, busy = (simulate(every(1.0, 120), limits={"rpm": 60}, latency=QUICK, load=load) for load in (0.5, 2.0))
    assert (calm.trace_duration, busy.trace_duration) == (238.0, 59.5)
    assert calm.waited == 0.0
    assert busy.waited > 1000


def test_answers_that_a_trace_times_itself_take_that_long() -> None:
    result = simulate([traced(0.0, latency=7.0)])
    assert result.duration == pytest.approx(7.0)


def test_the_same_arguments_give_the_same_result_and_another_seed_another() -> None:
    def run(seed: int) -> SimulationResult:
        trace = [TracedRequest(at=place * 0.3, model="gpt-4o-mini") for place in range(60)]
        return simulate(trace, limits={"rpm": 100, "tpm": 30_000}, seed=seed)

    assert run(1).as_dict() == run(1).as_dict()
    assert run(1).as_dict() != run(2).as_dict()


def test_costs_are_summed_where_prices_are_known_and_counted_where_not() -> None:
    trace = [traced(0.0), traced(1.0, model="local-llama")]
    result = simulate(trace, latency=QUICK)
    assert result.cost_usd == pytest.approx(100 * 0.15e-6 + 50 * 0.6e-6)
    assert result.unpriced == 1
    assert simulate(trace[1:], latency=QUICK).cost_usd is None


def test_a_result_is_plain_data_for_programs() -> None:
    told = simulate(every(0.0, 90), limits={"rpm": 60}, latency=QUICK).as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["binding"] == {"owner": "model 'gpt-4o-mini'", "key": "rpm"}
    assert told["wait"]["normal"]["answered"] == 90


def test_no_journal_is_written_and_no_key_is_needed(tmp_path: Path) -> None:
    simulate([traced(model="claude-haiku")])
    assert not list(tmp_path.iterdir())


def test_no_store_is_asked_and_prompts_of_one_size_share_no_call() -> None:
    config = {"limits": {"redis_url": "redis://nowhere.invalid:1/0"}, "coalesce": True}
    assert simulate(every(0.0, 3), config, limits={"rpm": 600}, latency=QUICK).calls == 3


def test_an_hour_with_thousands_of_requests_obeys_the_limit_in_every_minute() -> None:
    trace = [traced(place * 0.9, priority=1 + place % 3, agent=f"a{place % 7}") for place in range(1000)]
    result = simulate(trace, limits={"rpm": 60, "tpm": 20_000}, latency=Latency())
    begun = sorted(call.began for call in result.ledger if call.status == 200)
    assert result.refused == 0
    assert max(sum(at <= each < at + 60 for each in begun) for at in begun[::10]) <= 61


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"trace": []}, ConfigurationError, "There is no request in the trace"),
        ({"trace": [traced()], "limits": {"rpm": 0}}, ConfigurationError, r"^limits\.rpm: 0 is wrong"),
        ({"trace": [traced()], "limits": {"rps": 5}}, ConfigurationError, r"^limits\.rps: unknown; did you mean"),
        ({"trace": [traced(model="gpt-5000")]}, UnknownModelError, "'gpt-5000' is not configured"),
        ({"trace": [traced()], "config": {"modles": {}}}, ConfigurationError, "modles: unknown"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(
    arguments: dict[str, Any], error: type[GatewayError], words: str
) -> None:
    with pytest.raises(error, match=words):
        simulate(**arguments)


async def test_within_an_event_loop_it_says_what_to_do_instead() -> None:
    with pytest.raises(GatewayError, match=r"await asyncio\.to_thread\(simulate, …\) instead"):
        simulate([traced()])
    assert (await asyncio.to_thread(simulate, [traced()])).answered == 1


def test_a_bug_is_not_taken_for_a_failed_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: object, _request: LLMRequest) -> None:
        raise ZeroDivisionError

    async def broken_batch(_self: object, requests: list[LLMRequest], **_options: object) -> list[BaseException]:
        return [ZeroDivisionError() for _ in requests]

    monkeypatch.setattr(SimulatedGateway, "request", broken)
    monkeypatch.setattr(SimulatedGateway, "batch", broken_batch)
    for trace in ([traced()], every(0.0, 2)):
        with pytest.raises(ExceptionGroup) as raised:
            simulate(trace)
        assert raised.group_contains(ZeroDivisionError)


# --- traces -----------------------------------------------------------------------------------------------------


def reader_of(*lines: object, **options: Any) -> TraceReader:
    reader = TraceReader(**options)
    for number, line in enumerate(lines, start=1):
        reader.feed("t.jsonl", number, line if isinstance(line, bytes) or line is None else json.dumps(line).encode())
    return reader


def item(at: str, **given: Any) -> dict[str, Any]:
    line = {"ts": at, "event": "item_done", "model": "m", "priority": "high", "outcome": "ok", "attempt": 1}
    return {**line, "queue_wait": 0.5, "provider_time": 1.5, "input_tokens": 10, "output_tokens": 5, **given}


def test_a_line_of_a_trace_is_a_request_with_what_it_leaves_out_left_open() -> None:
    reader = reader_of({"at": 2, "model": "m", "priority": "Low"}, b"  ", {"at": 0.5, "model": "n", "agent": "a"})
    first, second = reader.trace()
    assert (first.at, first.agent, first.priority) == (0.5, "a", RequestPriority.NORMAL)
    assert (second.priority, second.input_tokens, second.output_tokens) == (RequestPriority.LOW, None, None)


def test_of_a_journal_the_ends_of_requests_count_and_the_first_comes_at_the_beginning() -> None:
    reader = reader_of(
        {"ts": "2026-11-22T12:00:00.000000Z", "event": "batch_opened"},
        item("2026-11-22T12:00:12.000000Z", attempt=2),
        item("2026-11-22T12:00:02.000000Z", agent="a"),
        item("2026-11-22T12:00:22.000000Z", outcome="timeout", output_tokens=0, input_tokens=0),
    )
    one, two, three = reader.trace()
    assert [each.at for each in (one, two, three)] == [0.0, 10.0, 20.0]
    assert (one.agent, one.latency, one.input_tokens, one.output_tokens) == ("a", 1.5, 10, 5)
    assert (two.latency, two.output_tokens) == (None, 5)
    assert (three.latency, three.input_tokens, three.output_tokens) == (None, None, None)


def test_what_no_limit_of_calls_holds_up_is_no_part_of_a_trace() -> None:
    reader = reader_of(
        item("2026-11-22T12:00:02.000000Z"),
        item("2026-11-22T12:00:03.000000Z", cached=True),
        item("2026-11-22T14:00:00.000000Z", price_lane="batch", provider_time=7000.0),
        item("2026-11-22T12:00:04.000000Z", price_lane="flex"),
    )
    assert [each.at for each in reader.trace()] == [0.0, 2.0]


def test_malformed_lines_are_told_by_their_number_and_harm_no_other() -> None:
    reader = reader_of(
        b"nonsense",
        [1],
        {"at": -1, "model": "m"},
        {"at": 1, "model": "m", "priorty": 1},
        {"at": 1},
        item("yesterday"),
        {"event": "item_done"},
        None,
        {"at": 1, "model": "m"},
    )
    assert [each.line for each in reader.malformed] == [1, 2, 3, 4, 5, 6, 7, 8]
    words = [each.reason for each in reader.malformed]
    assert words[0].startswith("not JSON: ")
    assert words[3] == "priorty: unknown; did you mean 'priority'?"
    assert words[4] == "the line names no model; add one to it, or give --model."
    assert words[5].startswith("not a line of a journal (")
    assert words[7] == "the line is too long."
    assert len(reader.trace()) == 1


def test_a_model_given_for_all_holds_for_every_line_and_one_that_is_unknown_is_told() -> None:
    config = load_config({})
    named = reader_of({"at": 0, "model": "m"}, item("2026-11-22T12:00:02Z"), model="claude-haiku", check=config.model)
    assert {each.model for each in named.trace()} == {"claude-haiku"}
    assert [each.model for each in reader_of({"at": 0}, default_model="x").trace()] == ["x"]
    wrong = reader_of({"at": 0, "model": "claude-haiko"}, check=config.model)
    assert "did you mean 'claude-haiku'?" in wrong.malformed[0].reason


def test_a_file_is_read_whole_or_told_by_its_first_wrong_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at": 0, "model": "m"}\n{"at": 1}\n')
    with pytest.raises(InvalidRequestError, match=r"trace\.jsonl, line 2: the line names no model"):
        read_trace(path)
    assert len(read_trace(path, model="m")) == 2
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="There is no request in"):
        read_trace(path)


@pytest.mark.parametrize("tokens", [0, 1, 8, 100, 777, 5000, 123_456])
def test_a_prompt_has_about_the_tokens_that_it_should(tokens: int) -> None:
    request = LLMRequest(model="m", messages=prompt_of(tokens))
    assert estimate_input(request) == pytest.approx(max(7, tokens), rel=0.025, abs=1)


def test_sizes_that_are_left_out_are_drawn_from_those_of_the_same_model() -> None:
    known = [traced(input_tokens=size, output_tokens=size) for size in (10, 20, 30)]
    open_ones = [TracedRequest(at=1.0, model="gpt-4o-mini")] * 20
    works = works_of([*known, *open_ones, TracedRequest(at=2.0, model="other")], None, seed=1)
    assert {each.input_tokens for each in works[3:-1]} == {each.output_tokens for each in works[3:-1]} == {10, 20, 30}
    assert works[-1].output_tokens not in {10, 20, 30}


# --- slices of time ---------------------------------------------------------------------------------------------


def test_spans_are_shared_out_over_the_slices_that_they_cover() -> None:
    slices = Slices(2.0, 5)
    slices.add_span(1.0, 7.5)
    slices.add_span(8.5, 9.0)
    slices.add(9.9)
    slices.add(50.0)
    assert slices.sums() == [1.0, 2.0, 2.0, 1.5, 2.5]


def test_spans_that_overlap_are_united() -> None:
    assert united([(4, 5), (0, 2), (1, 3), (1, 2), (3, 3.5)]) == [(0, 3.5), (4, 5)]


@pytest.mark.parametrize(
    ("duration", "width"), [(0.0, 0.1), (11.0, 0.1), (12.0, 0.5), (3600.0, 60), (86_400.0, 900), (4e7, 345_600)]
)
def test_a_plot_has_at_most_120_slices(duration: float, width: float) -> None:
    assert slice_width(duration) == width
