"""Quantiles are near the exact ones, and counting apart and adding up is counting together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.stats import RELATIVE_ERROR, SMALLEST, Durations

seconds = st.floats(0, 1e6, allow_nan=False) | st.floats(1e-5, 100.0)
shares = st.floats(0, 1)


def counted(values: list[float]) -> Durations:
    durations = Durations()
    for value in values:
        durations.add(value)
    return durations


@given(values=st.lists(seconds, min_size=1, max_size=300), share=shares)
def test_a_quantile_is_within_one_percent_of_the_exact_one(values: list[float], share: float) -> None:
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    assert counted(values).quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9, abs=SMALLEST)


@given(values=st.lists(seconds, min_size=1), first=shares, second=shares)
def test_quantiles_rise_with_their_share_and_stay_within_what_was_seen(
    values: list[float], first: float, second: float
) -> None:
    durations = counted(values)
    low, high = durations.quantile(min(first, second)), durations.quantile(max(first, second))
    assert low is not None
    assert high is not None
    assert min(values) <= low <= high <= max(values)


@given(one=st.lists(seconds), other=st.lists(seconds), share=shares)
def test_merging_equals_counting_everything_in_one(one: list[float], other: list[float], share: float) -> None:
    merged, together = counted(one), counted(one + other)
    merged.merge(counted(other))
    assert merged.buckets == together.buckets
    assert merged.quantile(share) == together.quantile(share)
    assert merged.summary() == {**together.summary(), "mean": pytest.approx(together.summary()["mean"])}
