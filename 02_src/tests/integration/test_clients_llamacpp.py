"""A real model in this process. The first test that needs its file fetches it into the user's cache."""

from __future__ import annotations

import asyncio
import subprocess
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes.deployments import deployment, request, said
from llm_gateway import local_model
from llm_gateway.clients import llamacpp
from llm_gateway.clients.base import ChatClient, Deployment
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import ConfigurationError, ContextLengthError, MissingDependencyError, ProviderError

pytest.importorskip("xllamacpp")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def model() -> Path:
    return local_model.pull("smollm2-135m", lambda _: None)


def local(model: str | Path = "smollm2-135m", **settings: Any) -> Deployment:
    given: dict[str, Any] = {"max_concurrency": 2, "context": 512, **settings}
    return deployment("llamacpp", None, model=str(model), key=None, **given)


@pytest.fixture
async def client(model: Path) -> AsyncIterator[ChatClient]:  # noqa: ARG001 - its file must be there
    clients = LangChainClients()
    made = clients.connect(local())
    yield made
    await made.aclose()
    await clients.aclose()
    assert llamacpp.SERVERS._servers == {}


async def test_a_real_model_answers_several_questions_at_once(client: ChatClient) -> None:
    asked = [request(said("user", f"Name a city in {land}."), max_tokens=12) for land in ("France", "Japan")]
    answers = await asyncio.gather(*(client.generate(each) for each in asked))
    for answer in answers:
        assert answer.content.strip()
        assert answer.finish_reason in {"stop", "length"}
        assert answer.usage is not None
        assert answer.usage.input_tokens > 10
        assert 0 < answer.usage.output_tokens <= 12


async def test_an_answer_follows_a_schema(client: ChatClient) -> None:
    client.check(request(response_format=SCHEMA))
    answer = await client.generate(request(response_format=SCHEMA, max_tokens=40))
    assert answer.content.lstrip().startswith("{")


async def test_a_prompt_that_does_not_fit_its_slot_says_so(client: ChatClient) -> None:
    with pytest.raises(ContextLengthError, match="exceeds the available context size"):
        await client.generate(request(said("user", "hello " * 600)))


async def test_equal_deployments_share_one_loaded_model_until_the_last_leaves(model: Path) -> None:
    clients = LangChainClients()
    first, second = clients.connect(local()), clients.connect(local(model))
    [server] = llamacpp.SERVERS._servers.values()
    await asyncio.gather(first.generate(request(max_tokens=2)), second.generate(request(max_tokens=2)))
    await first.aclose()
    await first.aclose()
    assert (await second.generate(request(max_tokens=2))).finish_reason
    assert server.users == 1
    await second.aclose()
    assert (server._server, llamacpp.SERVERS._servers) == (None, {})
    await clients.aclose()


async def test_a_file_that_is_no_model_fails_once_with_the_remedy(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model at all")
    clients = LangChainClients()
    client = clients.connect(local(bad))
    with pytest.raises(ProviderError, match=r"cannot load .*bad\.gguf with 2 slots of 512 tokens") as caught:
        await client.generate(request())
    assert not caught.value.retryable
    await client.aclose()
    await clients.aclose()


class StoppingServer:
    """What `xllamacpp.Server` is to its users."""

    listening_address = "http://127.0.0.1:9"


async def test_at_the_end_of_the_process_every_model_is_unloaded_and_its_users_may_still_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llamacpp, "_serve", lambda _load, _key: StoppingServer())
    servers = llamacpp.LocalServers()
    lease = servers.lease(llamacpp.Load(path=Path("x.gguf"), slots=1, context=1))
    assert lease.server.start() == lease.server.start() == "http://127.0.0.1:9/v1"
    gone = weakref.ref(lease.server._server)
    servers.stop_all()
    assert gone() is None
    await lease.aclose()


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"models\.m\.model: there is no file /nowhere/x\.gguf"):
        LangChainClients().connect(local("/nowhere/x.gguf"))


def test_a_model_that_was_not_pulled_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(local_model.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigurationError, match="llm-gateway pull smollm2-135m"):
        LangChainClients().connect(local())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"^pip install 'llm-gateway\[llamacpp\]'$"):
        LangChainClients().connect(local())


FORGETFUL = """
import asyncio
from fakes.deployments import deployment, request, said
from llm_gateway.clients.factory import LangChainClients

async def ask():
    made = LangChainClients().connect(deployment("llamacpp", None, model={model!r}, key=None, max_concurrency=1))
    print((await made.generate(request(max_tokens=3))).finish_reason)
    return made

kept = asyncio.run(ask())
"""


@pytest.fixture
def tests_folder() -> str:
    return str(Path(__file__).parent.parent)


def test_a_program_that_forgets_to_close_ends_all_the_same_and_its_terminal_stays_clean(
    model: Path, warm: Path, tests_folder: str
) -> None:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [warm / "python", "-W", "ignore", "-c", FORGETFUL.format(model=str(model))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tests_folder,
    )
    lines = [line for line in done.stderr.splitlines() if "Unclosed" not in line and "client_session" not in line]
    assert (done.returncode, done.stdout.strip() in {"length", "stop"}) == (0, True)
    assert not [line for line in lines if "llama" in line or "srv" in line or "slot" in line], done.stderr
