"""The sentence of a provider's failure: who, what happened, its own words, and a remedy. Never a key."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.text import readable
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

FIRST_BAD_STATUS = 300
LONGEST_WORDS = 300  # characters of what the provider said
SHORTEST_KEY = 6  # a shorter "key" is a placeholder, and may well be a word
# Keys as providers show them, and words with a part starred out, as they repeat a wrong one.
KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|gsk|xai|lsv2)[-_][\w*.…-]{4,}|[^\s'\"]*\*{3,}[^\s'\"]*")
MASK = "[key]"

WHAT = {
    RateLimitError: "{provider} limits the rate of '{model}'",
    QuotaExhaustedError: "The account at {provider} has no credit left, or its spend cap is reached",
    AuthenticationError: "{provider} refuses the key",
    ModelNotFoundError: "{provider} has no model '{model}', or is not at {host}",
    ContextLengthError: "The request does not fit the context of '{model}' at {provider}",
    RequestRejectedError: "{provider} rejects the request",
    ProviderTimeoutError: "{provider} did not answer in time",
    ProviderOverloadedError: "{provider} is overloaded",
    IncompleteResponseError: "The answer of {provider} broke off or cannot be read",
    ProviderUnavailableError: "{provider} fails or cannot be reached at {host}",
    ProviderError: "The call of '{model}' at {provider} failed",
}
UNSENT = "The request could not be encoded for '{model}' at {provider}; nothing was sent"
REMEDIES = {
    QuotaExhaustedError: "Add credit or raise the cap there.",
    AuthenticationError: "Check {key}.",
    ModelNotFoundError: "Check [models.{name}] model and [providers.{provider}] base_url.",
    ContextLengthError: "Shorten the messages or lower max_tokens.",
    ProviderTimeoutError: "If it needs longer than {timeout:g} s, raise [providers.{provider}] timeout.",
}


class Redactor:
    """Masks a key, and what looks like one."""

    def __init__(self, key: str | None) -> None:
        self._key = key if key and len(key) >= SHORTEST_KEY else None

    def __call__(self, text: str) -> str:
        """Return `text` with "[key]" in the place of every key."""
        if self._key:
            text = text.replace(self._key, MASK)
        return KEY_LIKE.sub(MASK, text)

    def finds_key(self, text: str) -> bool:
        """Tell whether the key itself stands in `text`."""
        return self._key is not None and self._key in text


def sentence(
    kind: type[ProviderError], *, status: int | None, words: str | None, deployment: Deployment, unsent: bool = False
) -> str:
    """Return what happened.

    `words` are the provider's own, or those of a library, already without keys; None leaves them out, since a
    provider may repeat the prompt. `unsent` says that the request never left.
    """
    endpoint = deployment.endpoint
    facts = {
        "provider": endpoint.name,
        "model": deployment.settings.model,
        "name": deployment.name,
        "host": host_of(endpoint.base_url),
        "timeout": endpoint.timeout,
        "key": " or ".join(filter(None, (endpoint.key_variable, f"[providers.{endpoint.name}] api_key"))),
    }
    what = (UNSENT if unsent else WHAT[kind]).format_map(facts)
    if status is not None and status >= FIRST_BAD_STATUS:
        what += f" (HTTP {status})"
    if words is not None:
        what += f": {_shortened(words) or 'no reason given'}"
    stop = "" if what.endswith((".", "!", "?", "…")) else "."
    return f"{what}{stop} {REMEDIES.get(kind, '').format_map(facts)}".rstrip()


def host_of(url: str | None) -> str:
    """Return the address in a URL alone, without what might be a credential in it."""
    if not url:
        return "its address"
    return urlsplit(url if "//" in url else f"//{url}").netloc.rpartition("@")[2] or url


def _shortened(words: str) -> str:
    if words.lstrip()[:1] == "<":
        return "it sent a page of HTML"
    line = readable(" ".join(words.split()))
    return line if len(line) <= LONGEST_WORDS else f"{line[: LONGEST_WORDS - 1]}…"
