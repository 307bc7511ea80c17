"""The interpreters that have what the gateway is compared with, in environments of their own, made when needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".venv-bench"
# The environment of each subject that is not ours, and the distribution that it is named by.
PEERS = {"litellm": "litellm", "tensorzero": "tensorzero", "any-llm": "any-llm-sdk", "curator": "bespokelabs-curator"}
DISTRIBUTIONS = PEERS | {"ray": "ray"}  # Ray is no peer: AskGateway works in it
COMPARED = ("litellm", "tensorzero", "any-llm")  # with single requests
HOME_OF = {
    "litellm_router": "litellm",
    "litellm_stream": "litellm",
    "tensorzero": "tensorzero",
    "tensorzero_stream": "tensorzero",
    "any_llm": "any-llm",
    "curator": "curator",
}


def peer_python(name: str, say: Callable[[str], None]) -> Path:
    """Return the interpreter that has a peer, or Ray, made where it is missing or outdated."""
    home = HOME / name
    python = home / "bin" / "python"
    needs = ROOT / "requirements" / f"bench-{name}.txt"
    wanted = hashlib.sha256(needs.read_bytes()).hexdigest()
    made_for = home / "made-for"
    if not made_for.exists() or made_for.read_text(encoding="utf-8") != wanted:
        say(f"Installing {DISTRIBUTIONS[name]} into {home.relative_to(ROOT)} …")
        # The lock names everything, so nothing is left to resolve; pip stumbles over extras of what is pinned by hash.
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)  # noqa: S603
        subprocess.run([python, *install, "-r", needs], check=True)  # noqa: S603
        made_for.write_text(wanted, encoding="utf-8")
    return python


def peers_found(say: Callable[[str], None], names: Iterable[str] = COMPARED) -> dict[str, Path]:
    """Return the interpreters of those peers that can be had here; say of the others that they are left out."""
    found: dict[str, Path] = {}
    for name in names:
        try:
            found[name] = peer_python(name, say)
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"{name} cannot be installed here and is left out: {error}")
    return found


def peer_version(name: str, python: Path) -> str:
    """Return "name version"."""
    ask = f"from importlib.metadata import version; print(version({PEERS[name]!r}))"
    answer = subprocess.run([python, "-c", ask], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return f"{name} {answer.stdout.strip()}"
