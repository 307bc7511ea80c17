"""LangChain's own standard unit tests, for chat models and for embedding models."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from fakes.langchain_suite import OverGateway, VectorsOverGateway, benchmark, snapshot
from llm_gateway import MockLLMGateway

__all__ = ["benchmark", "snapshot"]


class TestGatewayChatModel(OverGateway, ChatModelUnitTests):
    @pytest.fixture
    def gateway(self) -> MockLLMGateway:
        return MockLLMGateway()

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """All but `api_key` and `max_retries`, which the gateway's configuration has."""
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}


class TestGatewayEmbeddings(VectorsOverGateway, EmbeddingsUnitTests):
    @pytest.fixture
    def gateway(self) -> MockLLMGateway:
        model = {"provider": "openai", "model": "text-embedding-3-small", "embedding": True}
        return MockLLMGateway({"models": {"vectors": model}})
