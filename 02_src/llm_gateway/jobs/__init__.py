"""Bulk jobs: a file or a stream of requests that is answered once, however often the process dies in between."""

from llm_gateway.answers import AnswerSchema
from llm_gateway.jobs.job import Job
from llm_gateway.jobs.outcomes import JobOutcome
from llm_gateway.jobs.records import Ledger, RowState
from llm_gateway.jobs.sqlite import SqliteJobStore
from llm_gateway.jobs.store import JobStore

__all__ = ["AnswerSchema", "Job", "JobOutcome", "JobStore", "Ledger", "RowState", "SqliteJobStore"]
