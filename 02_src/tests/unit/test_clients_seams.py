"""Private seams of the libraries that we rely on. Where one of these fails, an upgrade has moved it."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from fakes.deployments import deployment
from llm_gateway.clients.anthropic import Claude
from llm_gateway.clients.factory import LangChainClients

URL = "http://127.0.0.1:9"


def test_chat_anthropic_makes_its_client_in_a_cached_property_from_parameters_that_we_reuse() -> None:
    assert isinstance(inspect.getattr_static(ChatAnthropic, "_async_client"), cached_property)
    assert isinstance(inspect.getattr_static(ChatAnthropic, "_client_params"), cached_property)
    model = Claude(model_name="claude-haiku-4-5", api_key="sk-x", base_url=URL, max_retries=0)  # type: ignore[call-arg]
    model._http = anthropic.DefaultAioHttpClient(timeout=httpx2.Timeout(3.0))
    assert model._async_client._client is model._http
    assert (model._async_client.max_retries, str(model._async_client.base_url).rstrip("/")) == (0, URL)
    assert model._async_client.timeout == httpx2.Timeout(3.0)


def test_chat_ollama_keeps_its_client_in_a_private_attribute() -> None:
    model = ChatOllama(model="llama3.2", base_url=URL)
    assert isinstance(model._async_client, ollama.AsyncClient)
    assert "_async_client" in ChatOllama.__private_attributes__


def test_chat_ollama_names_its_options_as_ollama_does() -> None:
    known = set(ollama.Options.model_fields) & set(ChatOllama.model_fields)
    assert known >= {"temperature", "num_predict", "num_ctx", "seed", "stop", "top_k", "top_p"}


def test_chat_openai_makes_no_synchronous_client_for_a_key_that_is_a_coroutine() -> None:
    async def key() -> str:
        return "sk-x"

    http = openai.DefaultAioHttpClient()
    model = ChatOpenAI(model="gpt-4o-mini", api_key=key, base_url=URL, http_async_client=http, max_retries=0)
    assert model.root_client is None
    assert model.root_async_client._client is http
    assert model.root_async_client.max_retries == 0


def test_bound_tools_are_keyword_arguments_of_the_call() -> None:
    async def key() -> str:
        return "sk-x"

    model = ChatOpenAI(model="gpt-4o-mini", api_key=key, http_async_client=openai.DefaultAioHttpClient())
    bound = model.bind_tools([{"name": "look", "description": "Looks.", "parameters": {"type": "object"}}])
    assert set(bound.kwargs) == {"tools"}  # type: ignore[attr-defined]


def test_profiles_still_tell_what_we_ask_of_them() -> None:
    asked = {"temperature", "tool_choice", "image_inputs", "audio_inputs"}
    known: set[str] = set()
    for model in ("claude-sonnet-5-5", "claude-haiku-5-5"):
        made = LangChainClients().connect(deployment("anthropic", URL, model=model))
        known |= made._profile.keys()  # type: ignore[attr-defined]
    assert known >= asked


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama"])
def test_langchain_caches_no_answer_of_ours(kind: str) -> None:
    made = LangChainClients().connect(deployment(kind, URL))
    model: BaseChatModel = made._model  # type: ignore[attr-defined]
    assert model.cache is False


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (ChatOpenAI, "_convert_chunk_to_generation_chunk", ["chunk", "default_chunk_class", "base_generation_info"]),
        (ChatOpenAI, "_use_responses_api", ["payload"]),
        (ChatAnthropic, "_make_message_chunk_from_anthropic_event", ["event", "stream_usage"]),
    ],
    ids=["OpenAI's chunks", "OpenAI's APIs", "Anthropic's events"],
)
def test_what_reads_the_events_of_a_stream_is_where_we_listen(owner: type, name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert found[1 : 1 + len(parameters)] == parameters


def test_langchain_still_drops_what_we_keep_of_openais_streams() -> None:
    delta = {"role": "assistant", "refusal": "no", "reasoning_content": "hm"}
    model = ChatOpenAI(model="gpt-4o-mini", api_key=lambda: "sk-x")
    chunk = {"choices": [{"index": 0, "delta": delta}]}
    made = model._convert_chunk_to_generation_chunk(chunk, AIMessageChunk, None)
    assert made is not None
    assert made.message.additional_kwargs == {}


def test_langchain_still_drops_the_usage_that_anthropics_streams_begin_with() -> None:
    usage = anthropic.types.Usage(input_tokens=5, output_tokens=1)
    fields: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": []}
    message = anthropic.types.Message(**fields, usage=usage)
    event = anthropic.types.RawMessageStartEvent(type="message_start", message=message)
    plain = ChatAnthropic(model_name="c", api_key="sk-x")  # type: ignore[call-arg]
    made, _ = plain._make_message_chunk_from_anthropic_event(event, coerce_content_to_string=True)
    assert made is not None
    assert made.usage_metadata is None


def test_chat_openai_has_a_timeout_of_its_own_for_chunks_which_we_turn_off() -> None:
    assert ChatOpenAI.model_fields["stream_chunk_timeout"].default_factory is not None
    made = LangChainClients().connect(deployment("openai", URL))
    assert made._model.stream_chunk_timeout is None  # type: ignore[attr-defined]
