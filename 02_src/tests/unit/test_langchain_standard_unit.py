"""LangChain's own standard unit tests for chat models."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from fakes.langchain_suite import OverGateway, benchmark, snapshot
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
