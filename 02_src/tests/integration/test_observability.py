"""What operators see, with the programs they use, and that no key and no text is in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from fakes.emulator import Emulator, Reply
from fakes.prometheus import Prometheus, promtool
from llm_gateway import LLMGateway, LLMMessage, LLMRequest, RequestRejectedError
from llm_gateway.integrations.logging import GatewayLog
from llm_gateway.integrations.opentelemetry import GatewayTelemetry
from llm_gateway.integrations.prometheus import GatewayMetrics

FILES = Path(__file__).parents[3] / "00_docs" / "how-to" / "observability"
KEY = "sk-canary-51f0c3d7"
PROMPT = "the canary prompt 6502"
ANSWER = "the canary answer 68000"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [
    target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


def request(model: str = "gpt-4o-mini", **fields: Any) -> LLMRequest:
    return LLMRequest(model=model, messages=[LLMMessage(role="user", content=PROMPT)], **fields)


def gateway_at(emulator: Emulator, *observers: Any, text: bool = False, **limits: int) -> LLMGateway:
    config = {
        "providers": {"openai": {"base_url": f"{emulator.url}/v1", "api_key": KEY}},
        "models": {"gpt-4o-mini": {"limits": limits, "max_tokens": 100}} if limits else {},
        "budgets": {"total": 100.0} if limits else {},
        "logs": {"dir": False, "text": text},
        "retry": {"base_delay": 0.0},
    }
    return LLMGateway(config, observers=observers)


async def test_prometheus_scrapes_a_gateway_and_every_panel_and_alert_works(emulator: Emulator, tmp_path: Path) -> None:
    emulator.script(Reply(status=429, error={"message": "slow down"}, headers={"retry-after": "0"}))
    metrics = GatewayMetrics()
    gateway = gateway_at(emulator, metrics, rpm=60_000, tpm=6_000_000)
    metrics.watch(gateway)
    with metrics.serve(0) as server:
        async with (
            gateway,
            Prometheus.scraping(server.port, rules=FILES / "alerts.yml", folder=tmp_path) as prometheus,
        ):
            await gateway.batch([request(agent=name) for name in ("writer", "writer", "reader")])
            await prometheus.becomes('llm_gateway_requests_total{model="gpt-4o-mini",outcome="ok"}', 3)
            assert await prometheus.value("llm_gateway_attempts_total") == 4
            assert await prometheus.value('llm_gateway_attempt_errors_total{kind="rate_limit"}') == 1
            assert await prometheus.value('count(llm_gateway_tokens_total{type="output"})') == 2
            assert await prometheus.value('llm_gateway_limit_used_permits_total{limit="requests"}') == 4
            assert await prometheus.value('llm_gateway_queued_requests{priority="high"}') == 0
            spent = await prometheus.value('llm_gateway_budget_spent_dollars{budget="the gateway"}')
            assert spent == await prometheus.value("sum(llm_gateway_cost_dollars_total)") > 0
            assert [event async for event in gateway.stream(request())]
            # A rate needs two scrapes of the series that came last.
            await prometheus.becomes("count(rate(llm_gateway_time_to_first_token_seconds_count[1m]))", 1)
            assert await prometheus.value("llm_gateway_time_to_first_token_seconds_count") == 1
            for expression in EXPRESSIONS:
                assert await prometheus.found(expression)
            rules = await prometheus.rules()
            assert len(rules) == 10
            assert {rule["health"] for rule in rules} == {"ok"}


async def test_promtool_accepts_the_metrics(emulator: Emulator) -> None:
    metrics = GatewayMetrics()
    async with gateway_at(emulator, metrics, rpm=60_000) as gateway:
        metrics.watch(gateway)
        await gateway.request(request(agent="writer"))
        text = generate_latest(metrics.registry).decode()
    assert "llm_gateway_cost_dollars_total" in text
    assert await promtool("check", "metrics", given=text) == ""


async def test_promtool_accepts_the_alerts_and_the_configuration() -> None:
    assert "10 rules found" in await promtool("check", "rules", "--lint-fatal", FILES / "alerts.yml")
    assert "SUCCESS" in await promtool("check", "config", FILES / "prometheus.yml")


def case(series: dict[str, str], alert: str, at: str, summary: str, **labels: str) -> dict[str, Any]:
    """A test of promtool: at an instant of these series exactly one alert fires."""
    fires = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"alertname": alert, "eval_time": "1m", "exp_alerts": []},
            {"alertname": alert, "eval_time": at, "exp_alerts": [fires]},
        ],
    }


OK, FAILED = ('llm_gateway_requests_total{model="m",outcome="' + outcome + '"}' for outcome in ("ok", "timeout"))
IN_5, IN_10, AT_ALL = (
    'llm_gateway_queue_wait_seconds_bucket{model="m",priority="high",le="' + bound + '"}'
    for bound in ("5.0", "10.0", "+Inf")
)
LIMIT = '{model="m",deployment="p/m",limit="tokens"}'
ALERTS = [
    case(
        {'up{job="llm-gateway",instance="a:1"}': "1 0x9"},
        "LLMGatewayDown",
        "5m",
        "a:1 is not there to be scraped.",
        severity="critical",
        job="llm-gateway",
        instance="a:1",
    ),
    case(
        {OK: "0+90x20", FAILED: "0+10x20"},
        "LLMRequestsFail",
        "15m",
        "10% of the requests to m fail.",
        severity="critical",
        model="m",
    ),
    case(
        {IN_5: "0x20", IN_10: "0+60x20", AT_ALL: "0+60x20"},
        "LLMUsersWait",
        "15m",
        "One in twenty HIGH requests to m waits longer than 9.75s.",
        severity="warning",
        model="m",
    ),
    case(
        {'llm_gateway_queued_requests{instance="a:1",priority="low"}': "0+100x40"},
        "LLMQueueGrows",
        "30m",
        "3000 requests of class low wait at a:1, and more every minute.",
        severity="warning",
        instance="a:1",
        priority="low",
    ),
    case(
        {
            'llm_gateway_attempt_errors_total{deployment="p/m",kind="rate_limit"}': "0+5x30",
            'llm_gateway_attempts_total{deployment="p/m"}': "0+100x30",
        },
        "LLMProviderThrottles",
        "20m",
        "5% of the calls to p/m get a 429: its real limits are lower than those in the configuration, or somebody "
        "else uses the account.",
        severity="warning",
        deployment="p/m",
    ),
    case(
        {'llm_gateway_gate_shut_seconds{model="m",deployment="p/m"}': "0 0 0 30x10"},
        "LLMGateStaysShut",
        "9m",
        "p/m was not called for five minutes, since its provider asked to wait.",
        severity="warning",
        model="m",
        deployment="p/m",
    ),
    case(
        {'llm_gateway_breaker_state{model="m",deployment="p/m",state="closed"}': "1 1 0x9"},
        "LLMBreakerIsOpen",
        "5m",
        "Most calls to p/m fail, so none is made but a probe now and then.",
        severity="critical",
        model="m",
        deployment="p/m",
        state="closed",
    ),
    case(
        {OK: "0+60x30", 'llm_gateway_retries_total{model="m",kind="timeout"}': "0+60x30"},
        "LLMRetriesPile",
        "20m",
        "m needs 1 retries a request.",
        severity="warning",
        model="m",
    ),
    case(
        {
            f"llm_gateway_limit_used_permits_total{LIMIT}": "0+60x90",
            f"llm_gateway_limit_permits_per_second{LIMIT}": "1x90",
        },
        "LLMLimitIsUsedUp",
        "60m",
        "The limit tokens of p/m is used to 100%: ask for more, or move work to another model.",
        severity="info",
        model="m",
        deployment="p/m",
        limit="tokens",
    ),
    case(
        {'llm_gateway_cost_dollars_total{model="m",agent=""}': "0+1x90"},
        "LLMSpendIsHigh",
        "80m",
        "60 dollars in the last hour.",
        severity="warning",
    ),
]


async def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "alerts_test.yml"
    path.write_text(json.dumps({"rule_files": [str(FILES / "alerts.yml")], "tests": ALERTS}))  # JSON is YAML
    assert "SUCCESS" in await promtool("test", "rules", path)


async def everything_told(emulator: Emulator, caplog: pytest.LogCaptureFixture, *, text: bool) -> dict[str, str]:
    """Ask, be answered and be refused; return what each observer told of it."""
    caplog.set_level(logging.DEBUG)
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    spans, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    repeats = {"message": f"Invalid prompt: '{PROMPT}' with key {KEY}"}
    emulator.script(Reply(text=ANSWER), Reply(status=500, error=repeats), Reply(status=400, error=repeats))
    metrics = GatewayMetrics()
    telemetry = GatewayTelemetry(tracer_provider=spans, meter_provider=meters, with_text=text)
    log = GatewayLog(logging.getLogger("operators"), with_text=text)
    async with gateway_at(emulator, metrics, telemetry, log, text=True) as gateway:
        metrics.watch(gateway)
        assert (await gateway.request(request())).content == ANSWER
        with pytest.raises(RequestRejectedError):
            await gateway.request(request())
        scraped = generate_latest(metrics.registry).decode()
    measured = reader.get_metrics_data()
    assert measured is not None
    lines = [record for record in caplog.records if record.name == "operators"]
    return {
        "spans": "".join(span.to_json() for span in exporter.get_finished_spans()),
        "scraped": scraped,
        "measured": measured.to_json(),
        "log": "".join(f"{record.getMessage()} {vars(record)}" for record in lines),
    }


async def test_spans_metrics_and_logs_hold_no_key_and_no_text(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    told = await everything_told(emulator, caplog, text=False)
    assert "rejected" in told["spans"]
    assert 'outcome="rejected"' in told["scraped"]
    assert "rejected" in told["measured"]
    assert "outcome=rejected" in told["log"]
    for where, text in told.items():
        for planted in (KEY, PROMPT, ANSWER):
            assert planted not in text, where


async def test_texts_are_in_spans_and_logs_where_they_are_asked_for_and_keys_never(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    told = await everything_told(emulator, caplog, text=True)
    for where, text in told.items():
        assert (PROMPT in text) is (ANSWER in text) is (where in {"spans", "log"}), where
        assert KEY not in text, where
