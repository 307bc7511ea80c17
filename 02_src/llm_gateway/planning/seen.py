"""Which of a million digests came before: exact, and in bounded memory."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

CACHE_KIB = 16 * 1024  # of the database's pages; the rest lies in a temporary file


class Seen:
    """Two sets, of requests and of ids, in a database that vanishes when it is closed."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size = -{CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        for table in ("requests", "ids"):
            self._connection.execute(f"CREATE TABLE {table}(digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")  # one transaction: none of it must last

    def add_request(self, fingerprint: bytes) -> bool:
        """Take in what a request asks; False if it was there."""
        return bool(self._connection.execute("INSERT OR IGNORE INTO requests VALUES (?)", (fingerprint,)).rowcount)

    def add_id(self, request_id: str) -> bool:
        """Take in an id; False if it was there."""
        digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return bool(self._connection.execute("INSERT OR IGNORE INTO ids VALUES (?)", (digest,)).rowcount)

    def close(self) -> None:
        """Let it vanish. Safe to call twice."""
        self._connection.close()
