"""The file of scripted answers: its published schema, and what is said about a malformed one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

import llm_gateway
from llm_gateway import ConfigurationError, LLMMessage, LLMRequest, ProviderError, errors
from llm_gateway.mock_gateway import MockLLMGateway, json_schema
from llm_gateway.mock_gateway.responses import ErrorKind, ScriptedError
from llm_gateway.mock_gateway.scripted import KINDS, kind_of

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "mock_responses.json"
PUBLISHED = Path(llm_gateway.__file__).parent / "mock_responses.schema.json"


def test_the_published_schema_is_what_the_code_reads() -> None:
    published = PUBLISHED.read_text(encoding="utf-8")
    assert published == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", (
        f"write the right-hand side to {PUBLISHED}"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads(published))


def test_the_example_follows_the_published_schema() -> None:
    example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    jsonschema.validate(example, json.loads(PUBLISHED.read_text(encoding="utf-8")))
    assert (EXAMPLE.parent / example["$schema"]).resolve() == PUBLISHED


MALFORMED: list[tuple[Any, str]] = [
    ({"rule": []}, "rule: unknown; did you mean 'rules'?"),
    ({"rules": {}}, "rules: {} is wrong: it should be a valid list."),
    ({"rules": [{"name": "x", "match": {"contain": "a"}, "reply": "b"}]}, "rule 'x', rules[0].match.contain: unknown"),
    ({"rules": ["x"]}, "rules[0]: 'x' is wrong"),
    ({"rules": [{}]}, "rules[0]: give either 'reply', one answer for every call, or 'replies'"),
    ({"rules": [{"name": "both", "reply": "a", "replies": ["b"]}]}, "rule 'both', rules[0]: give either 'reply'"),
    ({"rules": [{"replies": []}]}, "rules[0].replies: empty; give at least 1."),
    ({"rules": [{"name": 7, "reply": "a"}]}, "rules[0].name: 7 is wrong: it should be a valid string."),
    (
        {"rules": [{"reply": "a"}, {"name": "slow", "reply": {"latency": -1}}]},
        "rule 'slow', rules[1].reply.latency: -1 is wrong: it should be greater than or equal to 0.",
    ),
    ({"rules": [{"replies": ["a", {"contents": "b"}]}]}, "rules[0].replies[1].contents: unknown; did you mean"),
    ({"rules": [{"reply": {"usage": {"input_tokns": 1}}}]}, "rules[0].reply.usage.input_tokns: unknown; did you mean"),
    ({"rules": [{"reply": {"error": {}}}]}, "rules[0].reply.error: give a status, such as 429, or a kind"),
    ({"rules": [{"reply": {"error": {"status": 200}}}]}, "rules[0].reply.error.status: 200 is wrong"),
    ({"rules": [{"reply": {"error": {"kind": "tiemout"}}}]}, "rules[0].reply.error.kind: 'tiemout' is not one of"),
    (
        {"default": {"content": "a", "error": {"status": 500}}},
        "default: a reply with an error has no content; take one of the two out.",
    ),
    ({"rules": [{"match": {"regex": "("}, "reply": "a"}]}, "rules[0].match.regex: '(' is wrong"),
    ({"rules": [{"match": {"attempt": 0}, "reply": "a"}]}, "rules[0].match.attempt: 0 is wrong"),
    ([], 'expected an object such as {"rules": []}, got list.'),
]


@pytest.mark.parametrize(("content", "complaint"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_file_is_refused_in_one_sentence_that_names_rule_and_field(
    content: Any, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError) as caught:
        MockLLMGateway(responses=file)
    assert str(caught.value).startswith(f"{file}: {complaint}")
    assert "\n" not in str(caught.value)


def test_a_malformed_mapping_is_refused_the_same_way() -> None:
    with pytest.raises(ConfigurationError, match=r"^The mock's responses: rules\[0\]: give either"):
        MockLLMGateway(responses={"rules": [{}]})


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.json cannot be read: No such file"):
        MockLLMGateway(responses=tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text('{"rules": [')
    with pytest.raises(ConfigurationError, match=r"broken\.json are not JSON: Expecting value: line 1 column 12"):
        MockLLMGateway(responses=str(tmp_path / "broken.json"))


def test_responses_of_another_type_are_told_what_they_should_be() -> None:
    with pytest.raises(ConfigurationError, match=r"^The mock's responses are an int \(5\); give a path of a JSON file"):
        MockLLMGateway(responses=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"a str \('file.json'\), not a dict; give the answers as responses="):
        MockLLMGateway("file.json")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^The configuration is a list \(\[\]\), not a dict"):
        MockLLMGateway([])  # type: ignore[arg-type]


def test_a_file_that_is_nested_too_deeply_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ConfigurationError, match=r"deep\.json are nested too deeply\.$"):
        MockLLMGateway(responses=file)
    deep = "[" * 400 + "]" * 400
    file.write_text(f'{{"default": {{"tool_calls": [{{"name": "f", "arguments": {{"a": {deep}}}}}]}}}}')
    with pytest.raises(ConfigurationError, match=r"not nested too deeply\.$"):
        MockLLMGateway(responses=file)


async def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "marked.json"
    file.write_text('{"default": "a"}', encoding="utf-8-sig")
    question = LLMRequest(model="gpt-4o-mini", messages=[LLMMessage(role="user", content="?")])
    async with MockLLMGateway(responses=file) as gateway:
        assert (await gateway.request(question)).content == "a"


# --- scripted errors ----------------------------------------------------------------------------------------------


def test_every_error_of_a_provider_can_be_scripted_by_its_kind() -> None:
    known = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, ProviderError)}
    assert {cls for cls, _ in KINDS.values()} == known - {ProviderError}
    assert {cls.kind for cls, _ in KINDS.values()} == set(KINDS) == set(get_args(ErrorKind))


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        ({"status": 400}, "rejected", 400),
        ({"status": 401}, "authentication", 401),
        ({"status": 402}, "quota_exhausted", 402),
        ({"status": 404}, "model_not_found", 404),
        ({"status": 408}, "timeout", 408),
        ({"status": 422}, "rejected", 422),
        ({"status": 429}, "rate_limit", 429),
        ({"status": 500}, "unavailable", 500),
        ({"status": 503}, "unavailable", 503),
        ({"status": 529}, "overloaded", 529),
        ({"status": 503, "kind": "overloaded"}, "overloaded", 503),
        ({"kind": "quota_exhausted"}, "quota_exhausted", 429),
        ({"kind": "context_length"}, "context_length", 400),
        ({"kind": "timeout"}, "timeout", None),
        ({"kind": "incomplete_response"}, "incomplete_response", None),
    ],
    ids=str,
)
def test_a_status_or_a_kind_makes_the_error_that_the_real_clients_raise(
    error: dict[str, Any], kind: str, status: int | None
) -> None:
    cls, shown = kind_of(ScriptedError(**error))
    assert (cls.kind, shown) == (kind, status)
