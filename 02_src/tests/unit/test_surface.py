"""What can be imported, what it costs, and what the errors promise."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import llm_gateway
from llm_gateway import errors
from llm_gateway.errors import (
    BatchError,
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    ProviderError,
    QueueFullError,
    RateLimitError,
    StreamInterruptedError,
)


def test_everything_public_is_listed_in_order_and_can_be_imported() -> None:
    assert llm_gateway.__all__ == sorted(llm_gateway.__all__)
    assert all(hasattr(llm_gateway, name) for name in llm_gateway.__all__)
    kinds = {name for name, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, GatewayError)}
    assert kinds <= set(llm_gateway.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'LLMGatewey'"):
        _ = llm_gateway.LLMGatewey


def test_importing_costs_no_langchain_and_no_provider() -> None:
    heavy = "langchain_core langchain_openai langchain_anthropic langchain_ollama openai anthropic ollama genai_prices"
    code = f"import llm_gateway, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert printed.strip() == "[]"


def test_every_error_has_a_kind_of_its_own() -> None:
    kinds = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, GatewayError)]
    assert len({each.kind for each in kinds}) == len(kinds)


@pytest.mark.parametrize(
    "error",
    [
        RateLimitError("busy", provider="p", model="m", status=429, retry_after=2.0),
        QueueFullError("m", depth=1, limit=1, retry_after=3.0),
        InvalidRequestError("wrong", field="model"),
        DeadlineExceededError(3.0, waited_for="waiting in the queue"),
        BatchError([ValueError("x")]),
        StreamInterruptedError(RateLimitError("busy", provider="p", model="m", request_id="r"), partial="Once upon"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_a_trip_to_another_process(error: GatewayError) -> None:
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert {key: str(value) for key, value in vars(back).items()} == {
        key: str(value) for key, value in vars(error).items()
    }


def test_the_providers_word_overrides_what_a_class_says_of_retries() -> None:
    assert RateLimitError.retryable
    assert not RateLimitError("no", provider="p", model="m", retryable=False).retryable
    assert ProviderError("no", provider="p", model="m", retryable=True).retryable


def test_an_interrupted_stream_can_be_asked_again_if_what_broke_it_can() -> None:
    for retryable in (True, False):
        cause = ProviderError("broken", provider="p", model="m", retryable=retryable)
        assert StreamInterruptedError(cause, partial="").retryable is retryable
    assert not StreamInterruptedError.retryable


def test_a_batch_error_without_failures_is_still_an_error() -> None:
    assert str(BatchError([])) == "0 of 0 requests failed. Every outcome, the answers included, is in `.outcomes`."
