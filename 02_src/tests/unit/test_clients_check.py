"""What is refused before anything is sent: requests at admission, configurations when a client is made."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fakes.deployments import CANARY, deployment, request, said, tool
from llm_gateway.clients.base import ChatClient
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.errors import ConfigurationError, InvalidRequestError, MissingApiKeyError, MissingDependencyError
from llm_gateway.models import LLMMessage, LLMToolCall

URL = "http://127.0.0.1:9"
TOOL = tool("look")
SCHEMA = {"type": "object", "properties": {}}


def client(kind: str, **options: Any) -> ChatClient:
    return LangChainClients().connect(deployment(kind, URL, **options))


def block(kind: str) -> LLMMessage:
    return said("user", [{"type": "text", "text": "see"}, {"type": kind, "data": "…"}])


@pytest.mark.parametrize(
    ("kind", "model", "fields", "where"),
    [
        ("anthropic", None, {"temperature": 1.5}, "LLMRequest.temperature: 1.5 is more than 1"),
        ("anthropic", "claude-sonnet-5-5", {"tools": [TOOL], "tool_choice": "any"}, "LLMRequest.tool_choice: this"),
        ("ollama", None, {"tools": [TOOL], "tool_choice": "any"}, "LLMRequest.tool_choice: Ollama cannot"),
        ("ollama", None, {"tools": [TOOL], "tool_choice": "look"}, "use 'auto'"),
        ("openai", "gpt-3.5-turbo", {"tools": [TOOL], "response_format": SCHEMA}, None),  # the profile is wrong there
        ("anthropic", "claude-opus-5-5", {"temperature": 1.5}, None),  # left out, so it does not matter
        ("openai", None, {"temperature": 1.5}, None),
    ],
)
def test_what_a_model_is_known_to_refuse_costs_no_call(
    kind: str, model: str | None, fields: dict[str, Any], where: str | None
) -> None:
    made = client(kind, model=model)
    if where is None:
        made.check(request(**fields))
        return
    with pytest.raises(InvalidRequestError) as caught:
        made.check(request(**fields))
    assert where in str(caught.value)


@pytest.mark.parametrize("kind", ["image", "image_url"])
def test_a_picture_for_a_model_without_eyes_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]\.content\[1\]: 'm' takes no block of type 'image"):
        client("openai", model="o3-mini").check(request(said("system", "s"), block(kind)))
    client("openai", model="gpt-4o").check(request(block(kind)))


def test_sound_and_films_are_refused_where_the_profile_denies_them() -> None:
    for kind in ("audio", "input_audio", "video"):
        with pytest.raises(InvalidRequestError):
            client("anthropic").check(request(block(kind)))


def test_a_model_of_which_nothing_is_known_is_refused_nothing() -> None:
    made = client("openai", model="my-own-model")
    made.check(request(block("image"), tools=[TOOL], tool_choice="any", response_format=SCHEMA))


def test_a_block_without_a_type_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[0\]: a block without 'type'"):
        client("ollama").check(request(said("user", [{"text": "hello"}])))


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([said("system", "s")], "LLMRequest.messages: only system messages"),
        (
            [said("system", "s"), said("user", "u"), said("system", "late")],
            r"messages\[2\]\.role: 'system' after",
        ),
    ],
)
def test_anthropic_takes_system_messages_only_at_the_start(messages: list[LLMMessage], where: str) -> None:
    with pytest.raises(InvalidRequestError, match=where):
        client("anthropic").check(request(*messages))
    client("openai").check(request(*messages))


def test_a_model_that_takes_late_system_messages_is_left_alone() -> None:
    late = [said("user", "u"), said("assistant", "a"), said("user", "u"), said("system", "s")]
    client("anthropic", model="claude-opus-5-5").check(request(*late))
    client("anthropic").check(request(said("system", "a"), said("system", "b"), said("user", "u")))


def test_anthropic_takes_no_composed_tool_schemas() -> None:
    with pytest.raises(InvalidRequestError, match=r"tools\[1\]\.input_schema: Anthropic takes no 'anyOf'"):
        client("anthropic").check(request(tools=[TOOL, tool("peek", anyOf=[])]))


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_missing_key_names_the_variable_and_the_key_to_set(kind: str) -> None:
    with pytest.raises(MissingApiKeyError) as caught:
        LangChainClients().connect(deployment(kind, None, key=None))
    assert f"{kind.upper()}_API_KEY" in str(caught.value)
    assert f"`[providers.{kind}] api_key`" in str(caught.value)


def test_a_server_of_ones_own_needs_no_key() -> None:
    for kind in ("openai", "anthropic", "ollama"):
        LangChainClients().connect(deployment(kind, URL, key=None))


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_an_address_that_is_none_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"providers\.{kind}\.base_url: no HTTP address"):
        LangChainClients().connect(deployment(kind, "localhost:8000"))


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama", "groq"])
def test_an_option_that_the_gateway_sets_itself_is_refused(kind: str) -> None:
    option = "async_client_kwargs" if kind == "ollama" else "max_retries"
    with pytest.raises(ConfigurationError, match=rf"models\.m\.options\.{option}: the gateway sets this itself"):
        client(kind, options={option: 3})


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama", "groq"])
def test_an_option_of_the_wrong_type_is_named(kind: str) -> None:
    option = {"ollama": "num_ctx", "groq": "temperature"}.get(kind, "streaming")
    with pytest.raises(ConfigurationError, match=rf"models\.m\.options\.{option}: ") as caught:
        client(kind, options={option: f"{CANARY} is not it"})
    assert CANARY not in str(caught.value)


def test_an_unknown_provider_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"the chat model of 'acme_ai' cannot be set up: .*Unsupported"):
        client("acme_ai")


def test_a_provider_whose_package_is_missing_names_the_command() -> None:
    with pytest.raises(MissingDependencyError, match=r"^pip install langchain-together$"):
        client("together")


def test_without_langchain_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(MissingDependencyError, match=r"^pip install 'llm-gateway\[providers\]'$"):
        client("groq")


def test_a_conversation_with_a_tool_result_passes() -> None:
    turns = [
        said("user", "u"),
        said("assistant", "", tool_calls=[LLMToolCall(id="1", name="look")]),
        said("tool", "seen", tool_call_id="1"),
    ]
    for kind in ("openai", "anthropic", "ollama"):
        client(kind).check(request(*turns, tools=[TOOL]))


def test_the_key_is_in_no_representation_of_a_client() -> None:
    for kind in ("openai", "anthropic", "ollama", "groq"):
        made: Any = client(kind)
        assert CANARY not in f"{made!r} {made._model!r} {made._model}"


def cyclic() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"again": schema}
    return schema


def deep() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(50_000):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HALF = "half \ud800"
CALLED = LLMToolCall(id="1", name="look", arguments={"at": HALF})


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize(
    ("messages", "fields", "where"),
    [
        ([said("user", HALF)], {}, r"messages\[0\]\.content: holds a lone surrogate at character 5;"),
        ([said("user", [{"type": "text", "text": HALF}])], {}, r"messages\[0\]\.content\[0\]: holds a lone"),
        ([said("user", [{"type": "text", "text": b"x"}])], {}, r"messages\[0\]\.content\[0\]: cannot be written"),
        ([said("user"), said("assistant", tool_calls=[CALLED])], {}, r"\[1\]\.tool_calls\[0\]\.arguments: holds"),
        ([said("tool", "x", tool_call_id=HALF)], {}, r"messages\[0\]\.tool_call_id: holds a lone surrogate"),
        ([], {"tools": [TOOL.model_copy(update={"input_schema": cyclic()})]}, r"tools\[0\]\.input_schema: cannot be"),
        ([], {"tools": [TOOL.model_copy(update={"input_schema": deep()})]}, r"tools\[0\]\.input_schema: nests too"),
        ([], {"tools": [TOOL.model_copy(update={"description": HALF})]}, r"tools\[0\]\.description: holds a lone"),
        ([], {"stop": ["é", HALF]}, r"stop\[1\]: holds a lone surrogate"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_its_field(
    kind: str, messages: list[LLMMessage], fields: dict[str, Any], where: str
) -> None:
    unsendable = request(*messages).model_copy(update=fields)  # records may come to refuse some of it themselves
    with pytest.raises(InvalidRequestError, match=where):
        client(kind).check(unsendable)


def test_a_schema_of_the_answer_that_is_no_json_is_refused() -> None:
    asked = request().model_copy(update={"response_format": {"type": "number", "default": float("nan")}})
    with pytest.raises(InvalidRequestError, match=r"response_format: cannot be written as JSON"):
        client("openai").check(asked)


def test_text_of_any_script_is_taken() -> None:
    blocks = [{"type": "text", "text": "größer \N{GRINNING FACE}"}]
    client("openai").check(request(said("user", "größer \N{GRINNING FACE}"), said("user", blocks)))


@pytest.mark.parametrize("kind", ["anthropic", "ollama"])
@pytest.mark.parametrize(
    "malformed",
    [{"type": "image_url"}, {"type": "image_url", "image_url": 5}, {"type": "image_url", "image_url": {"link": "x"}}],
)
def test_a_malformed_picture_is_refused_where_the_package_stumbles_over_it(
    kind: str, malformed: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content: a content block is malformed"):
        client(kind).check(request(said("user", [{"type": "text", "text": "see"}, malformed])))


@pytest.mark.parametrize("kind", ["anthropic", "ollama"])
def test_a_picture_in_good_form_is_taken(kind: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    client(kind).check(request(said("user", [{"type": "text", "text": "see"}, picture])))


def test_a_key_that_was_missing_works_once_it_is_there() -> None:
    clients = LangChainClients()
    with pytest.raises(MissingApiKeyError):
        clients.connect(deployment("openai", None, key=None))
    clients.connect(deployment("openai", None))


def test_no_package_warns_of_proxies_that_our_connections_heed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("langchain_openai.chat_models._client_utils._proxy_env_warning_emitted", False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for kind in ("openai", "anthropic", "ollama", "groq"):
        client(kind)
    assert caplog.records == []
