"""Every known format of rate-limit headers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llm_gateway.limits import Resource, Standing, read_standings

OPENAI = {
    "X-RateLimit-Limit-Requests": "5000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-limit-tokens": "800000",
    "x-ratelimit-remaining-tokens": "799000",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "date": "Sun, 01 Mar 2026 12:00:00 GMT",
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:01Z",
    "anthropic-ratelimit-input-tokens-limit": "50000",
    "anthropic-ratelimit-input-tokens-remaining": "49000",
    "anthropic-ratelimit-input-tokens-reset": "2026-03-01T12:00:02Z",
    "anthropic-ratelimit-output-tokens-limit": "10000",
    "anthropic-ratelimit-output-tokens-remaining": "10000",
    "anthropic-ratelimit-output-tokens-reset": "2026-03-01T12:00:00Z",
    "anthropic-ratelimit-tokens-limit": "60000",
    "anthropic-ratelimit-tokens-remaining": "59000",
    "anthropic-ratelimit-tokens-reset": "2026-03-01T12:00:02Z",
}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_openais_headers_are_read() -> None:
    assert read_standings(OPENAI) == {
        "requests": Standing(5000, 4999, 0.012),
        "tokens": Standing(800_000, 799_000, 360.0),
    }


def test_anthropics_headers_are_read_and_their_instants_measured_from_the_answers_own_date() -> None:
    assert read_standings(ANTHROPIC) == {
        "requests": Standing(50, 49, 1.0),
        "input_tokens": Standing(50_000, 49_000, 2.0),
        "output_tokens": Standing(10_000, 10_000, 0.0),
        "tokens": Standing(60_000, 59_000, 2.0),
    }


def test_an_instant_without_a_date_is_measured_from_the_wall_clock_or_not_at_all() -> None:
    headers = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:30"}
    assert read_standings(headers, wall=NOON)["requests"].reset == 30.0
    assert read_standings(headers)["requests"] == Standing(limit=50)


@pytest.mark.parametrize("date", ["Sun, 01 Mar 2026 12:00:00 -0000", "Sun, 01 Mar 2026 12:00:00 GMT"])
def test_dates_with_and_without_a_zone_are_read(date: str) -> None:
    headers = {"Date": date, "x-ratelimit-reset": "1772366410", "x-ratelimit-limit": "9"}
    assert read_standings(headers)["requests"].reset == 10.0


def test_an_instant_in_the_past_is_now() -> None:
    headers = {"x-ratelimit-limit-requests": "9", "x-ratelimit-reset-requests": "2026-03-01T11:00:00Z"}
    assert read_standings(headers, wall=NOON)["requests"].reset == 0.0


@pytest.mark.parametrize(
    ("headers", "resource", "standing"),
    [
        ({"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "7"}, "requests", Standing(100, 7)),
        ({"x-ratelimit-limit": "60", "x-ratelimit-reset": "30"}, "requests", Standing(60, None, 30.0)),
        ({"x-ratelimit-limit-tokens-minute": "9000"}, "tokens", Standing(9000)),
        ({"x-ratelimit-limit-requests-day": "9000"}, "requests_per_day", Standing(9000)),
        ({"x-ratelimit-limit-tokens-prompt": "9000"}, "input_tokens", Standing(9000)),
        ({"x-ratelimit-limit-tokens-generated": "9000"}, "output_tokens", Standing(9000)),
    ],
)
def test_other_providers_headers_are_read(headers: dict[str, str], resource: Resource, standing: Standing) -> None:
    assert read_standings(headers) == {resource: standing}


def test_a_limit_that_flows_back_over_a_day_is_a_days() -> None:
    headers = {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "8.64s",
    }
    assert read_standings(headers) == {"requests_per_day": Standing(10_000, 9999, 8.64)}


def test_a_days_limit_of_tokens_is_left_out() -> None:
    assert read_standings({"x-ratelimit-limit-tokens-day": "1000000"}) == {}


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "", "soon", "1e300", "9" * 100])
def test_azures_minus_one_and_garbage_say_nothing(value: str) -> None:
    names = [f"x-ratelimit-{figure}-requests" for figure in ("limit", "remaining", "reset")]
    assert read_standings(dict.fromkeys(names, value)) == {}


def test_a_limit_of_nothing_is_no_limit() -> None:
    headers = {"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0"}
    assert read_standings(headers) == {"requests": Standing(None, 0.0)}


def test_other_headers_and_other_kinds_of_limits_are_ignored() -> None:
    headers = {"content-type": "text/plain", "x-ratelimit-limit-dollars": "5", "x-ratelimit-limit-images": "5"}
    assert read_standings(headers) == {}


def test_a_date_that_is_none_is_as_good_as_missing() -> None:
    headers = {"date": "yesterday", "x-ratelimit-reset-requests": "2026-03-01T12:00:30Z"}
    assert read_standings(headers, wall=NOON)["requests"].reset == 30.0


def test_values_that_are_no_text_are_ignored() -> None:
    headers: dict[str, str] = {"x-ratelimit-limit-requests": 5}  # type: ignore[dict-item]
    assert read_standings(headers) == {}
