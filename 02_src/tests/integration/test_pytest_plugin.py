"""The pytest plugin, as a user's test run sees it: runs of pytest inside the test, in a folder of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The inner runs forget what they import themselves, and would import all of it again and again.
import llm_gateway.clients.lean.openai
import llm_gateway.clients.openai
import llm_gateway.clients.runnable
import llm_gateway.integrations.pytest_plugin  # noqa: F401
from fakes.emulator import Emulator, Reply, ToolCall
from fakes.emulator_thread import emulator_in_a_thread

pytest_plugins = ["pytester"]

KEY = "sk-canary-5c1d8e7f"
HOST = "127.0.0.1"
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = --strict-markers -p no:cacheprovider -p pytest_asyncio.plugin -p llm_gateway_pytest
"""
HEAD = """
import asyncio
from contextlib import aclosing

import pytest

from llm_gateway import (
    InvalidRequestError, GatewayError, LLMMessage, LLMRequest, LLMResponse, LLMTool, RequestRejectedError, TextDelta
)


def ask(text, **fields):
    return LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content=text)], **fields)


async def told(gateway, text, **fields):
    return (await gateway.request(ask(text, **fields))).content
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of those that are installed, for a quicker start
    pytester.makeini(INI)
    return pytester


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator that the inner runs find through the environment; without one there is nobody to ask."""
    with emulator_in_a_thread() as emulator:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{emulator.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield emulator


def without_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")


def write(folder: pytest.Pytester, body: str, name: str = "test_it") -> Path:
    return folder.makepyfile(**{name: HEAD + body})


def recorded(folder: pytest.Pytester, name: str, module: str = "test_it") -> Any:
    return json.loads(path_of(folder, name, module).read_text())


def path_of(folder: pytest.Pytester, name: str, module: str = "test_it") -> Path:
    return folder.path / "llm_recordings" / module / f"{name}.json"


# --- the mock -----------------------------------------------------------------------------------------------------


def test_the_mock_answers_as_the_mark_says_from_a_file_beside_the_test_or_a_dict(folder: pytest.Pytester) -> None:
    (folder.mkdir("below") / "answers.json").write_text('{"rules": [{"match": {"contains": "file"}, "reply": "read"}]}')
    write(
        folder,
        """
@pytest.mark.llm_responses("answers.json")
async def test_file(mock_gateway):
    assert await told(mock_gateway, "a file") == "read"
    mock_gateway.assert_called(times=1, containing="file")

@pytest.mark.llm_responses({"default": "a dict"})
class TestMarked:
    async def test_dict(self, mock_gateway):
        assert await told(mock_gateway, "x") == "a dict"

    @pytest.mark.llm_responses({"default": {"error": {"status": 429, "retry_after": 3600}}})
    async def test_the_nearest_mark_counts_and_nothing_waits(self, mock_gateway):
        with pytest.raises(GatewayError):
            await told(mock_gateway, "x")

def test_unmarked_and_without_a_loop(mock_gateway):
    assert asyncio.run(told(mock_gateway, "x")).startswith("Mock answer ")
    assert asyncio.run(told(mock_gateway, "y")).startswith("Mock answer ")
""",
        "below/test_below",
    )
    folder.runpytest_inprocess().assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("llm_responses()", "*The mark llm_responses takes one argument, the path of a JSON file or a dict.*"),
        ("llm_responses('none.json')", "*none.json cannot be read: No such file or directory.*"),
        ("llm_chaos()", "*The mark llm_chaos takes chances by name, such as*"),
        ("llm_chaos(rate_limit=1)", "*The mock's chaos: rate_limit: unknown; did you mean 'rate_limits'?*"),
        ("llm_chaos(slow=2)", "*The mock's chaos: slow: 2 is wrong: it should be less than or equal to 1.*"),
    ],
    ids=["no-source", "no-file", "no-chance", "misspelt", "too-much"],
)
def test_a_mark_that_is_wrong_is_told_in_a_sentence(folder: pytest.Pytester, mark: str, told: str) -> None:
    write(folder, f"@pytest.mark.{mark}\ndef test_it(mock_gateway): pass\n")
    result = folder.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([told])


