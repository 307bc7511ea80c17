"""The processes that start warm are like any other: what they get, how they end, and who ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0  # seconds until a test gives up


def run(warm: Path, *words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(warm / "python"), *words], capture_output=True, text=True, check=False, **given)  # noqa: S603 - our own code


def test_a_process_has_arguments_folder_environment_and_streams_of_its_own(warm: Path, tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        print(sys.argv, os.getcwd(), os.environ["OWN"], "HOME" in os.environ, input())
        print("told", file=sys.stderr)
    """
    environment = {"PATH": os.environ["PATH"], "OWN": "yes"}
    done = run(warm, "-c", code, "one", input="typed\n", cwd=tmp_path, env=environment)
    assert done.stdout == f"{['-c', 'one']} {tmp_path} yes False typed\n"
    assert (done.stderr, done.returncode) == ("told\n", 0)


@pytest.mark.parametrize(
    ("code", "ended"),
    [("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM)],
    ids=["code", "error", "signal"],
)
def test_it_ends_as_its_program_ends_and_only_then(warm: Path, code: str, ended: int) -> None:
    done = run(warm, "-c", f"import atexit; atexit.register(print, 'last'); {code}")
    assert done.returncode == ended
    assert done.stdout == ("" if ended < 0 else "last\n")
    assert ("ZeroDivisionError" in done.stderr) == (ended == 1)


@pytest.mark.parametrize(("flags", "ended"), [((), 0), (("-W", "error"), 1)], ids=["none", "error"])
def test_warnings_are_what_the_command_line_says(warm: Path, flags: tuple[str, ...], ended: int) -> None:
    assert run(warm, *flags, "-c", "import warnings; warnings.warn('planted')").returncode == ended


def test_a_script_finds_the_modules_beside_it(warm: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("word = 'found'")
    (tmp_path / "script.py").write_text("import beside; print(beside.word, __name__, __file__)")
    assert run(warm, "script.py", cwd=tmp_path).stdout == "found __main__ script.py\n"


def test_a_signal_is_passed_on(warm: Path) -> None:
    with sleeping(warm) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
    assert told.endswith("KeyboardInterrupt\n")


def test_whoever_kills_the_program_kills_what_runs(warm: Path) -> None:
    with sleeping(warm) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sleeping(warm: Path) -> subprocess.Popen[str]:
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    words = [str(warm / "python"), "-c", code]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own code
