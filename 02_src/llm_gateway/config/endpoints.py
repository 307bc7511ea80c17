"""Where the providers are: addresses, keys and transports, the environment's defaults filled in."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import SecretStr

from llm_gateway.config.settings import GatewayConfig, ProviderSettings, Settings, Transport

KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "ollama": "OLLAMA_API_KEY"}

URL_VARIABLES = {
    "openai": ("OPENAI_API_BASE", "OPENAI_BASE_URL"),
    "anthropic": ("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL"),
    "ollama": ("OLLAMA_HOST",),
}

DEFAULT_URLS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "ollama": "http://127.0.0.1:11434",
}

NEEDS_SCHEME = {"openai", "anthropic"}
LEAN_KINDS = {"openai", "anthropic", "ollama"}  # whose plain HTTP APIs we speak ourselves


class Endpoint(Settings):
    """Where a provider is and how to get in: the settings with the environment's defaults filled in."""

    name: str  # of the section
    kind: str
    base_url: str | None
    api_key: SecretStr | None
    timeout: float
    total_timeout: float | None
    transport: Transport
    key_variable: str | None  # the environment variable that a missing key can be put into; None: no key is needed

    @property
    def is_public(self) -> bool:
        """Whether it is the address at which a provider serves everybody: there are limits there, known or not."""
        return self.base_url == DEFAULT_URLS.get(self.kind) and self.kind not in {"ollama", "llamacpp"}


def endpoint_of(config: GatewayConfig, name: str, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """Return the endpoint of provider `name`.

    A kind's own environment variables serve the provider that bears the kind's name. A provider with a name of its
    own reads its key from `<NAME>_API_KEY` alone, so that no key travels to a host that it was not made for.
    """
    given = config.providers.get(name, ProviderSettings())
    kind = given.kind or name
    own = name == kind
    variable = KEY_VARIABLES.get(kind) if own else f"{name.upper().replace('-', '_')}_API_KEY"
    key = given.api_key or (SecretStr(environ[variable]) if variable and environ.get(variable) else None)
    url = given.base_url
    if url is None and own:
        url = next((environ[each] for each in URL_VARIABLES.get(kind, ()) if environ.get(each)), None)
    # A host of one's own may want no key; the public ones of these two do.
    needs_key = kind in {"openai", "anthropic"} and url is None
    return Endpoint(
        name=name,
        kind=kind,
        base_url=url or DEFAULT_URLS.get(kind),
        api_key=key,
        timeout=given.timeout,
        total_timeout=given.total_timeout,
        transport=transport_of(given, kind),
        key_variable=variable if needs_key else None,
    )


def transport_of(provider: ProviderSettings, kind: str) -> Transport:
    """Return how the calls of a provider of this kind travel."""
    return provider.transport or ("lean" if kind in LEAN_KINDS else "sdk")
