"""The files that set the project up: pinned, free of addresses, and with one entry."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PINS = sorted((ROOT / "requirements").glob("*.txt"))
LOCKS = [*PINS, ROOT / "02_src/tests/aimock/package-lock.json"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_no_lock_file_says_where_packages_come_from(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    found = re.findall(r"\"resolved\"|--(?:extra-)?index-url|--find-links", text)
    if lock.suffix == ".txt":
        found += re.findall(r"https?://\S+", text)
    else:  # npm keeps the addresses of those who ask for money
        packages = json.loads(text)["packages"].values()
        found += [str(each["resolved"]) for each in packages if "resolved" in each]
    assert found == []


@pytest.mark.parametrize("lock", PINS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    blocks = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip())
    assert blocks
    assert [block for block in blocks if "==" not in block.split("\n")[0] or "--hash=sha256:" not in block] == []


def test_the_demo_has_no_other_versions_than_the_tests() -> None:
    texts = [(ROOT / "requirements" / name).read_text(encoding="utf-8") for name in ("demo.txt", "dev.txt")]
    demo, dev = (set(re.findall(r"^\S+==\S+", text, re.MULTILINE)) for text in texts)
    assert demo <= dev


def test_continuous_integration_runs_what_everybody_runs() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"


def test_make_alone_lists_the_targets() -> None:
    command = ["make", "-C", str(ROOT)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own words
    named = re.findall(r"^  make ([a-z]+) ", told, re.MULTILINE)
    assert {"setup", "demo", "test", "lint", "types", "layers", "unit", "bench", "docs", "lock", "clean"} <= set(named)
