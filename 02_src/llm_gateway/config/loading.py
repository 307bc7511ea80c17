"""From the user's one dict, or one TOML file, to a configuration that is validated once and not seen again."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_gateway.config.addresses import NO_ADDRESS, is_address
from llm_gateway.config.endpoints import LEAN_KINDS, NEEDS_SCHEME, transport_of
from llm_gateway.config.settings import GatewayConfig, ProviderSettings
from llm_gateway.errors import ConfigurationError
from llm_gateway.models import ModelProvider
from llm_gateway.price_lanes import refusal
from llm_gateway.sentences import nearest, sentence_of, shown

BUILT_IN_PROVIDERS = ("openai", "anthropic", "ollama", "llamacpp")

DEFAULT_MODELS: Mapping[str, Mapping[str, Any]] = {
    ModelProvider.CLAUDE_HAIKU.value: {"provider": "anthropic", "model": "claude-haiku-5-5"},
    ModelProvider.CLAUDE_SONNET.value: {"provider": "anthropic", "model": "claude-sonnet-5-5"},
    ModelProvider.CLAUDE_OPUS.value: {"provider": "anthropic", "model": "claude-opus-5-5"},
    ModelProvider.GPT_4O_MINI.value: {"provider": "openai", "model": "gpt-4o-mini"},
    # As many calls as `ollama serve` works on at once by default would be 1; more wait in its own queue at no cost.
    ModelProvider.LOCAL_LLAMA.value: {"provider": "ollama", "model": "llama3.2", "max_concurrency": 8},
    # Without a limit it rambles on until the call times out, and each retry does so again.
    "smollm2-135m": {"provider": "llamacpp", "model": "smollm2-135m", "max_concurrency": 4, "max_tokens": 256},
}


def load_config(config: Mapping[str, Any]) -> GatewayConfig:
    """Validate a configuration in the form of a dict and fill in the defaults. Raises ConfigurationError."""
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"The configuration is {of_type(config)}, not a dict; read a TOML file with "
            "llm_gateway.config.read_config(path)."
        )
    merged = dict(config)
    models = merged.get("models", {})
    if isinstance(models, Mapping):
        merged["models"] = {
            name: {**DEFAULT_MODELS.get(name, {}), **given} if isinstance(given, Mapping) else given
            for name, given in {**DEFAULT_MODELS, **models}.items()
        }
    try:
        loaded = GatewayConfig.model_validate(merged)
    except ValidationError as error:
        key, reason = sentence_of(error, GatewayConfig)
        raise ConfigurationError(f"Configuration key {key}: {reason}") from None
    _check_addresses(loaded)
    _check_transports(loaded)
    _check_providers(loaded)
    _check_names(loaded)
    _check_cache(loaded)
    _check_lanes(loaded)
    return loaded


def of_type(value: object) -> str:
    """Say what a value is that should be something else: "an int (5)"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} ({shown(value)})"


def read_config(path: Path) -> GatewayConfig:
    """Read a TOML file of the same shape. Raises ConfigurationError, which then names the file."""
    try:
        return load_config(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The configuration {path} is not TOML: {error}.") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _check_addresses(config: GatewayConfig) -> None:
    for name, provider in config.providers.items():
        url = provider.base_url
        if url and (provider.kind or name) in NEEDS_SCHEME and not is_address(url):
            raise ConfigurationError(f"Configuration key providers.{name}.base_url: {NO_ADDRESS}.")


def _check_transports(config: GatewayConfig) -> None:
    for name, provider in config.providers.items():
        kind = provider.kind or name
        if provider.transport == "lean" and kind not in LEAN_KINDS:
            raise ConfigurationError(
                f"Configuration key providers.{name}.transport: 'lean' speaks the APIs of "
                f"{', '.join(sorted(LEAN_KINDS))}, not of {kind}; use 'sdk' or leave it out."
            )
        if provider.total_timeout is not None and transport_of(provider, kind) != "lean":
            raise ConfigurationError(
                f"Configuration key providers.{name}.total_timeout: only the lean transport heeds it; leave it out, or "
                "give the requests a deadline."
            )


def _check_providers(config: GatewayConfig) -> None:
    """A name that differs by a slip from a section of [providers] is an error now, not at the first request."""
    known = {*config.providers, *BUILT_IN_PROVIDERS}
    for name, model in config.models.items():
        for place, deployment in enumerate(model.all_deployments()):
            guess = nearest(deployment.provider, known, likeness=0.8)  # "azure_openai" is no slip
            if deployment.provider not in known and guess is not None:
                key = f"models.{name}" + (f".deployments[{place - 1}]" if place else "")
                raise ConfigurationError(
                    f"Configuration key {key}.provider: '{deployment.provider}' has no section [providers."
                    f"{deployment.provider}] and is not built in; did you mean '{guess}'?"
                )


def _check_cache(config: GatewayConfig) -> None:
    """A store that is named has what it needs, and what is given is used."""
    cache = config.cache
    if cache is None:
        return
    url = cache.redis_url or config.limits.redis_url
    if cache.store == "redis" and url is None:
        raise ConfigurationError(
            "Configuration key cache.store: 'redis' needs an address; give cache.redis_url or limits.redis_url."
        )
    for key, store in (("redis_url", "redis"), ("path", "sqlite")):
        if key in cache.model_fields_set and cache.store not in {store, None}:
            raise ConfigurationError(
                f"Configuration key cache.{key}: the store '{cache.store}' has no use for it; leave one of them out."
            )
    if cache.store is None and {"redis_url", "path"} <= cache.model_fields_set:
        raise ConfigurationError("Configuration key cache.path: cache.redis_url is given, too; leave one of them out.")


def _check_lanes(config: GatewayConfig) -> None:
    """A price lane that none of a model's deployments has is an error now."""
    for name, model in config.models.items():
        reasons = []
        for each in model.all_deployments():
            kind = config.providers.get(each.provider, ProviderSettings()).kind or each.provider
            reasons.append(refusal(model.lane, kind=kind, model=each.model))
        if all(reasons):
            raise ConfigurationError(f"Configuration key models.{name}.lane: {reasons[0]}")


def _check_names(config: GatewayConfig) -> None:
    """What names a model names one that is configured, and deployments of one model differ."""
    for name, model in config.models.items():
        if model.embedding and model.fallbacks:
            raise ConfigurationError(
                f"Configuration key models.{name}.fallbacks: the vectors of two embedding models cannot be compared; "
                "leave it out, or name further hosts of the same model under deployments."
            )
        lists = {"": model.fallbacks} if isinstance(model.fallbacks, list) else model.fallbacks
        for kind, fallbacks in lists.items():
            for fallback in fallbacks:
                key = f"models.{name}.fallbacks" + (f".{kind}" if kind else "")
                if fallback == name:
                    raise ConfigurationError(f"Configuration key {key}: '{name}' cannot stand in for itself.")
                _check_model(config, key, fallback)
        labels = [(each.provider, each.model) for each in model.all_deployments()]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"Configuration key models.{name}.deployments: two of them are model '{twice[1]}' of provider "
                f"'{twice[0]}'; give each another provider or model, or raise max_concurrency of one."
            )
    for name in config.budgets.models:
        _check_model(config, "budgets.models", name)


def _check_model(config: GatewayConfig, key: str, name: str) -> None:
    if name not in config.models:
        guess = nearest(name, config.models)
        remedy = f"did you mean '{guess}'?" if guess else f"add a section [models.{name}]."
        raise ConfigurationError(f"Configuration key {key}: {shown(name)} is not a configured model; {remedy}")
