"""Laws of reading answers: whatever a model writes, and whatever schema is given, only the tree's errors come."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from fakes.provider import FakeProvider, ask, gateway_over
from fakes.virtual_time import run_virtual
from llm_gateway import GatewayError, InvalidAnswerError, LLMResponse
from llm_gateway.answers import AnswerSchema, form_of
from llm_gateway.clients.schemas import is_recursive, strict
from llm_gateway.formats import asked_schema


class Tree(BaseModel):
    """It has everything that is hard to read."""

    name: str = Field(pattern="^[a-z]+$", max_length=9)
    weight: float = Field(multiple_of=0.01)
    tags: dict[str, int] = {}
    kind: Any = None
    children: list[Tree] = []


FORMS: list[Any] = [Tree, Tree.model_json_schema()]
WHOLE = json.dumps({"name": "oak", "weight": 0.5, "children": [{"name": "ash", "weight": 0.25}]})
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "weight", "children", "tags", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
cuts = st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end])
texts = (
    st.text(max_size=40) | values.map(json.dumps) | cuts | st.binary(max_size=20).map(lambda raw: raw.decode("latin"))
)
HOSTILE = [
    "",
    "null",
    "NaN",
    "[" * 100_000,
    '{"children":' * 900 + "1" + "}" * 900,
    '{"name": "oak", "weight": 1' + "0" * 5000 + "}",
    '{"name": "oak", "weight": 1e400}',
    '{"name": "\\ud800", "weight": 1}',
    '\ufeff{"name": "oak", "weight": 1}',
    "```json\n```",
    "```\n" * 1000,
    '{"name": "oak", "name": 1, "weight": 0.01}',
    "\x00",
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_texts_are_told_in_a_sentence(number: int) -> None:
    for form in FORMS:
        reading = form_of(form).read(HOSTILE[number])
        assert reading.problem is None or len(reading.problem) < 600


@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_any_text_is_read_or_told_in_one_line(text: str) -> None:
    by_class, by_schema = (form_of(form).read(text) for form in FORMS)
    for reading in (by_class, by_schema):
        assert (reading.problem is None) == (not reading.advice)
        assert "\n" not in (reading.problem or "")
    if by_class.problem is None:
        assert isinstance(by_class.value, Tree)


@settings(max_examples=25, deadline=None)
@given(script=st.lists(texts, max_size=4))
def test_a_request_ends_in_an_answer_that_fits_or_in_an_error_of_the_tree(script: list[str]) -> None:
    async def ended(form: Any) -> None:
        provider = FakeProvider(script=[*script, WHOLE])
        async with gateway_over(provider, retry={"max_attempts": 3}) as gateway:
            try:
                response = await gateway.request(ask("a", response_format=form))
            except GatewayError as error:
                assert isinstance(error, InvalidAnswerError)  # noqa: PT017 - what is not of the tree is raised on
                kept: LLMResponse | None = error.response
            else:
                assert response.parsed is not None or response.content == "null"
                kept = response
        assert kept is not None
        assert kept.receipt is not None
        assert kept.receipt.attempts == len(provider.ledger) <= 3
        assert kept.tokens_used == 15 * len(provider.ledger)

    for form in FORMS:
        run_virtual(ended(form))


@settings(max_examples=40, deadline=None)
@given(schema=values.filter(lambda value: isinstance(value, dict)), kind=st.sampled_from(["object", "array", "x", 5]))
def test_any_schema_is_taken_or_refused_in_a_sentence(schema: Any, kind: Any) -> None:
    given_schema = {**schema, "type": kind}
    try:
        form = form_of(given_schema)
    except GatewayError as error:
        assert "\n" not in str(error)  # noqa: PT017 - see above
        return
    assert form.read("{}").problem is None or form.read("{}").advice or form.read("{}").hopeless
    strict(given_schema)
    is_recursive(given_schema)


def test_a_schema_that_leads_nowhere_by_an_anchor_is_not_the_answers_fault() -> None:
    reading = form_of({"type": "object", "properties": {"a": {"$ref": "#nowhere"}}}).read('{"a": 1}')
    assert reading.hopeless
    assert str(reading.problem).startswith("The schema cannot be held against the answer: ")


def test_references_into_lists_and_to_odd_names_are_found() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "string"}]}, "b/c": {"type": "integer"}},
        "$defs": {"A": {"$ref": "#/properties/a/anyOf/0"}, "B": {"$ref": "#/properties/b~1c"}},
        "examples": [{"$ref": "not a schema"}],
    }
    assert form_of(schema).read('{"a": "x"}').value == {"a": "x"}


def test_an_answer_that_the_validator_cannot_descend_into_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    form: Any = AnswerSchema({"type": "object"})

    def too_deep(_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(form, "_validator", SimpleNamespace(iter_errors=too_deep))
    assert form.read("{}").problem == "The answer does not fit the schema: it nests too deep."


class Leaf(BaseModel):
    """A leaf."""

    color: str = Field(default="green", min_length=1)
    size: int | None = None


class Branch(BaseModel):
    """A branch."""

    leaf: Leaf = Field(description="the only one")
    pair: tuple[int, int] | None = None


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        (asked_schema(Leaf), True),
        (Leaf.model_json_schema(), True),
        (Tree.model_json_schema(), False),
        (asked_schema(Branch), False),  # a pair has a type for each place
        ({"type": "object"}, False),
        ({"type": "array", "items": {"type": "integer"}}, False),
        ({"type": "object", "properties": {"a": {}}}, False),
        ({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),  # nothing says what stands for none
        ({"type": "object", "properties": {"a": {"type": ["string", "null"]}}}, True),
        (
            {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, {"const": 1}]}}, "required": ["a"]},
            True,
        ),
        ({"type": "object", "properties": {"a": {"allOf": [{"type": "string"}]}}, "required": ["a"]}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/A", "description": "it"}},
                "required": ["a"],
                "$defs": {"A": {"type": "string"}},
            },
            True,
        ),
    ],
)
def test_what_fits_the_strict_form_of_a_schema_fits_the_schema(schema: dict[str, Any], is_strict: bool) -> None:  # noqa: FBT001
    exact = strict(schema)
    assert (exact is not None) == is_strict
    if exact is None:
        return
    jsonschema.Draft202012Validator.check_schema(exact)
    assert exact["required"] == list(exact["properties"])
    text = json.dumps(exact)
    assert not any(f'"{key}"' in text for key in ("default", "minLength", "oneOf"))
    assert '"$ref": "#/$defs/A", ' not in text


def test_a_schema_that_holds_itself_is_found() -> None:
    assert is_recursive(Tree.model_json_schema())
    assert is_recursive({"type": "object", "properties": {"a": {"$ref": "#"}}})
    assert not is_recursive(Branch.model_json_schema())
