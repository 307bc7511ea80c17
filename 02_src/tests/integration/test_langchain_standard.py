"""LangChain's own standard tests, on the mock, on the emulator's three APIs and on a real model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from pydantic import BaseModel

from fakes import chatty
from fakes.deployments import CANARY, MODELS, base_url
from fakes.emulator import Emulator
from fakes.emulator_thread import emulator_in_a_thread
from fakes.langchain_suite import Everything, OverGateway, VectorsOverGateway, benchmark, no_downloads, vcr
from llm_gateway import InvalidRequestError, LLMGateway, MockLLMGateway, local_model

__all__ = ["benchmark", "no_downloads", "vcr"]


class TestOnTheMock(Everything):
    model_name = "claude-haiku"

    @pytest.fixture
    async def gateway(self) -> AsyncIterator[LLMGateway]:
        async with MockLLMGateway(responses=chatty.scripted()) as made:
            yield made


@pytest.fixture(scope="module")
def provider() -> Iterator[Emulator]:
    with emulator_in_a_thread() as emulator:
        emulator.answer = chatty.emulated
        yield emulator


class OnTheEmulator(Everything):
    kind: str

    @pytest.fixture
    async def gateway(self, provider: Emulator) -> AsyncIterator[LLMGateway]:
        section = {"base_url": base_url(provider.url, self.kind), "api_key": CANARY}
        model = {"provider": self.kind, "model": MODELS[self.kind]}
        config = {
            "providers": {self.kind: section},
            "models": {self.model_name: model, "gpt-4o-mini": model},
            "logs": {"dir": False},
        }
        async with LLMGateway(config) as made:
            yield made


@pytest.mark.filterwarnings("ignore:OpenAI may require a filename")  # the suite's files have none
class TestOnOpenAI(OnTheEmulator):
    kind = "openai"
    supports_audio_inputs = False  # gpt-4o-mini does not
    details = ("reasoning_output", "cache_read_input")


class TestOnAnthropic(OnTheEmulator):
    kind = "anthropic"
    supports_audio_inputs = False  # no Claude does
    details = ("cache_read_input", "cache_creation_input")


NO_CHOICE = "Ollama's API has no tool_choice, and the gateway does not promise what it cannot keep"


class TestOnOllama(OnTheEmulator):
    kind = "ollama"
    has_tool_choice = False
    supports_image_urls = False  # Ollama fetches nothing
    supports_pdf_inputs = False
    supports_pdf_tool_message = False
    supports_audio_inputs = False
    details = ()

    @pytest.mark.xfail(reason=NO_CHOICE, raises=InvalidRequestError, strict=True)
    def test_structured_few_shot_examples(self, model: BaseChatModel, my_adder_tool: BaseTool) -> None:
        super().test_structured_few_shot_examples(model, my_adder_tool)

    @pytest.mark.xfail(reason=NO_CHOICE, raises=InvalidRequestError, strict=True)
    def test_unicode_tool_call_integration(
        self,
        model: BaseChatModel,
        *,
        tool_choice: str | None = None,  # noqa: PT028 - the suite's own signature
        force_tool_call: bool = True,  # noqa: PT028 - see above
    ) -> None:
        super().test_unicode_tool_call_integration(model, tool_choice=tool_choice, force_tool_call=force_tool_call)


@pytest.fixture(scope="module")
def local() -> Iterator[LLMGateway]:
    """One for all tests, in the background thread, so that the file is loaded once."""
    pytest.importorskip("xllamacpp")
    local_model.pull("smollm2-135m", lambda _: None)
    model = {"provider": "llamacpp", "model": "smollm2-135m", "max_concurrency": 2, "max_tokens": 8}
    made = LLMGateway({"models": {"local": model, "also-local": model}, "logs": {"dir": False}})
    chat = made.as_langchain("local")
    chat.invoke("Hello")
    yield made
    chat.close()


class TestOnARealModel(OverGateway, ChatModelIntegrationTests):
    """A model of 135 million parameters: it proves that everything works, and knows nothing of tools."""

    model_name = "local"
    has_tool_calling = False
    has_structured_output = False  # one schema is asked for below
    model_override_value = "also-local"

    @pytest.fixture
    def gateway(self, local: LLMGateway) -> LLMGateway:
        return local


class City(BaseModel):
    """A city."""

    on_a_river: bool


def test_a_real_models_answer_follows_a_schema(local: LLMGateway) -> None:
    chat = local.as_langchain("local", max_tokens=24).with_structured_output(City)
    assert isinstance(chat.invoke("Paris"), City)


VECTORS = {"openai": "text-embedding-3-small", "ollama": "nomic-embed-text"}


class TestVectorsOnTheMock(VectorsOverGateway, EmbeddingsIntegrationTests):
    @pytest.fixture
    async def gateway(self) -> AsyncIterator[LLMGateway]:
        model = {"provider": "openai", "model": VECTORS["openai"], "embedding": True}
        async with MockLLMGateway({"models": {"vectors": model}}) as made:
            yield made


class VectorsOnTheEmulator(VectorsOverGateway, EmbeddingsIntegrationTests):
    kind: str

    @pytest.fixture
    async def gateway(self, provider: Emulator) -> AsyncIterator[LLMGateway]:
        section = {"base_url": base_url(provider.url, self.kind), "api_key": CANARY}
        model = {"provider": self.kind, "model": VECTORS[self.kind], "embedding": True}
        config = {"providers": {self.kind: section}, "models": {"vectors": model}, "logs": {"dir": False}}
        async with LLMGateway(config) as made:
            yield made


class TestVectorsOnOpenAI(VectorsOnTheEmulator):
    kind = "openai"


class TestVectorsOnOllama(VectorsOnTheEmulator):
    kind = "ollama"
