"""Which rows of the input are taken in, and which of them are leased with that."""

from __future__ import annotations

import pytest

from llm_gateway.errors import ConfigurationError
from llm_gateway.jobs import claims
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.claims import Claims
from llm_gateway.jobs.lanes import Lane, Window
from llm_gateway.jobs.records import NewRow


class Lanes(dict[str, Lane]):
    """Lanes that are opened as they are needed, each with room for three rows."""

    def open(self, model: str) -> Lane:
        lane = self[model] = Lane(Window(3, 2))
        return lane

    def claims(self, *, later: str = "", asks: bool = True, takes_all: bool = False) -> Claims:
        return Claims(self, self.open, is_soon=lambda model: model != later, asks=asks, takes_all=takes_all)


def rows(models: str) -> list[NewRow]:
    """Make a row for each letter; a dot is one that cannot be asked."""
    refused = failure_of(ValueError("no"))
    return [
        NewRow(number=number, key=f"k{number}", form="f", failure=refused)
        if model == "."
        else NewRow(number=number, key=f"k{number}", form="f", model=model)
        for number, model in enumerate(models, 1)
    ]


def claimed(found: Claims, models: str, *, stalled: bool = False) -> tuple[int, list[int]]:
    """Return how many rows are taken in, and the numbers of those that are leased."""
    new = rows(models)
    return found.claim(new, stalled=stalled), [row.number for row in new if row.leased]


def test_rows_are_leased_while_there_is_room_and_no_more_are_taken_in() -> None:
    lanes = Lanes()
    assert claimed(lanes.claims(), "a.aaaaa") == (4, [1, 3, 4])
    assert lanes["a"].leased == 3
    assert claimed(lanes.claims(), "aa") == (0, [])
    lanes["a"].leased -= 1
    assert claimed(lanes.claims(), "aa") == (1, [1])


def test_rows_of_a_full_model_wait_in_the_store_while_another_needs_some() -> None:
    lanes = Lanes()
    lanes.open("b")
    assert claimed(lanes.claims(), "aaaaabbbbb") == (8, [1, 2, 3, 6, 7, 8])


def test_nothing_is_leased_before_rows_that_wait() -> None:
    lanes = Lanes()
    lanes.open("a").pending = 1
    assert claimed(lanes.claims(), "aaa") == (3, [])


def test_nothing_is_leased_of_a_model_that_cannot_be_asked_now() -> None:
    lanes = Lanes()
    lanes.open("a").blocked = ConfigurationError("no key")
    assert claimed(lanes.claims(), "aab") == (3, [3])
    assert claimed(lanes.claims(later="c"), "ccb") == (3, [3])
    assert claimed(lanes.claims(asks=False, takes_all=True), "b" * 5) == (5, [])


def test_who_shares_a_job_takes_all_rows_in_and_leases_what_it_has_room_for() -> None:
    assert claimed(Lanes().claims(takes_all=True), "aaaaa") == (5, [1, 2, 3])


def test_reading_looks_ahead_only_where_nothing_was_needed_for_long_and_only_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "AHEAD", 4)
    lanes = Lanes()
    lanes.open("a").leased = 3
    assert claimed(lanes.claims(), "aab") == (0, [])
    assert claimed(lanes.claims(), "aab", stalled=True) == (3, [3])
    lanes["b"].leased = 3
    assert claimed(lanes.claims(), "aaaaaa", stalled=True) == (4, [])
    lanes["a"].pending = 4
    assert claimed(lanes.claims(), "aaaaaa", stalled=True) == (0, [])
