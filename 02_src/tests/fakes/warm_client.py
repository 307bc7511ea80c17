"""The program in the place of `python`, `llm-gateway` or `pytest`: lets `warm_server` run what it was asked to.

It hands over its arguments, folder, environment, input and outputs, passes signals on, and ends as what ran has ended.
Only the standard library, and little of it: the start of this program is all that a process costs here.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import sys

HERE, NAME = os.path.split(os.path.abspath(sys.argv[0]))  # noqa: PTH100 - pathlib is slow to import
STREAMS = (0, 1, 2)


def main() -> None:
    """Have the command line run by the server."""
    if NAME == "python" and sys.argv[1:2] and sys.argv[1][:2] == "-X":  # of no use once a process runs
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - the same interpreter, as it was asked
    link = socket.socket(socket.AF_UNIX)
    link.connect(f"{HERE}/socket")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: link.sendall(bytes([received])))
    order = marshal.dumps((NAME, sys.argv[1:], os.getcwd(), dict(os.environ)))  # noqa: PTH109
    socket.send_fds(link, [len(order).to_bytes(4, "big")], STREAMS)
    link.sendall(order)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in STREAMS:  # so that they end when what runs closes them
        os.dup2(nothing, stream)
    status = int.from_bytes(link.recv(4), "big")
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