def test_the_mock_is_shut_down_after_the_test_whatever_became_of_its_loop(folder: pytest.Pytester) -> None:
    folder.makeconftest(
        """
import asyncio, threading
import pytest

gateways = []

@pytest.fixture
def llm_gateway_config():
    return {"models": {"mine": {"provider": "ollama", "model": "m"}}}

@pytest.fixture
def watched(mock_gateway):
    gateways.append(mock_gateway)
    return mock_gateway

@pytest.fixture(scope="module")
def open_loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

@pytest.fixture(scope="module")
def busy_loop(open_loop):
    thread = threading.Thread(target=open_loop.run_forever)
    thread.start()
    yield open_loop
    open_loop.call_soon_threadsafe(open_loop.stop)
    thread.join()
"""
    )
    write(
        folder,
        """
def test_open(watched, open_loop):
    open_loop.run_until_complete(told(watched, "x"))

def test_busy(watched, busy_loop):
    asyncio.run_coroutine_threadsafe(told(watched, "x"), busy_loop).result()

@pytest.mark.llm_responses({"default": {"latency": 3.0}})
async def test_left_behind(watched):
    task = asyncio.create_task(told(watched, "x"))
    await asyncio.sleep(0)

def test_unused(watched):
    assert watched.config.models["mine"].model == "m"

async def test_closed_by_the_test(watched):
    await watched.shutdown()

def test_all_are_closed(request):
    from conftest import gateways
    assert len(gateways) == 5
    for gateway in gateways:
        with pytest.raises(GatewayError, match="shut down"):
            asyncio.run(told(gateway, "x"))
""",
    )
    folder.runpytest_inprocess().assert_outcomes(passed=6)


def test_the_same_chaos_comes_in_every_run(folder: pytest.Pytester) -> None:
    write(
        folder,
        """
async def streamed(gateway, number):
    try:
        return [piece async for piece in gateway.stream(ask(f"stream {number}", request_id=f"s{number}"))][-1]
    except GatewayError as error:
        return error


@pytest.mark.llm_chaos(seed=7, rate_limits=0.1, outages=0.1, slow=0.6, truncated=0.2, cut_streams=0.4)
async def test_it(mock_gateway):
    asked = [ask(f"question {number}", request_id=str(number)) for number in range(20)]
    outcomes = await mock_gateway.batch(asked, return_exceptions=True)
    outcomes += [await streamed(mock_gateway, number) for number in range(10)]
    kinds = {call.outcome for call in mock_gateway.calls}
    assert {"rate_limit", "unavailable", "timeout", "incomplete_response"} <= kinds, kinds
    print("\\noutcomes", [type(each).__name__ for each in outcomes])
    print("calls", [(str(call), call.at) for call in mock_gateway.calls])
    mock_gateway.assert_called(rule="chaos")
""",
    )
    runs = [folder.runpytest_inprocess("-s") for _ in range(2)]
    lines = [[line for line in run.outlines if line.startswith(("outcomes", "calls"))] for run in runs]
    assert "StreamInterruptedError" in lines[0][0]
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]


# --- recordings ---------------------------------------------------------------------------------------------------

TWO_QUESTIONS = """
async def test_it(recorded_gateway):
    assert await told(recorded_gateway, "one") == "first"
    assert await told(recorded_gateway, "two", temperature=0.5, max_tokens=9) == "second"
    recorded_gateway.assert_called(times=2)
    recorded_gateway.assert_sent(temperature=0.5, max_tokens=9)
"""


