"""A real `redis-server` of the tests' own: started on a free port, paused, killed, restarted, emptied."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("redis-server", "valkey-server")
PATIENCE = 20.0  # seconds for a server to come up


def find_program() -> str:
    """Return the server's program; without one a test is skipped, and fails where CI is set."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        reason = "redis-server is missing; on Debian and Ubuntu: sudo apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class RedisServer:
    """One server process with nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._program = find_program()
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, on the same port as before; return when it answers."""
        self._process = subprocess.Popen(  # noqa: S603 - the program that the system has under this name
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def pause(self) -> None:
        """Let it hang: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        """Empty it."""
        with self.client() as client:
            client.flushall()

    def client(self) -> Any:
        """Return a blocking client; close it."""
        import redis

        return redis.Redis(port=self.port, decode_responses=True)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
