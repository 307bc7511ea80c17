"""What all commands share: where words go, how errors become one sentence, exit codes, and how figures read.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from llm_gateway.errors import GatewayError, ProviderError

OK = 0
FAILED = 1  # something was asked and not, or not wholly, answered
USAGE = 2  # the command, the configuration or a file is at fault
INTERRUPTED = 130  # by Ctrl-C, as shells count it: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM

MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
UNITS = ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s"))


def stderr() -> Console:
    """Return a console on standard error; text goes through it as it is, with no markup read into it."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal  # in a log a sentence stays on one line
    return console


@contextmanager
def errors_told() -> Iterator[None]:
    """Turn what may go wrong in a command into one sentence and an exit code.

    Anything else is a bug, and keeps its traceback.
    """
    try:
        yield
    except ProviderError as error:
        raise _leave(str(error), FAILED) from None
    except GatewayError as error:
        raise _leave(str(error), USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has left. Nothing may be flushed into the pipe when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None


def _leave(sentence: str, code: int) -> typer.Exit:
    stderr().print(f"llm-gateway: {sentence}", style="red")
    return typer.Exit(code)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write "1 row", "1,200 rows"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Write a duration in at most two units: "0.42 s", "2 min 5 s", "1 h 3 min", "2 d 4 h"."""
    if seconds < MINUTE:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits that matter
    whole = round(seconds)
    unit, name, part, its_name = next(each for each in UNITS if whole >= each[0])
    rest = whole % unit // part
    return f"{whole // unit} {name} {rest} {its_name}" if rest else f"{whole // unit} {name}"
