"""The emulator in a thread of its own, for code that runs its own event loop in the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from fakes.emulator import Emulator


@contextmanager
def emulator_in_a_thread() -> Iterator[Emulator]:
    """Serve until the block is left. Script it and read its ledger while no call is under way."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    serving = Emulator.serve()
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
