"""From a deployment's settings to the constructor of a chat model, with errors that name the key to change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from pydantic import ValidationError

from llm_gateway.clients.base import Deployment
from llm_gateway.clients.wording import Redactor
from llm_gateway.config import NO_ADDRESS, is_address
from llm_gateway.errors import ConfigurationError, MissingApiKeyError

M = TypeVar("M", bound=BaseChatModel)

DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")  # as in gpt-5-2025-08-07 and claude-haiku-4-5-20251001
# What may be a user and a password before a host, with or without a scheme. Better too much of it than too little.
CREDENTIALS = re.compile(r"(?<=//)\S*@|[^\s'\"/:]+:(?!//)\S+@")
MASK = "[credentials]@"
NO_KEY = "no-key"  # where none is needed, the SDKs want one all the same


def key_of(deployment: Deployment) -> str:
    """Return the endpoint's key, or a placeholder where it needs none. Raises MissingApiKeyError."""
    endpoint = deployment.endpoint
    if endpoint.api_key is not None:
        return endpoint.api_key.get_secret_value()
    if endpoint.key_variable is None:
        return NO_KEY
    raise MissingApiKeyError(
        f"The model '{deployment.name}' needs an API key of {endpoint.name}: set the environment variable "
        f"{endpoint.key_variable}, or `[providers.{endpoint.name}] api_key` in the configuration."
    )


def check_url(deployment: Deployment) -> None:
    """Raise ConfigurationError for a base_url that is no HTTP address."""
    endpoint = deployment.endpoint
    if not is_address(endpoint.base_url or ""):
        url = CREDENTIALS.sub(MASK, endpoint.base_url or "")
        raise ConfigurationError(f"Configuration key providers.{endpoint.name}.base_url: '{url}' is {NO_ADDRESS}.")


def check_options(deployment: Deployment, ours: AbstractSet[str]) -> dict[str, Any]:
    """Return the user's constructor arguments. Raises ConfigurationError for one that the gateway sets itself."""
    options = deployment.settings.options
    taken = sorted(ours & options.keys())
    if taken:
        raise ConfigurationError(
            f"Configuration key models.{deployment.name}.options.{taken[0]}: the gateway sets this itself, from the "
            "other keys of [models], [providers] and [retry]; leave it out."
        )
    return dict(options)


def with_profile(build: Callable[[str], M], name: str) -> M:
    """Return the chat model of `name`; one pinned to a date has the profile of its family, where it has none itself.

    Profiles of dated names deny structured output where their family has it: there the family is right.
    """
    model = build(name)
    family = DATE.sub("", name)
    if family != name and (not model.profile or model.profile.get("structured_output") is False):
        whole: Any = build(family).profile or {}
        told = {"structured_output": whole["structured_output"]} if "structured_output" in whole else {}
        own: Any = {**model.profile, **told} if model.profile else whole
        model.profile = own
    return model


@contextmanager
def constructing(deployment: Deployment) -> Iterator[None]:
    """Turn what a chat model's constructor raises into a ConfigurationError of one sentence."""
    key = deployment.endpoint.api_key
    redact = Redactor(key.get_secret_value() if key else None)
    where = f"Configuration key models.{deployment.name}"
    try:
        yield
    except ConfigurationError:
        raise
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        option = ".".join(("options", *map(str, problem["loc"])))
        raise ConfigurationError(f"{where}.{option}: {_words(problem['msg'], redact)}.") from None
    except Exception as error:  # noqa: BLE001 - a partner package may raise anything here
        kind, words = deployment.endpoint.kind, _words(str(error), redact)
        what = "embedding" if deployment.settings.embedding else "chat"
        raise ConfigurationError(
            f"{where}: the {what} model of '{kind}' cannot be set up: {type(error).__name__}: {words}."
        ) from None


def _words(message: str, redact: Redactor) -> str:
    """Return the first line of a library's message, without keys, credentials and its full stop."""
    line = next(iter(message.strip().splitlines()), "no reason given")
    return CREDENTIALS.sub(MASK, redact(line)).rstrip(" .")