def test_answers_are_recorded_once_and_replayed_without_key_and_network(
    folder: pytest.Pytester, provider: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, TWO_QUESTIONS)
    provider.script(Reply(text="first"), Reply(text="second"))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    before = path_of(folder, "test_it").read_bytes()
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    assert len(provider.ledger) == 2
    assert path_of(folder, "test_it").read_bytes() == before
    without_provider(monkeypatch)
    folder.runpytest_inprocess().assert_outcomes(passed=1)
    data = recorded(folder, "test_it")
    assert [call["request"]["messages"][0]["content"] for call in data["calls"]] == ["one", "two"]
    assert data["calls"][1]["request"] == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "two"}],
        "temperature": 0.5,
        "max_tokens": 9,
    }
    assert data["calls"][1]["deployment"] == "openai/gpt-4o-mini"


def test_a_recording_holds_no_key_no_header_and_no_address(folder: pytest.Pytester, provider: Emulator) -> None:
    write(
        folder,
        """
async def test_it(recorded_gateway):
    token = "ghp_canary0123456789"
    assert "[key]" not in await told(recorded_gateway, f"what is {token}, https://me:hunter2@host and ***this***?")
    with pytest.raises(RequestRejectedError):
        await told(recorded_gateway, "break")
    tool = LLMTool(name="look", description="Looks.", input_schema={"type": "object"})
    await recorded_gateway.request(ask("look", tools=[tool]))
""",
    )
    call = ToolCall(name="look", args={"with": f"Bearer {KEY}.0123456789"})
    refused = {"message": f"never with {KEY}"}
    provider.script(Reply(text=f"you are {KEY}"), Reply(status=400, error=refused), Reply(tool_calls=(call,)))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    text = path_of(folder, "test_it").read_text()
    assert "what is [key], https://[key]@host and ***this***?" in text
    assert "you are [key]" in text
    for secret in ("canary", "hunter2", HOST, "eader", "uthorization", "request_id"):
        assert secret not in text
    folder.runpytest_inprocess("-k", "nothing")  # a run that uses none leaves it alone
    assert path_of(folder, "test_it").read_text() == text


def test_a_request_that_drifted_fails_with_the_difference_and_the_remedy(
    folder: pytest.Pytester, provider: Emulator
) -> None:
    write(folder, TWO_QUESTIONS)
    provider.script(Reply(text="first"), Reply(text="second"))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    write(folder, TWO_QUESTIONS.replace('"two", temperature=0.5, max_tokens=9', '"two!", temperature=0.7, stop=["."]'))
    result = folder.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*UnrecordedRequestError: llm_recordings/test_it/test_it.json has no answer to *. The nearest recorded *:",
            "*temperature: recorded 0.5, sent 0.7",
            "*max_tokens: gone, was 9",
            '*stop: new, [[]"."]',
            "*If that is meant, record it: pytest --llm-record test_it.py::test_it",
        ]
    )
    result.stdout.fnmatch_lines(['*messages[[]0].content: recorded "two", sent "two!"'])


@pytest.mark.usefixtures("provider")
def test_a_model_that_was_exchanged_is_a_drift(folder: pytest.Pytester) -> None:
    body = "async def test_it(recorded_gateway):\n    assert await told(recorded_gateway, 'x')\n"
    write(folder, body)
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    config = '{"models": {"gpt-4o-mini": {"provider": "openai", "model": "gpt-9"}}}'
    write(folder, f"@pytest.fixture\ndef llm_gateway_config(): return {config}\n\n{body}")
    result = folder.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['*deployment: recorded "openai/gpt-4o-mini", sent "openai/gpt-9"'])
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    folder.runpytest_inprocess().assert_outcomes(passed=1)
    assert [call["deployment"] for call in recorded(folder, "test_it")["calls"]] == ["openai/gpt-9"]


def test_what_nobody_recorded_fails_even_if_the_code_under_test_swallows_it(folder: pytest.Pytester) -> None:
    write(
        folder,
        """
async def test_it(recorded_gateway):
    try:
        await told(recorded_gateway, "x")
    except Exception:
        pass
""",
    )
    result = folder.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ['There is no recording llm_recordings/test_it/test_it.json to answer "x" to gpt-4o-mini; *: pytest --llm-r*']
    )


