"""The configuration: its defaults, its one-sentence errors, and where keys come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_gateway import ConfigurationError, ModelProvider, UnknownModelError
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
            "Configuration key retry.zzz: unknown; known are base_delay, longest_hint, max_attempts, max_delay, quota.",
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
    with pytest.raises(UnknownModelError, match=r"'claude-hiku' is not configured; did you mean 'claude-haiku'\?"):
        load_config({}).model("claude-hiku")
    with pytest.raises(UnknownModelError, match=r"'zzz' is not configured; add a section \[models.zzz\] or use one of"):
        load_config({}).model("zzz")


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
