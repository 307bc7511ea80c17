"""Whatever a call raises, as one of our errors: decided by type, HTTP status and error code, never by words.

Types are known by name, `package.Class`, so that no provider's package is imported for the sake of its errors; a test
compares the names with what the packages define.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence

from langchain_core.exceptions import ContextOverflowError

from llm_gateway.clients import hints
from llm_gateway.clients.base import Deployment
from llm_gateway.clients.transport import Exchange
from llm_gateway.clients.wording import Redactor, sentence
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

# Codes that tell more than the status they come with.
DECISIVE_CODES: Mapping[str, type[ProviderError]] = {
    "insufficient_quota": QuotaExhaustedError,
    "billing_hard_limit_reached": QuotaExhaustedError,
    "billing_not_active": QuotaExhaustedError,
    "billing_error": QuotaExhaustedError,
    "contract_spend_limit_reached": QuotaExhaustedError,
    "enforced_spend_limit_reached": QuotaExhaustedError,
    "linked_organization_spend_limit_reached": QuotaExhaustedError,
    "context_length_exceeded": ContextLengthError,
    "exceed_context_size_error": ContextLengthError,  # llama.cpp
    "overloaded_error": ProviderOverloadedError,
    "server_is_overloaded": ProviderOverloadedError,
    "slow_down": ProviderOverloadedError,
    "resource_unavailable": ProviderOverloadedError,  # OpenAI's flex tier has no room; not charged
}

STATUSES: Mapping[int, type[ProviderError]] = {
    401: AuthenticationError,
    402: QuotaExhaustedError,
    403: AuthenticationError,
    404: ModelNotFoundError,
    408: ProviderTimeoutError,
    409: ProviderUnavailableError,  # somebody else changed the same thing at that moment
    425: ProviderUnavailableError,
    429: RateLimitError,
    499: ProviderUnavailableError,  # a proxy on the way gave up
    529: ProviderOverloadedError,
}

# Any other status, by its first digit.
FAMILIES: Mapping[int, type[ProviderError]] = {
    3: ProviderError,  # a redirect is not followed: no key goes where it was not meant to go
    4: RequestRejectedError,
    5: ProviderUnavailableError,
}

# Codes of errors that come without an error status: as an event of a stream that began with 200.
CODES: Mapping[str, type[ProviderError]] = {
    "rate_limit_error": RateLimitError,
    "rate_limit_exceeded": RateLimitError,
    "authentication_error": AuthenticationError,
    "invalid_api_key": AuthenticationError,
    "permission_error": AuthenticationError,
    "not_found_error": ModelNotFoundError,
    "model_not_found": ModelNotFoundError,
    "invalid_request_error": RequestRejectedError,
    "request_too_large": RequestRejectedError,
    "timeout_error": ProviderTimeoutError,
    "api_error": ProviderUnavailableError,
    "server_error": ProviderUnavailableError,
}

# LangChain's own classes, which some partner packages raise besides their SDK's.
LANGCHAIN = {
    "ContextOverflowError": ContextLengthError,
    "ModelAuthenticationError": AuthenticationError,
    "ModelPermissionDeniedError": AuthenticationError,
    "ModelInvalidRequestError": RequestRejectedError,
    "ModelNotFoundError": ModelNotFoundError,
    "ModelRateLimitError": RateLimitError,
    "ModelAPIError": ProviderUnavailableError,
    "ModelConnectionError": ProviderUnavailableError,
    "ModelTimeoutError": ProviderTimeoutError,
}
# The SDKs of OpenAI and Anthropic, and those made by the same generator.
SDK = {
    "APITimeoutError": ProviderTimeoutError,
    "APIConnectionError": ProviderUnavailableError,
    "APIResponseValidationError": IncompleteResponseError,
    "APIError": ProviderUnavailableError,  # an event of a stream; statuses and codes have been looked at before
    "ContentFilterFinishReasonError": RequestRejectedError,
    "LengthFinishReasonError": IncompleteResponseError,
    "SubjectTokenProviderError": AuthenticationError,
    "CredentialsError": AuthenticationError,
    "RetryableError": ProviderUnavailableError,
}
HTTP = {
    "TimeoutException": ProviderTimeoutError,
    "RemoteProtocolError": IncompleteResponseError,
    "DecodingError": IncompleteResponseError,
    "UnsupportedProtocol": ProviderError,  # a base_url that no retry mends
    "TransportError": ProviderUnavailableError,
    "InvalidURL": ProviderError,
}
AIOHTTP = {
    "ServerTimeoutError": ProviderTimeoutError,
    "ClientPayloadError": IncompleteResponseError,
    "InvalidURL": ProviderError,
    "ClientError": ProviderUnavailableError,
}
TYPES: Mapping[str, type[ProviderError]] = {
    **{f"langchain_core.{name}": kind for name, kind in LANGCHAIN.items()},
    **{f"{package}.{name}": kind for package in ("openai", "anthropic", "groq") for name, kind in SDK.items()},
    **{f"{package}.{name}": kind for package in ("httpx", "httpx2") for name, kind in HTTP.items()},
    **{f"aiohttp.{name}": kind for name, kind in AIOHTTP.items()},
    "ollama.ResponseError": ProviderUnavailableError,  # without a status: the model's runner failed in mid-answer
    "ollama.RequestError": RequestRejectedError,
    "llm_gateway.UnreadableAnswerError": IncompleteResponseError,
    "llm_gateway.AnswerTooLargeError": ProviderError,  # the next one would be as large
    "llm_gateway.ErrorEventError": ProviderUnavailableError,  # one whose code says no more
    "ssl.SSLCertVerificationError": ProviderError,  # no retry makes a certificate right
    "builtins.TimeoutError": ProviderTimeoutError,
    "builtins.ConnectionError": ProviderUnavailableError,
}
# The nearer to the wire, the more exact: the SDKs' aiohttp transport reports a reset connection as a timeout.
NEARNESS = {"ssl": 4, "aiohttp": 3, "httpx": 2, "httpx2": 2, "builtins": 0}
# What LangChain and the SDKs stumble with over an answer that is not what they expect.
STUMBLES = (ValueError, TypeError, AttributeError, LookupError)
# What building a request raises where a value has no form on the wire.
UNSENDABLE = (ValueError, TypeError, RecursionError, OverflowError)
LONGEST_CHAIN = 12  # causes looked at; also ends a chain that bites its tail


class Failures:
    """Translates what the calls of one deployment raise."""

    def __init__(self, deployment: Deployment, *, wired: bool = False) -> None:
        self._deployment = deployment
        self._wired = wired  # every HTTP answer is noted, so that none noted means that none came
        key = deployment.endpoint.api_key
        self._redact = Redactor(key.get_secret_value() if key else None)

    def translate(self, error: Exception, seen: Exchange, request_id: str) -> tuple[ProviderError, Exception | None]:
        """Return our error, and the cause to chain it to: None where the cause's own text holds the key."""
        status = status_of(error) or seen.status
        codes, words = said_by(error)
        kind = kind_of(error, status, codes)
        unsent = kind is ProviderError and status is None and self._wired and isinstance(error, UNSENDABLE)
        if unsent:
            kind = RequestRejectedError
        telling: BaseException = error
        if not codes and (status is None or status // 100 not in FAMILIES):  # it was not the provider who spoke
            telling = _nearest_to_wire(error) or error
            words = _own_words(telling, kind)
        headers = seen.headers or headers_of(error)
        override = hints.should_retry(headers) if status is not None else None
        failure = kind(
            sentence(kind, status=status, words=self._redact(words), deployment=self._deployment, unsent=unsent),
            provider=self._deployment.endpoint.name,
            model=self._deployment.settings.model,
            request_id=request_id,
            status=status,
            retry_after=hints.retry_after(headers),
            # No credit is no credit, whatever the headers say.
            retryable=None if kind is QuotaExhaustedError else override,
            summary=sentence(kind, status=status, words=None, deployment=self._deployment, unsent=unsent),
        )
        failure.headers = hints.limits_told(headers)
        leaks = any(self._redact.finds_key(f"{each} {each!r}") for each in chain(error))
        return failure, None if leaks else error


def kind_of(error: Exception, status: int | None, codes: Sequence[str]) -> type[ProviderError]:
    """Return our class for an error."""
    decisive = next((DECISIVE_CODES[code] for code in codes if code in DECISIVE_CODES), None)
    if isinstance(error, ContextOverflowError):
        return ContextLengthError
    if decisive is not None:
        return decisive
    if status is not None and (known := STATUSES.get(status) or FAMILIES.get(status // 100)):
        return known
    coded = next((CODES[code] for code in codes if code in CODES), None)
    if coded is not None:
        return coded
    nearest = _nearest_to_wire(error)
    typed = kind_of_type(type(nearest)) if nearest else None
    return typed or _kind_by_stumble(error, answered=status is not None) or ProviderError


def _nearest_to_wire(error: Exception) -> BaseException | None:
    """Return the one of an error and its causes that knows best what happened, None if all are unknown."""
    known = [each for each in chain(error) if _known_name(type(each))]
    return max(known, key=_nearness) if known else None


def _nearness(error: BaseException) -> int:
    package = (_known_name(type(error)) or "").partition(".")[0]
    return NEARNESS.get(package, 1)


def _own_words(error: BaseException, kind: type[ProviderError]) -> str:
    """Return what a library says; not where it stumbled over an answer, since it then quotes the answer."""
    name = type(error).__name__
    if kind is IncompleteResponseError and isinstance(error, STUMBLES):
        return f"the body is no answer of this API ({name})"
    words = said_by(error)[1]
    named = kind is ProviderError or isinstance(error, UNSENDABLE)
    return f"{name}: {words}" if named and words else words or name


def kind_of_type(cls: type[BaseException]) -> type[ProviderError] | None:
    """Return our class for a type by its nearest known base; None for a type that is unknown."""
    name = _known_name(cls)
    return TYPES[name] if name else None


def _known_name(cls: type[BaseException]) -> str | None:
    names = (f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in cls.__mro__)
    return next((name for name in names if name in TYPES), None)


def _kind_by_stumble(error: Exception, *, answered: bool) -> type[ProviderError] | None:
    if isinstance(error, AttributeError) and isinstance(error.obj, asyncio.CancelledError):
        # LangChain takes a cancellation from below (not ours, which arrives as one) for an answer.
        return ProviderUnavailableError
    if isinstance(error, json.JSONDecodeError) or (answered and isinstance(error, STUMBLES)):
        return IncompleteResponseError
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries; None for none, and for Ollama's -1."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int) and status > 0:
            return status
    return None


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Return the headers of the answer that an error carries; an SDK's are all that clients without our hook have."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    return headers


def said_by(error: BaseException) -> tuple[tuple[str, ...], str]:
    """Return the error codes of a provider's answer, the most exact one first, and its own words."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        details = inner.get("details")
        marks = (details.get("error_code") if isinstance(details, dict) else None, inner.get("code"), inner.get("type"))
        words = inner.get("message") or inner.get("detail") or getattr(error, "message", "")
        return tuple(mark for mark in marks if isinstance(mark, str)), str(words)
    words = inner or getattr(error, "error", None) or getattr(error, "message", None) or error
    return (), str(words)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what caused it, the error first."""
    current: BaseException | None = error
    for _ in range(LONGEST_CHAIN):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__