def test_an_answer_is_replayed_as_often_as_it_was_recorded(folder: pytest.Pytester, provider: Emulator) -> None:
    body = """
async def test_it(recorded_gateway):
    answers = [await told(recorded_gateway, "a number?") for _ in range(2)]
    assert answers == ["1", "2"]
"""
    write(folder, body)
    provider.script(Reply(text="1"), Reply(text="2"))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    folder.runpytest_inprocess().assert_outcomes(passed=1)
    write(folder, body.replace("range(2)", "range(3)"))
    result = folder.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ['*has the answer to "a number?" to gpt-4o-mini 2 times, and it was asked for once more.*']
    )


def test_unused_answers_are_told_and_dropped_by_the_next_recording(folder: pytest.Pytester, provider: Emulator) -> None:
    write(folder, TWO_QUESTIONS)
    provider.script(Reply(text="first"), Reply(text="second"))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    less = "async def test_it(recorded_gateway):\n    assert await told(recorded_gateway, 'one') == 'first'\n"
    write(folder, less)
    result = folder.runpytest_inprocess("-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*test_it.json has answers that were not asked for; to drop them: pytest --llm-record *"]
    )
    result.stdout.fnmatch_lines(['*"two" to gpt-4o-mini'])
    folder.runpytest_inprocess().assert_outcomes(passed=1, errors=1)  # as an error, where warnings are errors
    write(folder, less.replace("assert await", "pytest.skip('not today'); assert await"))
    folder.runpytest_inprocess().assert_outcomes(skipped=1)  # which says nothing about the recording
    write(folder, less)
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    folder.runpytest_inprocess().assert_outcomes(passed=1)
    assert len(recorded(folder, "test_it")["calls"]) == 1
    assert len(provider.ledger) == 2


@pytest.mark.usefixtures("provider")
def test_the_recording_of_a_test_that_is_gone_is_told(folder: pytest.Pytester) -> None:
    bodies = [
        f"async def test_{name}(recorded_gateway):\n    assert await told(recorded_gateway, 'x')\n\n" for name in "ab"
    ]
    write(folder, "".join(bodies))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=2)
    folder.runpytest_inprocess("-k", "test_a").assert_outcomes(passed=1, deselected=1)
    write(folder, bodies[0])
    result = folder.runpytest_inprocess("-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*No test of test_it.py replays llm_recordings/test_it/test_b.json any more; delete it."]
    )


def test_a_failing_test_leaves_its_recording_as_it_was(folder: pytest.Pytester, provider: Emulator) -> None:
    body = "async def test_it(recorded_gateway):\n    assert await told(recorded_gateway, 'x') == 'good'\n"
    write(folder, body)
    provider.script(Reply(text="bad"), Reply(text="good"))
    folder.runpytest_inprocess("--llm-record").assert_outcomes(failed=1)
    assert not path_of(folder, "test_it").exists()
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    write(folder, "async def test_it(recorded_gateway): pass\n")
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    assert not path_of(folder, "test_it").exists()  # nothing is asked any more


def test_streams_are_recorded_and_replayed_also_those_that_the_reader_leaves(
    folder: pytest.Pytester, provider: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        folder,
        """
async def test_it(recorded_gateway):
    pieces = [piece async for piece in recorded_gateway.stream(ask("whole"))]
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "once upon a time"
    assert pieces[-1].content == "once upon a time"
    assert await told(recorded_gateway, "not streamed") == "at once"
    async with aclosing(recorded_gateway.stream(ask("left"))) as left:
        assert (await anext(left)).text
    with pytest.raises(RequestRejectedError):
        [piece async for piece in recorded_gateway.stream(ask("refused"))]
""",
    )
    provider.script(
        Reply(text="once upon a time"),
        Reply(text="at once"),
        Reply(text="once more " * 20),
        Reply(status=400, error={"message": "no"}),
    )
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    calls = len(provider.ledger)
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    assert len(provider.ledger) == calls
    without_provider(monkeypatch)
    folder.runpytest_inprocess().assert_outcomes(passed=1)


