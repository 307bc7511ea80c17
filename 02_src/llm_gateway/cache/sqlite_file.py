"""The file of the cache: its format, how one is opened, and how another file is told from it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from llm_gateway.cache.store import CacheStoreError

OWNER_ONLY = 0o600  # it holds answers
APPLICATION = 0x6C67_6361  # "lgca": who opens something else by mistake shall know
VERSION = 1
LOCK_PATIENCE = 0.25  # seconds for another process to end its transaction
LOG_BYTES = 8 * 1024 * 1024  # what the write-ahead log may keep on the disk when it is empty

SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
    "CREATE TABLE answers (key BLOB PRIMARY KEY, body BLOB NOT NULL, stored REAL NOT NULL, used REAL NOT NULL)",
    "CREATE INDEX answers_used ON answers(used)",
    "CREATE INDEX answers_stored ON answers(stored)",
    # Counted as they come and go: to add up a large table would take longer than to write into it.
    "CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    (
        "CREATE TRIGGER came AFTER INSERT ON answers BEGIN "
        "UPDATE totals SET entries = entries + 1, bytes = bytes + length(new.body); END"
    ),
    (
        "CREATE TRIGGER changed AFTER UPDATE OF body ON answers BEGIN "
        "UPDATE totals SET bytes = bytes + length(new.body) - length(old.body); END"
    ),
    (
        "CREATE TRIGGER went AFTER DELETE ON answers BEGIN "
        "UPDATE totals SET entries = entries - 1, bytes = bytes - length(old.body); END"
    ),
)


def connect(path: Path | None) -> sqlite3.Connection:
    """Open the cache at `path`, None: one in memory, and begin it if it is new."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, OWNER_ONLY))
    connection = sqlite3.connect(
        ":memory:" if path is None else path, timeout=LOCK_PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            _begin_file(connection)
        _check(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _begin_file(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:  # another process may have been here
        for statement in SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection) -> None:
    """Raise CacheStoreError for what is no cache, or that of another version: nothing in it is touched."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise CacheStoreError("it is a database of something else; give another path")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise CacheStoreError(f"it has format {version}, and this version knows {VERSION}; remove the file")
