"""What the fixtures of the pytest plugin do; `llm_gateway_pytest`, which pytest loads, has the fixtures themselves."""

from __future__ import annotations

import asyncio
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import pytest

from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.recorded_gateway import RecordedGateway
from llm_gateway.mock_gateway import MockLLMGateway

FOLDER = "llm_recordings"  # beside the test's module
LONGEST_NAME = 100  # characters of a file's name, of what the test is called
LOOKED_AT = pytest.StashKey[set[Path]]()  # the folders of recordings whose orphans are told
Config = Mapping[str, Any] | GatewayConfig | None


class UnusedRecordingWarning(UserWarning):
    """A recording has answers that no test asks for any more."""


@contextmanager
def mocked(request: pytest.FixtureRequest, config: Config) -> Iterator[MockLLMGateway]:
    """The mock that the test's marks describe, until the test ends."""
    gateway = MockLLMGateway(config, responses=_responses(request), skip_waits=True, chaos=_chaos(request))
    try:
        yield gateway
    finally:
        close(gateway)


@contextmanager
def recorded(
    request: pytest.FixtureRequest, config: Config, passed: pytest.StashKey[bool]
) -> Iterator[RecordedGateway]:
    """The gateway on the test's recording; at the end the recording is written, or what it says too much is told.

    A test that fails leaves its recording as it was.
    """
    records = bool(request.config.getoption("llm_record"))
    path = recording_path(request)
    gateway = RecordedGateway(
        config,
        path=path,
        test=_name(request),
        shown_path=_relative(path, request.config.rootpath),
        remedy=f"pytest --llm-record {shlex.quote(request.node.nodeid)}",
        record=records,
        chaos=_chaos(request),
    )
    try:
        yield gateway
    finally:
        close(gateway)
    if request.node.stash.get(passed, False):
        if records:
            gateway.tape.save()
        else:
            _settle(gateway, request)
    for orphan in _orphans_once(request):
        told = _relative(orphan, request.config.rootpath)
        _warn(f"No test of {request.path.name} replays {told} any more; delete it.", request)


def _settle(gateway: RecordedGateway, request: pytest.FixtureRequest) -> None:
    """Tell what the code under test may have swallowed, and what it did not ask for."""
    tape = gateway.tape
    if tape.missed:
        pytest.fail(tape.missed[0], pytrace=False)
    if tape.unused:
        listed = "".join(f"\n  {each}" for each in tape.unused)
        _warn(
            f"{tape.shown_path} has answers that were not asked for; to drop them: {tape.remedy}{listed}",
            request,
        )


def _warn(message: str, request: pytest.FixtureRequest) -> None:
    # The line of the test, since nobody looks for it in here.
    _, line, _ = request.node.location
    warnings.warn_explicit(UnusedRecordingWarning(message), None, str(request.path), (line or 0) + 1)


# --- where a recording lies ---------------------------------------------------------------------------------------


def recording_path(request: pytest.FixtureRequest) -> Path:
    """Return the file of a test: in a folder beside its module, under the module's name and its own."""
    name = _name(request)
    plain = re.sub(r"[^\w.-]+", "_", name.replace("::", "."))[:LONGEST_NAME].rstrip("_.")
    if plain != name.replace("::", "."):  # two tests must not share a file
        plain = f"{plain}-{blake2b(name.encode(errors='surrogatepass'), digest_size=4).hexdigest()}"
    return _folder(request) / f"{plain}.json"


def _orphans_once(request: pytest.FixtureRequest) -> list[Path]:
    """Return the module's orphans, if nobody has told them yet."""
    looked = request.session.stash.setdefault(LOOKED_AT, set())
    if _folder(request) in looked:
        return []
    looked.add(_folder(request))
    return orphans(request)


def orphans(request: pytest.FixtureRequest) -> list[Path]:
    """Return the module's recordings whose test function is not there any more."""
    from llm_gateway.integrations.recording import load_recording

    found = []
    for path in sorted(_folder(request).glob("*.json")):
        recording = load_recording(path)
        function = recording.test.partition("[")[0] if recording else ""
        owner: Any = request.module
        for part in function.split("::"):
            owner = getattr(owner, part, None)
        if owner is None:
            found.append(path)
    return found


def _folder(request: pytest.FixtureRequest) -> Path:
    return request.path.parent / FOLDER / request.path.stem


def _name(request: pytest.FixtureRequest) -> str:
    """Return what the test is called in its module: `test_it`, `TestAll::test_it[case]`."""
    names = [each.name for each in request.node.listchain() if isinstance(each, pytest.Class)]
    return "::".join([*names, request.node.name])


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


# --- the marks ----------------------------------------------------------------------------------------------------


def _responses(request: pytest.FixtureRequest) -> Path | Mapping[str, Any] | None:
    """Return what the nearest `llm_responses` gives; a relative path starts at the test's own folder."""
    mark = request.node.get_closest_marker("llm_responses")
    if mark is None:
        return None
    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str | PathLike | Mapping):
        raise ConfigurationError("The mark llm_responses takes one argument, the path of a JSON file or a dict.")
    source = mark.args[0]
    return source if isinstance(source, Mapping) else request.path.parent / source


def _chaos(request: pytest.FixtureRequest) -> Mapping[str, Any] | None:
    mark = request.node.get_closest_marker("llm_chaos")
    if mark is None:
        return None
    if mark.args or not mark.kwargs:
        raise ConfigurationError(
            "The mark llm_chaos takes chances by name, such as llm_chaos(seed=1, rate_limits=0.2)."
        )
    return dict(mark.kwargs)


# --- the end ------------------------------------------------------------------------------------------------------


def close(gateway: LLMGateway) -> None:
    """Shut a gateway down from outside its event loop, whether that is open, closed or runs in another thread."""
    loop = gateway.loop
    if loop is not None and loop.is_running():
        asyncio.run_coroutine_threadsafe(gateway.shutdown(0.0), loop).result()
    elif loop is not None:
        loop.run_until_complete(gateway.shutdown(0.0))
    else:
        own = asyncio.new_event_loop()  # asyncio.run would take the test runner's current loop away
        try:
            own.run_until_complete(gateway.shutdown(0.0))
        finally:
            own.close()
