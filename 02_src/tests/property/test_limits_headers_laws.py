"""Whatever a provider writes into its headers: nothing is raised, and nothing is loosened."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gateway.config import LimitSettings
from llm_gateway.errors import RequestTooLargeError
from llm_gateway.limits import Pace, Reservation, Resource, Standing, read_standings
from llm_gateway.limits.headers import LARGEST
from llm_gateway.tokens import Cost

WALL = datetime(2026, 3, 1, 12, tzinfo=UTC)
FIGURES = ("limit", "remaining", "reset")
RESOURCES = ("requests", "tokens", "input-tokens", "output-tokens", "tokens-minute", "requests-day")
names = (
    st.tuples(st.sampled_from(FIGURES), st.sampled_from(RESOURCES)).map(lambda pair: f"x-ratelimit-{pair[0]}-{pair[1]}")
    | st.tuples(st.sampled_from(RESOURCES), st.sampled_from(FIGURES)).map(
        lambda pair: f"Anthropic-RateLimit-{pair[0]}-{pair[1]}"
    )
    | st.sampled_from([f"{prefix}ratelimit-{each}" for prefix in ("", "x-") for each in FIGURES])
    | st.just("date")
    | st.text(max_size=40)
)
FULLWIDTH_SIX = chr(0xFF16)
NUMBERS = ["-1", "nan", "inf", "-inf", "1e999", "0", "1e12", "1e13", "0x10", "1_000", FULLWIDTH_SIX, "1772366400"]
TIMES = [
    "6m0s",
    "20ms",
    "1h2m3.5s",
    "1s1",
    "s",
    "-5s",
    "999999999999d",
    "2026-03-01T12:00:30Z",
    "9999-12-31T23:59:59Z",
    "2026-03-01",
]
OTHERS = [
    "",
    " ",
    "9" * 400,
    "100, 100;w=60",
    "0001-01-01T00:00:00+23:59",
    "Sun, 01 Mar 2026 12:00:00 GMT",
    "Sun, 99 Mar",
]
garbage = st.sampled_from([*NUMBERS, *TIMES, *OTHERS])
values = garbage | st.text(max_size=80) | st.integers().map(str) | st.floats().map(str)
headers = st.dictionaries(names, values, max_size=12)


@given(told=headers)
@settings(max_examples=400)
def test_no_header_raises_and_every_figure_makes_sense(told: dict[str, str]) -> None:
    for standing in read_standings(told, wall=WALL).values():
        figures = (standing.limit, standing.remaining, standing.reset)
        assert any(figure is not None for figure in figures)
        assert all(figure is None or (math.isfinite(figure) and 0 <= figure <= LARGEST * 1.1) for figure in figures)
        assert standing.limit is None or standing.limit >= 1


@given(answers=st.lists(headers, max_size=6))
@settings(max_examples=200)
def test_headers_never_loosen_configured_limits_or_raise_a_level(answers: list[dict[str, str]]) -> None:
    pace = Pace(LimitSettings(rpm=600, tpm=60_000), "actual", now=0.0, name="model 'm'")
    start = pace.limiter.levels(0.0)
    for number, told in enumerate(answers):
        now = number * 0.01
        try:
            reservation = pace.reserve(Cost(1.0, 1.0, 1.0, 2.0), now)
        except RequestTooLargeError:  # a provider may tell a limit that nothing fits
            break
        if not isinstance(reservation, Reservation):
            continue
        before = pace.limiter.levels(now)
        pace.answered(reservation, Cost(1.0, 1.0, 1.0, 2.0), now, read_standings(told, wall=WALL))
        after = pace.limiter.levels(now)
        assert all(after[each].level <= before[each].level + 1e-9 for each in before)
        assert all(after[each].rate <= start[each].rate for each in start)


figure = st.none() | st.floats(1, LARGEST)


@given(told=st.dictionaries(st.sampled_from(["requests", "tokens"]), st.builds(Standing, figure, figure, figure)))
def test_where_nothing_is_known_a_told_limit_is_used_at_its_safe_share(told: dict[Resource, Standing]) -> None:
    pace = Pace(LimitSettings(), "actual", now=0.0, name="model 'm'")
    reservation = pace.reserve(Cost(), 0.0)
    assert isinstance(reservation, Reservation)
    pace.answered(reservation, Cost(), 0.0, told)
    for resource, standing in told.items():
        if standing.limit is not None:
            assert pace.limiter.levels(0.0)[resource].rate <= 0.99 * standing.limit / 60 * (1 + 1e-9)
