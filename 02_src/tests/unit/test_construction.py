"""What is said when a chat model cannot be set up: one sentence, and no secret."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, field_validator

from llm_gateway import ConfigurationError
from llm_gateway.clients.base import Deployment
from llm_gateway.clients.construction import check_url, constructing
from llm_gateway.config import endpoint_of, load_config

PROXY = "http://user:hunter2-secret@proxy:80"


def deployment(**environ: str) -> Deployment:
    config = load_config({})
    endpoint = endpoint_of(config, "openai", {"OPENAI_API_KEY": "sk-canary-123", **environ})
    return Deployment(name="m", settings=config.models["gpt-4o-mini"], endpoint=endpoint)


class Chat(BaseModel):
    proxy: str

    @field_validator("proxy")
    @classmethod
    def _refused(cls, proxy: str) -> str:
        raise ValueError(f"cannot use {proxy} with sk-canary-123.\nSecond line")


@pytest.mark.parametrize(
    "url", [PROXY, "user:hunter2-secret@proxy", "http://user:hunter2-secret/@x@proxy", "socks5://hunter2-secret@proxy"]
)
def test_a_failed_set_up_is_one_line_without_keys_and_credentials(url: str) -> None:
    with pytest.raises(ConfigurationError) as checked, constructing(deployment()):
        Chat(proxy=url)
    with pytest.raises(ConfigurationError) as raised, constructing(deployment()):
        raise RuntimeError(f"cannot use '{url}' with sk-canary-123\nSecond line")
    assert str(checked.value).startswith("Configuration key models.m.options.proxy: Value error, cannot use ")
    assert "[credentials]@" in str(checked.value)
    for told in (str(checked.value), str(raised.value)):
        assert not any(secret in told for secret in ("hunter2", "canary", "\n", "Second", ".."))


def test_an_error_without_words_is_told_too() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"cannot be set up: RuntimeError: no reason given\.$"),
        constructing(deployment()),
    ):
        raise RuntimeError


def test_an_address_from_the_environment_is_checked_and_shown_without_its_credentials() -> None:
    check_url(deployment(OPENAI_BASE_URL=PROXY))
    for url, shown in (
        ("ftp://user:hunter2-secret@host", "ftp://[credentials]@host"),
        ("localhost:8000", "localhost:8000"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            check_url(deployment(OPENAI_BASE_URL=url))
        assert f"providers.openai.base_url: '{shown}' is no HTTP address; write" in str(caught.value)
