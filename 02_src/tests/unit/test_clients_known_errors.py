"""Every exception class that the provider libraries define has an error of ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import aiohttp
import anthropic
import anthropic._exceptions
import groq
import httpx
import httpx2
import langchain_anthropic.chat_models
import langchain_core.exceptions
import langchain_openai.chat_models.base
import ollama
import openai
import openai._exceptions
import pytest

from fakes.deployments import deployment
from llm_gateway.clients.failures import AIOHTTP, HTTP, LANGCHAIN, NEARNESS, SDK, TYPES, Failures
from llm_gateway.clients.transport import Exchange
from llm_gateway.errors import (
    AuthenticationError,
    ContextLengthError,
    IncompleteResponseError,
    ModelNotFoundError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitError,
    RequestRejectedError,
)

# What a class says by the status that it stands for.
STATUSES: dict[int, type[ProviderError]] = {
    400: RequestRejectedError,
    401: AuthenticationError,
    402: QuotaExhaustedError,
    403: AuthenticationError,
    404: ModelNotFoundError,
    408: ProviderTimeoutError,
    409: ProviderUnavailableError,
    412: RequestRejectedError,
    413: RequestRejectedError,
    422: RequestRejectedError,
    429: RateLimitError,
    431: RequestRejectedError,
    499: ProviderUnavailableError,
    501: ProviderUnavailableError,
    503: ProviderUnavailableError,
    504: ProviderUnavailableError,
    529: ProviderOverloadedError,
}
NAMES: dict[str, type[ProviderError]] = {
    "OpenAIContextOverflowError": ContextLengthError,
    "OpenAIAPIContextOverflowError": ContextLengthError,
    "AnthropicContextOverflowError": ContextLengthError,
    "APITimeoutError": ProviderTimeoutError,
    "OpenAITimeoutError": ProviderTimeoutError,
    "AnthropicTimeoutError": ProviderTimeoutError,
    "APIConnectionError": ProviderUnavailableError,
    "OpenAIConnectionError": ProviderUnavailableError,
    "AnthropicConnectionError": ProviderUnavailableError,
    "APIError": ProviderUnavailableError,
    "APIStatusError": ProviderUnavailableError,  # any status; without one it is known by its base
    "InternalServerError": ProviderUnavailableError,
    "OpenAIAPIError": ProviderUnavailableError,
    "AnthropicAPIError": ProviderUnavailableError,
    "APIResponseValidationError": IncompleteResponseError,
    "APIWebhookValidationError": ProviderUnavailableError,  # an APIError that no call raises
    "LengthFinishReasonError": IncompleteResponseError,
    "ContentFilterFinishReasonError": RequestRejectedError,
    "SubjectTokenProviderError": AuthenticationError,
    "CredentialsError": AuthenticationError,
    "IdentityTokenFileError": AuthenticationError,
    "RetryableError": ProviderUnavailableError,
    "ResponseError": ProviderUnavailableError,
    "RequestError": RequestRejectedError,
}
# Bases and classes of other parts of the libraries: none is raised by a chat call, and none is retried.
NOT_RAISED_HERE = {
    "OpenAIError",
    "AnthropicError",
    "GroqError",
    "InvalidWebhookSignatureError",
    "WebSocketConnectionClosedError",
    "WebSocketQueueFullError",
    "WorkloadIdentityError",
    "OpenAIRefusalError",
}
MODULES = (
    openai,
    openai._exceptions,
    anthropic,
    anthropic._exceptions,
    groq,
    ollama,
    langchain_openai.chat_models.base,
    langchain_anthropic.chat_models,
)


def exceptions_of(module: ModuleType) -> Iterator[type[Exception]]:
    """The exception classes that a module's package defines."""
    package = module.__name__.partition(".")[0]
    for name, cls in list(vars(module).items()):
        if (
            issubclass(type(cls), type)  # whoever asks openai's proxies what they are imports all of it
            and issubclass(cls, Exception)
            and not name.startswith("_")
            and cls.__module__.partition(".")[0] == package
        ):
            yield cls


CLASSES = sorted({cls for module in MODULES for cls in exceptions_of(module)}, key=repr)


def translated(error: Exception, status: int | None = None) -> ProviderError:
    return Failures(deployment("openai", None)).translate(error, Exchange(status=status), "r1")[0]


def bare(cls: type[Exception]) -> Exception:
    """An instance without the response that its constructor wants."""
    quiet: Any = type(cls.__name__, (cls,), {"__str__": lambda _: "what it says", "__repr__": lambda _: "?"})
    error: Exception = quiet.__new__(quiet)
    return error


def test_the_libraries_do_define_exceptions() -> None:
    assert len(CLASSES) > 60


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_class_of_the_sdks_is_known(cls: type[Exception]) -> None:
    failure = translated(bare(cls))
    if cls.__name__ in NOT_RAISED_HERE:
        assert (type(failure), failure.retryable) == (ProviderError, False)
    else:
        assert type(failure) is (NAMES.get(cls.__name__) or STATUSES[getattr(cls, "status_code", 0)])


@pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_every_transport_error_of_both_http_libraries_is_known(module: Any) -> None:
    for cls in exceptions_of(module):
        failure = translated(bare(cls))
        if issubclass(cls, module.TimeoutException):
            assert type(failure) is ProviderTimeoutError, cls
        elif issubclass(cls, module.TransportError) and cls is not module.UnsupportedProtocol:
            assert failure.retryable, cls


def test_every_client_error_of_aiohttp_is_known() -> None:
    for cls in exceptions_of(aiohttp):
        if issubclass(cls, aiohttp.ClientError) and not issubclass(cls, aiohttp.InvalidURL):
            assert translated(bare(cls)).retryable, cls
        if issubclass(cls, aiohttp.ServerTimeoutError):
            assert type(translated(bare(cls))) is ProviderTimeoutError, cls


def test_every_model_error_of_langchain_is_known() -> None:
    bases = {"ModelError"}
    for cls in exceptions_of(langchain_core.exceptions):
        if issubclass(cls, langchain_core.exceptions.ModelError) and cls.__name__ not in bases:
            assert type(translated(bare(cls))) is LANGCHAIN[cls.__name__]


def test_every_name_that_we_look_for_exists() -> None:
    """A class that a library renames would else be looked for in vain."""
    for names, modules in (
        (LANGCHAIN, [langchain_core.exceptions]),
        (SDK, [openai._exceptions, anthropic._exceptions]),
        (HTTP, [httpx, httpx2]),
        (AIOHTTP, [aiohttp]),
    ):
        for name in names:
            assert any(hasattr(module, name) for module in modules), name
    for name in HTTP:
        assert hasattr(httpx, name), name
        assert hasattr(httpx2, name), name
    assert {name.partition(".")[0] for name in TYPES} >= NEARNESS.keys()


def test_the_cause_nearest_to_the_wire_decides() -> None:
    outer = openai.APITimeoutError(httpx2.Request("POST", "http://x"))
    outer.__cause__ = httpx2.ConnectTimeout("late")
    outer.__cause__.__cause__ = aiohttp.ServerDisconnectedError()
    failure = translated(outer)
    assert type(failure) is ProviderUnavailableError
    assert "Server disconnected" in str(failure)


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    outer = httpx.ConnectError("cannot connect")
    outer.__cause__ = ssl.SSLCertVerificationError(1, "self-signed certificate")
    failure = translated(outer)
    assert (type(failure), failure.retryable) == (ProviderError, False)
    assert "self-signed certificate" in str(failure)


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert type(translated(one)) is ProviderError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), ProviderTimeoutError),
        (ConnectionRefusedError("no"), ProviderUnavailableError),
        (RuntimeError("what a library says"), ProviderError),
        (ValueError("a parameter is refused before anything is sent"), ProviderError),
    ],
)
def test_errors_that_belong_to_no_library_are_translated_too(error: Exception, expected: type[ProviderError]) -> None:
    failure = translated(error)
    assert type(failure) is expected
    if expected is ProviderError:
        assert f"{type(error).__name__}: {error}" in str(failure)
        assert not failure.retryable


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), KeyError("x"), IndexError("x"), AttributeError("x")]
)
def test_a_stumble_over_an_answer_is_an_unreadable_answer(error: Exception) -> None:
    assert type(translated(error, 200)) is IncompleteResponseError
    assert type(translated(error)) is ProviderError


def test_a_cancellation_from_below_that_langchain_takes_for_an_answer_is_a_broken_call() -> None:
    with pytest.raises(AttributeError) as caught:
        asyncio.CancelledError().generations  # type: ignore[attr-defined]  # noqa: B018 - as LangChain does it
    assert type(translated(caught.value)) is ProviderUnavailableError


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("overloaded_error", ProviderOverloadedError),
        ("rate_limit_error", RateLimitError),
        ("api_error", ProviderUnavailableError),
        ("timeout_error", ProviderTimeoutError),
        ("authentication_error", AuthenticationError),
        ("permission_error", AuthenticationError),
        ("invalid_request_error", RequestRejectedError),
        ("not_found_error", ModelNotFoundError),
    ],
)
def test_an_error_event_in_a_stream_is_known_by_its_code(code: str, expected: type[ProviderError]) -> None:
    request = httpx2.Request("POST", "http://x")
    body = {"type": "error", "error": {"type": code, "message": "in mid-stream"}}
    error = anthropic.APIStatusError("x", response=httpx2.Response(200, request=request), body=body)
    assert type(translated(error, 200)) is expected
    plain = openai.APIError("x", request, body={"type": code, "code": None, "message": "in mid-stream"})
    assert type(translated(plain, 200)) is expected


def test_an_http_error_of_a_package_without_classes_of_its_own_is_known_by_its_status() -> None:
    response = httpx.Response(429, headers={"retry-after": "4"}, request=httpx.Request("POST", "http://x"))
    failure = translated(httpx.HTTPStatusError("x", request=response.request, response=response))
    assert (type(failure), failure.status, failure.retry_after) == (RateLimitError, 429, 4.0)


def test_a_page_of_html_is_not_quoted() -> None:
    response = httpx2.Response(502, request=httpx2.Request("POST", "http://x"))
    failure = translated(openai.InternalServerError("x", response=response, body="<html>Bad gateway</html>"))
    assert "a page of HTML" in str(failure)
    assert "<html>" not in str(failure)
