from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.clients.hints import retry_after, should_retry

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:59:30 GMT"}, None),
        ({"retry-after": "Thu, 99 Jan 2026 11:59:30 GMT"}, None),
    ],
)
def test_a_pause_is_read_from_every_known_form(headers: dict[str, str], wait: float | None) -> None:
    assert retry_after(headers, lambda: NOON) == wait


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry"]), st.text(max_size=40)))
def test_garbage_never_raises_and_never_gives_a_senseless_pause(headers: dict[str, str]) -> None:
    wait = retry_after(headers, lambda: NOON)
    assert wait is None or (math.isfinite(wait) and wait >= 0)
    assert should_retry(headers) in {True, False, None}


def test_the_providers_own_word_is_read_whatever_its_case() -> None:
    words = ["true", "False", "perhaps"]
    assert [should_retry({"x-should-retry": word}) for word in words] == [True, False, None]
