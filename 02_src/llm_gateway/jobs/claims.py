"""How many rows of the input are needed, and which of them are leased as they are taken in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llm_gateway.jobs.lanes import Lane
from llm_gateway.jobs.records import NewRow

AHEAD = 2048  # rows that may be pending before the reading waits: the store stays small, and nobody waits for rows


class Claims:
    """Marks rows that can be asked at once, so that they need no second step to be leased."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        lane_of: Callable[[str], Lane],
        *,
        is_soon: Callable[[str], bool],
        asks: bool,
        takes_all: bool,
    ) -> None:
        """Take the lanes there are, and what opens one.

        `is_soon`: rows of a model are asked as soon as there is room, so that few of them need be taken in. Without
        `asks` none is leased; with `takes_all` no row has to wait.
        """
        self._lanes = lanes
        self._lane_of = lane_of
        self._is_soon = is_soon
        self._asks = asks
        self._takes_all = takes_all

    def claim(self, rows: Sequence[NewRow], *, stalled: bool) -> int:
        """Return how many of the first rows to take in, and mark those to be leased with it, for which room is kept.

        Rows are taken in while some model needs more. Where none does for some time, `stalled`, later rows may be of
        another one: they are taken in as far ahead as may be.
        """
        ahead = sum(lane.pending for model, lane in self._lanes.items() if self._is_soon(model))
        rooms: dict[str, int] = {}  # for how many rows, by the models that were met
        needed = self._are_needed(ahead, stalled=stalled)
        for number, row in enumerate(rows):
            if not needed:
                return number
            if row.failure is not None:
                continue
            model = row.model
            room = rooms[model] if model in rooms else self._room(model)
            if room > 0:
                row.leased = True
                self._lanes[model].leased += 1
                rooms[model] = room = room - 1
            else:
                rooms[model] = 0
                ahead += self._is_soon(model)
            if not room:
                needed = self._are_needed(ahead, stalled=stalled)
        return len(rows)

    def _room(self, model: str) -> int:
        """Return how many rows of a model can be leased as they are taken in: none before those that are pending."""
        lane = self._lanes.get(model) or self._lane_of(model)
        if not self._asks or lane.pending or lane.blocked is not None or not self._is_soon(model):
            return 0
        return lane.window.rows - lane.leased

    def _are_needed(self, ahead: int, *, stalled: bool) -> bool:
        if self._takes_all or not self._lanes:
            return True
        if ahead >= AHEAD:
            return False
        return stalled or any(
            lane.need > 0 or lane.blocked is not None or not self._is_soon(model) for model, lane in self._lanes.items()
        )
