"""Processes that start warm: what is slow to import was imported once for all of them (see `warm_server`)."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("python", "llm-gateway", "pytest")
HERE = Path(__file__).parent


@contextmanager
def warm_programs(shared: Path) -> Iterator[Path]:
    """Yield a folder with the programs, for the front of a PATH.

    All who name the same folder `shared` have one server; it ends when the last of them leaves.
    """
    with (shared / "warm").open("a+") as book:
        fcntl.flock(book, fcntl.LOCK_EX)
        book.seek(0)
        known = book.read()
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(f"{known}/socket")
        except OSError:  # there is none yet, or none any more
            known = str(_start())
            link.connect(f"{known}/socket")
            book.truncate(0)
            book.write(known)
    with link:
        yield Path(known)


def _start() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # the path of a socket must be short
    text = (HERE / "warm_client.py").read_text(encoding="utf-8")
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!{sys.executable} -ISE\n{text}", encoding="utf-8")
        program.chmod(0o755)
    subprocess.run([sys.executable, HERE / "warm_server.py", folder], stdin=subprocess.DEVNULL, check=True)  # noqa: S603 - our own
    return folder
