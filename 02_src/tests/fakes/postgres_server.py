"""A real PostgreSQL of the tests' own: started in a folder on a free port, stopped, started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

USERS = ("postgres", "nobody")  # it refuses to run as root
PATIENCE = 60.0  # seconds for a server to come up or go down


def find_programs() -> Path:
    """Return the folder of the server's programs; without one a test is skipped, and fails where CI is set."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name, reverse=True)
    found = next((place for place in places if (place / "initdb").exists()), None)
    if found is None and (path := shutil.which("initdb")) is not None:
        found = Path(path).resolve().parent
    if found is None:
        reason = "PostgreSQL is missing; on Debian and Ubuntu: sudo apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def other_user() -> pwd.struct_passwd | None:
    """Return who runs the server; None: whoever runs the tests."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in USERS if name in known)


class PostgresServer:
    """One server process whose disk is never waited for, in a temporary folder of its own."""

    def __init__(self) -> None:
        self._programs = find_programs()
        self._user = other_user()
        # Folders of pytest are closed to the user who runs it.
        self._folder = Path(tempfile.mkdtemp(prefix="llm-gateway-postgres-"))
        self._data, self._log = self._folder / "data", self._folder / "server.log"
        self._data.mkdir(mode=0o700)
        self._folder.chmod(0o755)
        if self._user is not None:
            os.chown(self._data, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        options = (
            "--auth=trust",
            "--username=gateway",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        self._run("initdb", *options, "-D", str(self._data)).communicate()
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://gateway@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it on the same port as before; return when it answers."""
        settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 50,
        }
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", str(self._data), "-p", str(self.port), *given)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as an administrator does who does not wait for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
            self._process = None

    def close(self) -> None:
        """Stop it and take its folder away."""
        self.stop()
        shutil.rmtree(self._folder)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        user = self._user
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the programs that the system has under these names
                [self._programs / program, *arguments],
                cwd=self._data,
                stdout=log,
                stderr=log,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