def test_vectors_are_recorded_without_secrets_and_replayed_and_a_text_that_drifted_fails(
    folder: pytest.Pytester, provider: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""
@pytest.fixture
def llm_gateway_config():
    return {{"models": {{"e": {{"provider": "openai", "model": "text-embedding-3-small", "embedding": True}}}}}}


async def test_it(recorded_gateway):
    answers = await asyncio.gather(*[recorded_gateway.embed([text], model="e") for text in ("one", "{KEY}")])
    assert len({{tuple(answer.vectors[0]) for answer in answers}}) == 2
"""
    write(folder, body)
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=1)
    assert len(provider.ledger) == 1
    text = path_of(folder, "test_it").read_text()
    assert [each["text"] for each in json.loads(text)["vectors"]] == ["[key]", "one"]
    assert "canary" not in text
    without_provider(monkeypatch)
    folder.runpytest_inprocess().assert_outcomes(passed=1)
    write(folder, body.replace('"one"', '"one!"'))
    result = folder.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ['*test_it.json has no vector of "one!" by e. The nearest recorded text is "one". If * --llm-record *']
    )


def test_chaos_falls_on_a_replay_and_a_retry_gets_the_recorded_answer(
    folder: pytest.Pytester, provider: Emulator
) -> None:
    write(
        folder,
        """
@pytest.mark.llm_chaos(seed=5, truncated=0.5)
@pytest.mark.parametrize("text", ["plain", "with/slash and blank"])
async def test_it(recorded_gateway, text, request):
    for number in range(4):
        assert await told(recorded_gateway, f"{text} {number}")
    if not request.config.getoption("llm_record"):
        recorded_gateway.assert_called(rule="chaos")
""",
    )
    folder.runpytest_inprocess("--llm-record").assert_outcomes(passed=2)
    assert len(provider.ledger) == 8
    folder.runpytest_inprocess().assert_outcomes(passed=2)
    names = sorted(path.name for path in path_of(folder, "x").parent.iterdir())
    assert len(names) == 2
    assert names[0].startswith("test_it_plain-")


def test_recording_without_a_key_says_which_one_is_missing(folder: pytest.Pytester) -> None:
    write(folder, "async def test_it(recorded_gateway):\n    await told(recorded_gateway, 'x')\n")
    result = folder.runpytest_inprocess("--llm-record")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*MissingApiKeyError*OPENAI_API_KEY*"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "*is not JSON: *. Delete the file to record anew."),
        ('{"test": "test_it", "calls": 3}', "*: calls: 3 is wrong: it should be a valid list. Delete *"),
    ],
    ids=["no-json", "no-recording"],
)
def test_a_recording_that_cannot_be_read_is_told(folder: pytest.Pytester, text: str, told: str) -> None:
    write(folder, "def test_it(recorded_gateway): pass\n")
    path_of(folder, "test_it").parent.mkdir(parents=True)
    path_of(folder, "test_it").write_text(text)
    result = folder.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([told])


def test_a_worker_of_xdist_records_and_replays(folder: pytest.Pytester, provider: Emulator) -> None:
    write(
        folder,
        """
@pytest.mark.parametrize("number", range(2))
async def test_it(recorded_gateway, number):
    assert await told(recorded_gateway, f"question {number}")
""",
    )
    folder.runpytest_inprocess("-p", "xdist", "-n", "1", "--llm-record").assert_outcomes(passed=2)
    assert len(provider.ledger) == 2
    folder.runpytest_inprocess().assert_outcomes(passed=2)
    assert len(provider.ledger) == 2


# --- what it costs those who do not use it ------------------------------------------------------------------------


def test_loading_the_plugin_imports_nothing_of_the_gateway() -> None:
    script = """
import sys
import pytest
before = set(sys.modules)
import llm_gateway_pytest
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert told.stdout == "['llm_gateway_pytest']\n"


def test_the_marks_and_the_option_are_documented_where_pytest_lists_them(folder: pytest.Pytester) -> None:
    folder.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.llm_responses(source): *", "@pytest.mark.llm_chaos(seed=0, *"]
    )
    folder.runpytest_inprocess("--help").stdout.fnmatch_lines(["*--llm-record*ask the real models*"])
