"""What the jobs beside a job have at a provider, so that it takes none of it for its own."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from llm_gateway.errors import JobError
from llm_gateway.jobs.sqlite import viewing

STATES = "*.job"


def batches_of_others(state: Path, intent: str) -> set[str]:
    """Return the ids of batches that jobs in the same folder made. Blocks.

    But for that of `intent`, since a copy of this job may be among them. What cannot be read has none.
    """
    found: set[str] = set()
    for path in state.absolute().parent.glob(STATES):
        if path == state.absolute():
            continue
        with suppress(JobError, sqlite3.Error, OSError), viewing(path) as view:
            found |= {each.batch_id for each in view.batches() if each.batch_id and each.intent != intent}
    return found
