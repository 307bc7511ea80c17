"""`python -m fakes.emulator --port P [--latency S]`: the emulator as a process of its own, for benchmarks."""

from __future__ import annotations

import argparse
import asyncio
import signal

from fakes.emulator.script import Reply
from fakes.emulator.server import Emulator

GRACE = 5.0  # seconds for the answers under way when told to stop


async def serve(port: int, latency: float) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Emulator.serve(port, record=False, grace=GRACE) as emulator:
        emulator.default = Reply(latency=latency)
        print(f"listening on {emulator.url}", flush=True)  # noqa: T201 - the line that the starter waits for
        await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m fakes.emulator", description="A provider on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.latency))


if __name__ == "__main__":
    main()
