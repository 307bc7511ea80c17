"""`python warm_server.py FOLDER`: forks processes that have imported already what is slow to import.

In FOLDER lie the programs whose commands it runs (see `warm_client`) and its socket. It returns once it serves, and
goes on in the background until nobody is connected any more. What it forks is a process like any other from its first
line to the end of its interpreter, but for its imports and the seed of its hashes.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import marshal
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import sys
import threading
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm_gateway

MODULES = (
    "asyncio", "concurrent.futures.thread", "multiprocessing", "pdb", "unittest.mock",
    "aiohttp", "anthropic", "genai_prices", "httpx", "jsonschema", "openai", "orjson", "plotly.graph_objects", "polars",
    "prometheus_client", "pytest", "redis.asyncio", "rich.console", "rich.table", "typer.testing", "xllamacpp",
    "langchain.agents", "langchain_anthropic", "langchain_core.callbacks", "langchain_ollama", "langchain_openai",
    "langgraph.graph", "opentelemetry.sdk.metrics", "opentelemetry.sdk.trace",
)  # fmt: skip

PYTEST = """
import sys, pytest
# Some plugins are here before pytest could rewrite their assertions: no news for a page.
raise SystemExit(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *sys.argv[1:]]))
"""
COMMANDS = {  # what a program is to the interpreter
    "python": [],
    "llm-gateway": ["-c", "import llm_gateway.cli as it; raise SystemExit(it.main())"],
    "pytest": ["-c", PYTEST],
}


@dataclass(frozen=True)
class Order:
    """What a client wants to be run."""

    program: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


class Server:
    """Runs the orders of all connections; one that never orders keeps the server alive."""

    def __init__(self, listening: socket.socket) -> None:
        self._looks = selectors.DefaultSelector()
        self._looks.register(listening, selectors.EVENT_READ)
        self._listening = listening
        self._running: dict[socket.socket, int] = {}  # process ids
        self._watches: dict[int, socket.socket] = {}  # of the processes

    def serve(self) -> Order | None:
        """Serve until the last connection is closed; in each forked process, return its order instead."""
        while True:
            for key, _ in self._looks.select():
                if key.fileobj is self._listening:
                    self._looks.register(self._listening.accept()[0], selectors.EVENT_READ)
                elif isinstance(key.fileobj, int):
                    self._ended(key.fileobj)
                elif isinstance(key.fileobj, socket.socket) and (order := self._told(key.fileobj)):
                    return order
            if len(self._looks.get_map()) == 1:
                return None

    def _told(self, link: socket.socket) -> Order | None:
        """Hear a new order, a signal, or that the other side is gone."""
        if link in self._running:
            said = link.recv(1)
            os.kill(self._running[link], said[0] if said else signal.SIGKILL)
            if not said:
                self._looks.unregister(link)  # the process is reaped all the same
            return None
        head, streams, *_ = socket.recv_fds(link, 4, 3)
        if not head:
            self._leave(link)
            return None
        body = b""
        while len(body) < int.from_bytes(head, "big"):
            body += link.recv(1 << 16)
        program, arguments, folder, environment = marshal.loads(body)  # noqa: S302 - our own client's
        return self._fork(link, Order(program, arguments, folder, environment, streams))

    def _fork(self, link: socket.socket, order: Order) -> Order | None:
        process = os.fork()
        if process == 0:
            self._forget()
            return order
        for stream in order.streams:
            os.close(stream)
        watch = os.pidfd_open(process)
        self._running[link], self._watches[watch] = process, link
        self._looks.register(watch, selectors.EVENT_READ)
        return None

    def _forget(self) -> None:
        """Close what belongs to the server."""
        for key in list(self._looks.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            elif isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        for link in self._running:
            link.close()
        self._looks.close()

    def _ended(self, watch: int) -> None:
        self._looks.unregister(watch)
        os.close(watch)
        link = self._watches.pop(watch)
        _, status = os.waitpid(self._running.pop(link), 0)
        with contextlib.suppress(OSError):  # it was killed itself
            link.sendall(status.to_bytes(4, "big"))
        self._leave(link)

    def _leave(self, link: socket.socket) -> None:
        if link in {key.fileobj for key in self._looks.get_map().values()}:
            self._looks.unregister(link)
        link.close()


def become(order: Order, *, added: list[Any], usual: list[Any], paths: list[str]) -> None:
    """Be the process that was ordered, and raise what it raises."""
    for place, stream in enumerate(order.streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    words = [*COMMANDS[order.program], *order.arguments]
    sys.warnoptions[:] = []
    while words[:1] == ["-W"]:
        sys.warnoptions.append(words[1])
        words[:2] = []
    filters: list[Any] = warnings.filters  # type: ignore[assignment]  # a list, whatever is said of it
    filters[:] = usual
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    filters[:0] = added
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(module)["__builtins__"] = builtins
    sys.path[:] = ["", *filter(None, order.environment.get("PYTHONPATH", "").split(os.pathsep)), *paths]
    if words[0] == "-m":
        sys.path[0] = order.folder
        sys.argv = ["-m", *words[2:]]
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), vars(module))  # noqa: S102
    else:
        sys.path[0] = str(Path(words[0]).parent.absolute())
        sys.argv = words
        vars(module)["__file__"] = words[0]
        exec(compile(Path(words[0]).read_bytes(), words[0], "exec"), vars(module))  # noqa: S102


def main() -> None:
    """Import, serve, and become each order in a process of its own."""
    folder = Path(sys.argv[1])
    own = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    paths = [path for path in sys.path if path not in own]
    sys.path.remove(str(Path(__file__).parent))
    warnings.simplefilter("error")
    strict = warnings.filters[0]
    ours = pkgutil.walk_packages(llm_gateway.__path__, "llm_gateway.")
    for name in (*MODULES, *(each.name for each in ours if not each.name.endswith("__main__"))):
        importlib.import_module(name)
    place = warnings.filters.index(strict)
    added, usual = list(warnings.filters[:place]), list(warnings.filters[place + 1 :])
    assert threading.active_count() == 1, "a fork would lose the other threads"
    gc.collect()
    gc.freeze()  # so that processes do not copy what they only look at
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.listen(128)
    if os.fork():
        os._exit(0)
    os.setsid()
    with listening:
        order = Server(listening).serve()
    if order is not None:
        become(order, added=added, usual=usual, paths=paths)
    else:
        shutil.rmtree(folder)


main()
