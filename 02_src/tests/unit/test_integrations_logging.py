from __future__ import annotations

import logging
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from fakes.provider import FakeProvider, ask, gateway_over, rate_limited, unavailable
from llm_gateway import LLMMessage, LLMRequest, ProviderUnavailableError, RequestPriority
from llm_gateway.integrations.logging import GatewayLog

WITH_TEXT = {"dir": False, "text": True}


def one(name: str, records: list[logging.LogRecord]) -> logging.LogRecord:
    (found,) = [record for record in records if record.getMessage().partition(" ")[0] == name]
    return found


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields = vars(record)["llm_gateway"]
    assert isinstance(fields, dict)
    return fields


async def test_each_event_is_a_line_of_the_standard_library_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_gateway.events")
    async with gateway_over(FakeProvider(), observers=[GatewayLog()]) as gateway:
        await gateway.request(ask("a", RequestPriority.HIGH).model_copy(update={"agent": "the\nwriter"}))
    done = one("item_done", caplog.records)
    assert (done.name, done.levelno) == ("llm_gateway.events", logging.INFO)
    assert r"request_id=a " in done.getMessage()
    assert r"agent='the\nwriter'" in done.getMessage()
    fields = fields_of(done)
    assert fields["event"] == "item_done"
    assert (fields["priority"], fields["outcome"], fields["input_tokens"]) == ("high", "ok", 10)
    assert fields["provider_time"] == 1.0
    assert "prompt" not in fields
    closed = one("batch_closed", caplog.records)
    assert closed.levelno == logging.DEBUG
    assert fields_of(closed)["classes"] == {"high": 1}


async def test_failures_are_warnings_and_retries_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("application.llm")
    provider = FakeProvider(script=[rate_limited(), unavailable()])
    async with gateway_over(provider, observers=[GatewayLog(logger)], retry={"max_attempts": 1}) as gateway:
        with pytest.raises(ProviderUnavailableError):
            await gateway.request(ask("a"))
    told = [(record.getMessage().partition(" ")[0], record.levelname) for record in caplog.records]
    assert told == [
        ("error", "WARNING"),
        ("retry_scheduled", "INFO"),
        ("error", "WARNING"),
        ("item_done", "WARNING"),
        ("shutdown_began", "INFO"),
        ("shutdown", "INFO"),
    ]
    assert {record.name for record in caplog.records} == {"application.llm"}


async def test_a_logger_that_takes_no_such_level_costs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "llm_gateway.events")
    async with gateway_over(FakeProvider(), observers=[GatewayLog()]) as gateway:
        await gateway.request(ask("a"))
    assert not caplog.records


async def test_structlog_gets_the_events_name_and_its_fields() -> None:
    with capture_logs() as lines:
        observer = GatewayLog(structlog.get_logger())
        async with gateway_over(FakeProvider(), observers=[observer]) as gateway:
            await gateway.request(ask("a"))
    (done,) = [line for line in lines if line["event"] == "item_done"]
    assert (done["log_level"], done["request_id"], done["outcome"]) == ("info", "a", "ok")
    assert (done["output_tokens"], done["priority"]) == (5, "normal")
    assert {line["event"] for line in lines} >= {"request_queued", "batch_opened", "batch_closed", "attempt_began"}


@pytest.mark.parametrize("with_text", [False, True])
async def test_texts_are_logged_only_where_they_are_asked_for(with_text: bool) -> None:  # noqa: FBT001
    request = LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content="the canary prompt")])
    provider = FakeProvider(script=[unavailable(), "the canary answer"])
    with capture_logs() as lines:
        observer = GatewayLog(structlog.get_logger(), with_text=with_text)
        async with gateway_over(provider, observers=[observer], logs=WITH_TEXT) as gateway:
            await gateway.request(request)
    assert ("the canary prompt" in str(lines)) is with_text
    assert ("the canary answer" in str(lines)) is with_text
    (error,) = [line for line in lines if line["event"] == "error"]
    assert error.get("message") == ("down" if with_text else None)
