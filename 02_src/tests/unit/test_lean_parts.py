"""The parts of the lean transport that need no connection."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from ollama._client import _parse_host
from yarl import URL

from fakes.deployments import CANARY, KINDS, base_url, deployment
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.clients.lean import anthropic as lean_anthropic
from llm_gateway.clients.lean import ollama as lean_ollama
from llm_gateway.clients.lean import openai as lean_openai
from llm_gateway.clients.lean import seams
from llm_gateway.clients.lean.coding import decode, decode_object, encode
from llm_gateway.clients.lean.environment import proxy_of
from llm_gateway.clients.lean.faults import OverflowEventError, RefusedError, TooLongError, error_event, refusal
from llm_gateway.clients.lean.http import Target, sdk_headers
from llm_gateway.clients.lean.records import Events
from llm_gateway.clients.messages import UnreadableAnswerError
from llm_gateway.config import endpoint_of, load_config
from llm_gateway.errors import ConfigurationError

URL_HERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": "ü", "b": [1, 2.5, None, True]}, '{"a":"ü","b":[1,2.5,null,true]}'),
        ({"n": 10**30}, '{"n":' + "1" + "0" * 30 + "}"),
        ({1: "x"}, '{"1":"x"}'),
    ],
)
def test_what_json_can_say_is_said(value: Any, text: str) -> None:
    assert encode(value).decode() == text


@pytest.mark.parametrize("value", [{"a": b"bytes"}, {"a": object()}, {"a": {1, 2}}])
def test_what_json_cannot_say_is_no_body(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)


@pytest.mark.parametrize(
    "text", ['{"n": 123456789012345678901234567890}', '{"s": "\\ud83d"}', '{"x": NaN}', "[" * 300 + "]" * 300]
)
def test_what_the_fast_reader_refuses_is_read_all_the_same(text: str) -> None:
    assert repr(decode(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", [b"", b"<html>", b'{"a": ', b"\xff\xfe", b"[" * 200_000, b"{} {}"])
def test_what_is_no_json_is_unreadable_without_a_word_of_it(text: bytes) -> None:
    with pytest.raises(UnreadableAnswerError, match=r"it is no JSON$") as caught:
        decode(text)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", [b"[]", b'"text"', b"3", b"null"])
def test_an_answer_is_an_object(text: bytes) -> None:
    with pytest.raises(UnreadableAnswerError, match="no JSON object"):
        decode_object(text)


def test_an_event_without_data_says_nothing() -> None:
    events = Events()
    assert list(events.feed(b": keep-alive\n\nevent: ping\nid: 3\nretry: 5\n\ndata:x\ndata: y\n\n")) == [b"x\ny"]
    assert list(events.rest()) == []


def test_only_a_bad_request_is_searched_for_the_words_of_a_long_prompt() -> None:
    body = {"error": {"message": "prompt is too long"}}
    assert isinstance(refusal(400, body, lean_anthropic.TOO_LONG), TooLongError)
    assert type(refusal(400, body)) is RefusedError
    assert type(refusal(500, body, lean_anthropic.TOO_LONG)) is RefusedError
    assert isinstance(error_event("it exceeds the context window", lean_openai.TOO_LONG), OverflowEventError)


def test_a_longer_query_and_more_headers_leave_the_target_as_it_is() -> None:
    target = Target("http://host/v1?a=1", {"Authorization": "Bearer x"})
    other = target.varied({"AUTHORIZATION": "Bearer y"}, {"b": "2"})
    assert (str(target.url), target.headers["authorization"]) == ("http://host/v1?a=1", "Bearer x")
    assert (str(other.url), other.headers.getall("authorization")) == ("http://host/v1?a=1&b=2", ["Bearer y"])


def test_of_an_sdks_headers_what_is_left_out_or_tells_of_the_machine_is_not_sent() -> None:
    told = {"X-Stainless-OS": "Linux", "OpenAI-Project": object(), "Accept": "application/json", "accept": "text/plain"}
    assert sdk_headers(told) == {"accept": "text/plain"}


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://api.openai.com/v1", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://api.openai.com/v1", "http://proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "https://api.openai.com/v1", "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "https://api.openai.com/v1", None),
        ({"ALL_PROXY": "https://proxy"}, "http://api.example/v1", "https://proxy"),
        ({"ALL_PROXY": "http://proxy", "NO_PROXY": "*"}, "http://api.example/v1", None),
        ({"ALL_PROXY": "http://proxy", "NO_PROXY": "localhost,.example"}, "http://api.example/v1", None),
        ({"ALL_PROXY": "http://proxy", "NO_PROXY": "api.example:8080"}, "http://api.example:8080/v1", None),
        ({"ALL_PROXY": "http://proxy", "NO_PROXY": "api.example:8080"}, "http://api.example/v1", "http://proxy"),
    ],
)
def test_the_environment_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(URL(url)) == (URL(proxy) if proxy else None)


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_that_does_not_speak_http_is_an_error_that_hides_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5://me:{CANARY}@proxy:1080")
    with pytest.raises(ConfigurationError, match=r"'socks5'.*transport = 'sdk'") as caught:
        proxy_of(URL("https://api.openai.com/v1"))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "1.2.3.4", ":56789", "1.2.3.4:56789", "http://1.2.3.4:8080", "https://1.2.3.4:56789", "example.com",
        "example.com:56789", "example.com/", "example.com/path", "example.com:56789/path/", "[0001:2::1]",
        "[0001:2::1]:56789/path", "https://example.com:56789/path/",
    ],
)  # fmt: skip
def test_an_address_of_ollama_means_what_its_sdk_takes_it_for(host: str) -> None:
    assert URL(lean_ollama.address(host)) == URL(_parse_host(host))


def test_a_host_with_a_scheme_has_the_port_of_its_scheme() -> None:
    assert [URL(lean_ollama.address(host)).port for host in ("http://a", "https://a/x")] == [80, 443]


def test_the_installed_langchain_has_every_seam() -> None:
    from langchain_anthropic import ChatAnthropic

    assert seams.missing(ChatOpenAI, lean_openai.SEAM, lean_openai.FIELDS) is None
    assert seams.missing(ChatAnthropic, lean_anthropic.SEAM) is None
    assert seams.missing(ChatOllama, lean_ollama.SEAM, lean_ollama.FIELDS) is None


class Renamed:
    async def _agenerate(self, messages: list[Any], stop: Any = None) -> None: ...
    async def _anything(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("seam", "fields", "lacking"),
    [
        ({"_agenerate": ("messages", "stop")}, (), None),
        ({"_agenerate": ("messages", "run_manager")}, (), "Renamed._agenerate(run_manager)"),
        ({"_anything": ("whatever",)}, (), None),
        ({"_gone": ()}, (), "Renamed._gone"),
        ({}, ("async_client",), "Renamed.async_client"),
    ],
)
def test_what_a_seam_lacks_is_named(seam: seams.Seam, fields: tuple[str, ...], lacking: str | None) -> None:
    assert seams.missing(Renamed, seam, fields) == lacking


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_seam_a_kind_goes_through_the_sdk_and_says_so_once(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = {"openai": lean_openai, "anthropic": lean_anthropic, "ollama": lean_ollama}[kind]
    monkeypatch.setattr(module, "SEAM", {"_renamed_in_the_meantime": ()})
    seams._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "llm_gateway"):
        for _ in range(3):
            made: Any = LangChainClients().connect(deployment(kind, base_url(URL_HERE, kind)))
    [record] = caplog.records
    assert "_renamed_in_the_meantime" in record.message
    assert len(made._leases) == 1
    assert getattr(made._model, "_lean", None) is None
    assert not isinstance(getattr(made._model, "_async_client", None), lean_ollama.Chat)


@pytest.mark.parametrize(
    ("section", "transport"),
    [
        ({"kind": "openai"}, "lean"),
        ({"kind": "anthropic", "transport": "sdk"}, "sdk"),
        ({"kind": "ollama", "total_timeout": 5}, "lean"),
        ({"kind": "groq"}, "sdk"),
        ({"kind": "llamacpp"}, "sdk"),
    ],
)
def test_plain_apis_are_lean_unless_told_otherwise(section: dict[str, Any], transport: str) -> None:
    endpoint = endpoint_of(load_config({"providers": {"mine": section}}), "mine", {})
    assert (endpoint.transport, endpoint.total_timeout) == (transport, section.get("total_timeout"))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"kind": "groq", "transport": "lean"},
            "providers.mine.transport: 'lean' speaks the APIs of anthropic, ollama",
        ),
        ({"kind": "groq", "total_timeout": 5}, "providers.mine.total_timeout: only the lean transport"),
        ({"kind": "openai", "transport": "sdk", "total_timeout": 5}, "providers.mine.total_timeout"),
        ({"kind": "openai", "transport": "rust"}, "providers.mine.transport"),
    ],
)
def test_a_transport_that_a_provider_cannot_have_is_an_error(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_config({"providers": {"mine": section}})
