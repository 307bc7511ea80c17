"""LangChain's standard tests over a gateway: what they need that this project has otherwise."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as standard

from llm_gateway import LLMGateway
from llm_gateway.integrations.langchain import GatewayChatModel, GatewayEmbeddings

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
Detail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


class Downloads:
    """Stands in for httpx where the tests fetch pictures and documents from the web."""

    class Response:
        content = PIXEL

    def get(self, _url: str, **_options: Any) -> Response:
        return self.Response()


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "httpx", Downloads())
    monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "nobody dials out")


@pytest.fixture
def benchmark() -> Callable[[Callable[[], None]], None]:
    """Of pytest-benchmark: here a function is called, and not timed."""
    return lambda work: work()


@pytest.fixture
def vcr() -> None:
    """Of pytest-recording: the test that asks for it is skipped before it looks."""


@pytest.fixture
def snapshot() -> None:
    """Of syrupy: the test that asks for it is skipped before it looks."""


class OverGateway:
    """What all of the gateway's suites have in common."""

    model_name = "gpt-4o-mini"

    @pytest.fixture(autouse=True)
    def _ask(self, gateway: LLMGateway) -> None:
        self._asked = gateway

    @property
    def chat_model_class(self) -> type[GatewayChatModel]:
        return GatewayChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"gateway": self._asked, "model": self.model_name}


class VectorsOverGateway:
    """What the gateway's suites for embedding models have in common."""

    @pytest.fixture(autouse=True)
    def _ask(self, gateway: LLMGateway) -> None:
        self._asked = gateway

    @property
    def embeddings_class(self) -> type[GatewayEmbeddings]:
        return GatewayEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"gateway": self._asked, "model": "vectors"}


class Everything(OverGateway, ChatModelIntegrationTests):
    """Whatever a provider might be able to do."""

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True
    supports_pdf_tool_message = True
    model_override_value = "gpt-4o-mini"
    details: tuple[Detail, ...] = ("reasoning_output", "cache_read_input", "cache_creation_input")

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        return {"invoke": list(self.details), "stream": list(self.details)}

    def _counted(self, *, stream: bool) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return model.invoke("What is the reason?")
        first, *rest = model.stream("What is the reason?")
        message = sum(rest, first)
        assert isinstance(message, AIMessage)
        return message

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._counted(stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._counted(stream=stream)

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        return self._counted(stream=stream)
