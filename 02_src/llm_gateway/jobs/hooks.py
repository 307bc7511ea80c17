"""Who hears of a job's ups and downs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llm_gateway.errors import JobStoreBusyError
from llm_gateway.jobs.records import NewRow, Verdict


@dataclass(slots=True, kw_only=True)
class Hooks:
    """Called on the loop."""

    paused: Callable[[JobStoreBusyError], None] = lambda _error: None  # the store cannot be written; it will go on
    resumed: Callable[[], None] = lambda: None
    recorded: Callable[[], None] = lambda: None  # there may be new results
    ended: Callable[[Verdict], None] = lambda _verdict: None  # a row of this process has a result
    refused: Callable[[NewRow], None] = lambda _row: None  # a row cannot be asked
    told: Callable[[str], None] = lambda _sentence: None  # what its user should know
    step: Callable[[str], None] = lambda _name: None  # before and after each step of a provider's batch
