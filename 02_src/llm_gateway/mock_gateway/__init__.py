"""MockLLMGateway, the gateway for tests: the real queue, batches and retries over scripted answers."""

from llm_gateway.mock_gateway.calls import RecordedCall
from llm_gateway.mock_gateway.chaos import Chaos
from llm_gateway.mock_gateway.gateway import MockLLMGateway
from llm_gateway.mock_gateway.responses import MockResponses, json_schema
from llm_gateway.mock_gateway.scripted import UnmatchedRequestError

__all__ = ["Chaos", "MockLLMGateway", "MockResponses", "RecordedCall", "UnmatchedRequestError", "json_schema"]
