"""The tables in which the jobs of a PostgreSQL database lie, and what finds a job in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_gateway.errors import JobError
from llm_gateway.jobs.records import RowState

if TYPE_CHECKING:
    from psycopg import Connection

VERSION = 1
SCHEMA_LOCK, RUN_LOCK, RESULTS_LOCK = 0x4C474A42, 0x4C474A43, 0x4C474A44  # first keys of advisory locks
PENDING, LEASED = RowState.PENDING.value, RowState.LEASED.value

SCHEMA = f"""
CREATE SCHEMA IF NOT EXISTS llm_gateway;
CREATE TABLE llm_gateway.version(number int NOT NULL);
INSERT INTO llm_gateway.version VALUES ({VERSION});
CREATE TABLE llm_gateway.jobs(
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE llm_gateway.facts(
    job int NOT NULL, name text NOT NULL, value text NOT NULL, PRIMARY KEY (job, name)
);
CREATE TABLE llm_gateway.workers(
    id bigint PRIMARY KEY,
    job int NOT NULL,
    host text NOT NULL,
    process int NOT NULL,
    beat timestamptz NOT NULL,
    patience float8 NOT NULL
);
CREATE TABLE llm_gateway.rows(
    job int NOT NULL,
    number bigint NOT NULL,
    key bytea,
    model text NOT NULL,
    form text NOT NULL,
    fingerprint bytea NOT NULL,
    state smallint NOT NULL,
    turn int NOT NULL DEFAULT 0,
    invalid int NOT NULL DEFAULT 0,
    calls int NOT NULL DEFAULT 0,
    answered int NOT NULL DEFAULT 0,
    refused int NOT NULL DEFAULT 0,
    unsent int NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost_usd float8 NOT NULL DEFAULT 0,
    unpriced int NOT NULL DEFAULT 0,
    worker bigint,
    step bigint,
    PRIMARY KEY (job, number)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
-- A key is whatever somebody chose, of any length: its digest is what an index can hold.
CREATE UNIQUE INDEX rows_key ON llm_gateway.rows(job, sha256(key));
CREATE INDEX rows_pending ON llm_gateway.rows(job, model, number) WHERE state = {PENDING};
CREATE INDEX rows_leased ON llm_gateway.rows(job, worker) WHERE state = {LEASED};
CREATE TABLE llm_gateway.requests(
    job int NOT NULL, number bigint NOT NULL, body bytea NOT NULL, PRIMARY KEY (job, number)
);
CREATE TABLE llm_gateway.results(
    id bigint GENERATED ALWAYS AS IDENTITY,
    job int NOT NULL,
    number bigint NOT NULL,
    kind text,
    body bytea NOT NULL,
    PRIMARY KEY (job, id),
    UNIQUE (job, number)
);
CREATE INDEX results_failed ON llm_gateway.results(job, kind) WHERE kind IS NOT NULL;
"""  # noqa: S608 - of numbers of ours
TABLES = ("facts", "workers", "rows", "requests", "results")  # that have rows of one job


def make_tables(connection: Connection[Any], where: str) -> None:
    """Make the tables if there are none; many may ask for that at once. Raises JobError for those of another version.

    Needs the right to create only where nothing is there yet.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (SCHEMA_LOCK,))
    if not has_tables(connection, where):
        connection.execute(SCHEMA.encode())


def has_tables(connection: Connection[Any], where: str) -> bool:
    """Whether there are tables of jobs. Raises JobError for those of another version."""
    if connection.execute("SELECT to_regclass('llm_gateway.version')").fetchall() == [(None,)]:
        return False
    found = connection.execute("SELECT number FROM llm_gateway.version").fetchall()
    if found != [(VERSION,)]:
        raise JobError(
            f"The jobs in {where} have format {found[0][0] if found else 'unknown'}, and this version of llm-gateway "
            f"knows {VERSION}; go on with the version that began them."
        )
    return True


def job_id(connection: Connection[Any], name: str) -> int | None:
    """Return the number of a job, None where there is none."""
    found = connection.execute("SELECT id FROM llm_gateway.jobs WHERE name = %s", (name,)).fetchone()
    return None if found is None else int(found[0])


def begin_job(connection: Connection[Any], name: str) -> int:
    """Return the number of a job, which is made where there is none."""
    connection.execute("INSERT INTO llm_gateway.jobs(name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
    found = job_id(connection, name)
    assert found is not None  # noqa: S101 - it has just been made
    return found
