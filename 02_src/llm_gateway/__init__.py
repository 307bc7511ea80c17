"""One door to every LLM for a system of many agents.

An agent awaits `gateway.request()` or `gateway.batch()`; the gateway queues, batches through LangChain's clients,
retries, prices and writes down what it did.
"""

from typing import TYPE_CHECKING, Any

from llm_gateway.errors import (
    AuthenticationError,
    BatchError,
    BudgetExceededError,
    ConfigurationError,
    ContextLengthError,
    DeadlineExceededError,
    EmbeddingError,
    GatewayClosedError,
    GatewayError,
    IncompleteResponseError,
    InvalidAnswerError,
    InvalidRequestError,
    JobChangedError,
    JobError,
    JobStoreBusyError,
    MissingApiKeyError,
    MissingDependencyError,
    ModelNotFoundError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitError,
    RequestRejectedError,
    RequestTooLargeError,
    StreamInterruptedError,
    UnknownModelError,
)
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import (
    EmbeddingResponse,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMTool,
    LLMToolCall,
    ModelProvider,
    ReasoningDelta,
    Receipt,
    RequestPriority,
    StreamDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
)

if TYPE_CHECKING:
    from llm_gateway.mock_gateway import MockLLMGateway, UnmatchedRequestError

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "BatchError",
    "BudgetExceededError",
    "ConfigurationError",
    "ContextLengthError",
    "DeadlineExceededError",
    "EmbeddingError",
    "EmbeddingResponse",
    "GatewayClosedError",
    "GatewayError",
    "IncompleteResponseError",
    "InvalidAnswerError",
    "InvalidRequestError",
    "JobChangedError",
    "JobError",
    "JobStoreBusyError",
    "LLMGateway",
    "LLMMessage",
    "LLMRequest",
    "LLMResponse",
    "LLMTool",
    "LLMToolCall",
    "MissingApiKeyError",
    "MissingDependencyError",
    "MockLLMGateway",
    "ModelNotFoundError",
    "ModelProvider",
    "ProviderError",
    "ProviderOverloadedError",
    "ProviderTimeoutError",
    "ProviderUnavailableError",
    "QueueFullError",
    "QuotaExhaustedError",
    "RateLimitError",
    "ReasoningDelta",
    "Receipt",
    "RequestPriority",
    "RequestRejectedError",
    "RequestTooLargeError",
    "StreamDelta",
    "StreamInterruptedError",
    "TextDelta",
    "TokenUsage",
    "ToolCallDelta",
    "UnknownModelError",
    "UnmatchedRequestError",
]


def __getattr__(name: str) -> Any:
    """Import the mock when it is first asked for: production code does not pay for it."""
    if name in {"MockLLMGateway", "UnmatchedRequestError"}:
        from llm_gateway import mock_gateway

        return getattr(mock_gateway, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
