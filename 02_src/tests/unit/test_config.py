"""The configuration: its defaults, its one-sentence errors, and where keys come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_gateway import ConfigurationError, LLMGateway, ModelProvider, UnknownModelError
from llm_gateway.config import endpoint_of, load_config, read_config


def test_an_empty_configuration_has_the_models_of_the_contract() -> None:
    config = load_config({})
    assert {each.value for each in ModelProvider} <= set(config.models)
    assert config.models["claude-haiku"].provider == "anthropic"
    assert (config.batching.max_batch_size, config.batching.max_wait_ms) == (32, 0.0)
    assert (config.retry.max_attempts, config.retry.base_delay, config.retry.max_delay) == (5, 0.5, 20.0)
    assert config.logs.dir == Path("04_logs/gateway")


def test_the_ids_of_the_default_models_are_known_to_langchain() -> None:
    from langchain_anthropic.data._profiles import _PROFILES as ANTHROPIC
    from langchain_openai.data._profiles import _PROFILES as OPENAI

    models = load_config({}).models
    for name in ("claude-haiku", "claude-sonnet", "claude-opus"):
        assert models[name].model in ANTHROPIC
    assert models["gpt-4o-mini"].model in OPENAI


def test_a_default_model_can_be_overridden_in_part_and_others_added() -> None:
    config = load_config(
        {"models": {"gpt-4o-mini": {"max_concurrency": 3}, "mine": {"provider": "openai", "model": "gpt-5"}}}
    )
    assert (config.model("gpt-4o-mini").model, config.model("gpt-4o-mini").max_concurrency) == ("gpt-4o-mini", 3)
    assert config.model("mine").model == "gpt-5"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"batchin": {}}, "Configuration key batchin: unknown; did you mean 'batching'?"),
        (
            {"batching": {"max_batch_sise": 8}},
            "Configuration key batching.max_batch_sise: unknown; did you mean 'max_batch_size'?",
        ),
        (
            {"batching": {"max_batch_size": 0}},
            "Configuration key batching.max_batch_size: 0 is wrong: it should be greater than or equal to 1.",
        ),
        (
            {"models": {"mine": {"model": "x"}}},
            "Configuration key models.mine.provider: missing; it has no default.",
        ),
        (
            {"models": {"mine": {"provider": "opnai", "model": "x"}}},
            (
                "Configuration key models.mine.provider: 'opnai' has no section [providers.opnai] and is not built in; "
                "did you mean 'openai'?"
            ),
        ),
        ({"models": 3}, "Configuration key models: 3 is wrong: it should be a valid dictionary."),
        (
            {"providers": {"openai": {"tiemout": 3}}},
            "Configuration key providers.openai.tiemout: unknown; did you mean 'timeout'?",
        ),
        (
            {"retry": {"zzz": 3}},
            (
                "Configuration key retry.zzz: unknown; known are base_delay, longest_hint, max_attempts, max_delay, "
                "max_throttles, quota."
            ),
        ),
        (
            {"logs": {"dir": True}},
            (
                "Configuration key logs.dir: true is not a folder; leave it out for 04_logs/gateway, or give a path or "
                "false."
            ),
        ),
    ],
)
def test_a_wrong_key_is_one_sentence_with_the_nearest_right_one(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(given)
    assert str(caught.value) == sentence


def test_another_langchain_provider_is_no_slip_of_a_built_in_one() -> None:
    config = load_config({"models": {"mine": {"provider": "azure_openai", "model": "x"}}})
    assert endpoint_of(config, "azure_openai", {}).kind == "azure_openai"


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        UnknownModelError, match=r"'claude-hiku' is not configured; did you mean 'claude-haiku'\? Configured are claude"
    ):
        load_config({}).model("claude-hiku")
    with pytest.raises(UnknownModelError, match=r"'zzz' is not configured; add a section \[models.zzz\] or use one of"):
        load_config({}).model("zzz")


def test_an_odd_name_of_a_model_stays_on_its_line_and_within_toml() -> None:
    for name, section in (("gpt-9.9", '[models."gpt-9.9"]'), ("z\nz", '[models."z\\nz"]')):
        with pytest.raises(UnknownModelError) as caught:
            load_config({}).model(name)
        assert f"{name!r} is not configured; add a section {section} or use" in str(caught.value)
        assert "\n" not in str(caught.value)


MODEL = {"provider": "openai", "model": "x"}
ADDRESS = "no HTTP address; write it as http://host:port/path or https://host/path."


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"models": {"int": 5}}, "models.int: 5 is wrong: it should be a dictionary with the keys provider, model, "),
        ({"models": {"int": {**MODEL, "context": 0}}}, "models.int.context: 0 is wrong: it should be greater than or"),
        ({"models": {"": MODEL}}, "models.'': empty; give a text of at least 1 character."),
        ({"models": {5: MODEL}}, "models[5]: the name is not a text; put it in quotes."),
        ({"models": {"m": {**MODEL, "model": ""}}}, "models.m.model: empty; give a text of at least 1 character."),
        ({"batching": {1: 2}}, "batching[1]: the name is not a text; put it in quotes."),
        ({"batching": {"max_batch_size": True}}, "batching.max_batch_size: True is wrong: it should be a number."),
        ({"drain_timeout": True}, "drain_timeout: True is wrong: it should be a number."),
        ({"drain_timeout": float("inf")}, "drain_timeout: inf is wrong: it should be a finite number."),
        ({"seed": "x"}, "seed: 'x' is wrong: it should be a valid integer."),
        ({"seed": "9" * 5000}, "seed: '99999"),
        ({"logs": {"text": "x"}}, "logs.text: 'x' is wrong: it should be a valid boolean."),
        ({"logs": {"dir": 5}}, "logs.dir: 5 is wrong: it should be a path or False."),
        ({"providers": {"a": {"base_url": ""}}}, "providers.a.base_url: empty; leave it out for the default."),
        ({"providers": {"openai": {"base_url": "localhost:80"}}}, f"providers.openai.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "http://h:port"}}}, f"providers.a.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "http://h:99999"}}}, f"providers.a.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "http://[::1"}}}, f"providers.a.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "http://:80"}}}, f"providers.a.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "http://h h"}}}, f"providers.a.base_url: {ADDRESS}"),
        ({"providers": {"a": {"base_url": "ftp://host"}}}, f"providers.a.base_url: {ADDRESS}"),
    ],
)
def test_every_kind_of_problem_reads_as_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(given)
    assert str(caught.value).startswith(f"Configuration key {sentence}")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_an_address_may_be_as_ollama_takes_it() -> None:
    config = load_config({"providers": {"ollama": {"base_url": "gpu:11434"}, "v6": {"base_url": "http://[::1]:80/v1"}}})
    assert config.providers["ollama"].base_url == "gpu:11434"


@pytest.mark.parametrize(
    ("given", "what"), [("x.toml", "a str ('x.toml')"), ([1], "a list ([1])"), ([], "a list ([])"), (5, "an int (5)")]
)
def test_a_configuration_that_is_no_dict_is_told_how_to_be_read(given: Any, what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LLMGateway(given)
    assert str(caught.value) == (
        f"The configuration is {what}, not a dict; read a TOML file with llm_gateway.config.read_config(path)."
    )


def test_a_toml_file_has_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[models.fast]\nprovider = "openai"\nmodel = "gpt-4o-mini"\n[logs]\ndir = false\n')
    assert read_config(path) == load_config(
        {"models": {"fast": {"provider": "openai", "model": "gpt-4o-mini"}}, "logs": {"dir": False}}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[logs]\ndri = 1\n", "logs.dri: unknown; did you mean 'dir'"),
        ("[logs", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_errors_of_a_file_name_the_file(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "gateway.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_keys_and_addresses_come_from_the_environment() -> None:
    config = load_config({})
    environ = {"OPENAI_API_KEY": "sk-canary-1", "OPENAI_BASE_URL": "http://two", "OPENAI_API_BASE": "http://one"}
    endpoint = endpoint_of(config, "openai", environ)
    assert endpoint.api_key is not None
    assert (endpoint.api_key.get_secret_value(), endpoint.base_url) == ("sk-canary-1", "http://one")
    assert endpoint_of(config, "ollama", {"OLLAMA_HOST": "http://gpu:11434"}).base_url == "http://gpu:11434"
    assert endpoint_of(config, "ollama", {}).base_url == "http://127.0.0.1:11434"


def test_a_public_provider_without_a_key_names_the_variable_and_a_host_of_ones_own_needs_none() -> None:
    config = load_config({"providers": {"vllm": {"kind": "openai", "base_url": "http://gpu:8000/v1"}}})
    assert endpoint_of(config, "anthropic", {}).key_variable == "ANTHROPIC_API_KEY"
    assert endpoint_of(config, "vllm", {}).key_variable is None
    assert endpoint_of(config, "ollama", {}).key_variable is None


def test_a_key_never_travels_to_a_host_that_it_was_not_made_for() -> None:
    config = load_config({"providers": {"my-vllm": {"kind": "openai", "base_url": "http://gpu:8000/v1"}}})
    assert endpoint_of(config, "my-vllm", {"OPENAI_API_KEY": "sk-canary-2"}).api_key is None
    own = endpoint_of(config, "my-vllm", {"MY_VLLM_API_KEY": "sk-canary-3"}).api_key
    assert own is not None
    assert own.get_secret_value() == "sk-canary-3"


def test_keys_are_never_shown() -> None:
    config = load_config({"providers": {"openai": {"api_key": "sk-canary-4"}}})
    endpoint = endpoint_of(config, "openai", {})
    assert "canary" not in repr(config) + str(config) + config.model_dump_json() + repr(endpoint)
    with pytest.raises(ConfigurationError) as caught:
        load_config({"providers": {"openai": {"api_key": ["sk-canary-5"]}}})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "providers",
    [
        "canary",
        ["canary"],
        {"openai": "canary"},
        {"openai": ["canary"]},
        {"openai": [{"api_key": "canary"}]},
        {"openai": {"api_key": {"canary": 1}}},
        {"openai": {"timeout": "canary"}},
        {"openai": {"base_url": "http://user:canary@host:port"}},
    ],
    ids=str,
)
def test_nothing_below_providers_is_ever_shown(providers: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config({"providers": providers})
    assert "canary" not in str(caught.value)
