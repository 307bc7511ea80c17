"""What a call of GatewayChatModel asks of its gateway, and what LangChain learns of the model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel
from typing_extensions import TypedDict

from llm_gateway import (
    InvalidRequestError,
    LLMMessage,
    LLMRequest,
    MockLLMGateway,
    ModelProvider,
    RequestPriority,
    UnknownModelError,
    formats,
)
from llm_gateway.integrations.langchain import GatewayChatModel
from llm_gateway.integrations.langchain.parameters import choice_of, schema_of

HIGH, LOW = RequestPriority.HIGH, RequestPriority.LOW


class City(BaseModel):
    """A city."""

    name: str
    country: str | None = None


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def get_people(city: str) -> int:
    """Count the people in a city."""
    return len(city)


def chat(gateway: MockLLMGateway | None = None, **fields: Any) -> GatewayChatModel:
    return GatewayChatModel(gateway=gateway or MockLLMGateway(), **{"model": "claude-haiku", **fields})


async def asked(model: Any, gateway: MockLLMGateway, **options: Any) -> LLMRequest:
    await model.ainvoke("hi", **options)
    return gateway.last_call.request


# --- one request --------------------------------------------------------------------------------------------------


async def test_what_is_left_out_is_as_in_a_request() -> None:
    gateway = MockLLMGateway()
    request = await asked(gateway.as_langchain(ModelProvider.CLAUDE_HAIKU), gateway)
    plain = LLMRequest(model="claude-haiku", messages=[LLMMessage(role="user", content="hi")])
    assert request == plain.model_copy(update={"request_id": request.request_id})


async def test_settings_are_those_of_the_model_unless_a_call_has_its_own() -> None:
    gateway = MockLLMGateway()
    model = gateway.as_langchain(
        "claude-haiku", priority=LOW, agent="a", temperature=0.5, max_tokens=9, stop=["x"], deadline=20
    )
    request = await asked(model, gateway)
    assert (request.priority, request.agent, request.temperature) == (LOW, "a", 0.5)
    assert (request.max_tokens, request.stop, request.deadline) == (9, ["x"], 20)
    own = {"priority": HIGH, "agent": "b", "temperature": 1.0, "max_tokens": 8, "timeout": 3.0, "model": "gpt-4o-mini"}
    request = await asked(model.bind(**own), gateway, stop=["y"], request_id="mine")
    assert (request.priority, request.agent, request.temperature) == (HIGH, "b", 1.0)
    assert (request.max_tokens, request.stop, request.deadline) == (8, ["y"], 3.0)
    assert (request.model, request.request_id) == ("gpt-4o-mini", "mine")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"api_key": "sk-canary-1"}, r"GatewayChatModel\.api_key: no parameter of this model; keys belong to the gat"),
        ({"max_retries": 2}, r"GatewayChatModel\.max_retries: .* under \[retry\]\.$"),
        ({"agnet": "x"}, r"GatewayChatModel\.agnet: no parameter of this model; did you mean 'agent'\?$"),
        ({"max_tokens": "many"}, r"GatewayChatModel\.max_tokens: 'many' is wrong"),
        ({"temperature": 9}, r"LLMRequest\.temperature: 9\.0 is wrong"),
        ({"timeout": -1}, r"LLMRequest\.deadline: "),
        ({"gateway": 5}, r"GatewayChatModel\.gateway: "),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_wrong_setting_is_told_at_once_in_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        GatewayChatModel(**{"gateway": MockLLMGateway(), "model": "claude-haiku", **fields})
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_an_unknown_model_is_told_at_once() -> None:
    with pytest.raises(UnknownModelError, match="did you mean 'claude-haiku'"):
        MockLLMGateway().as_langchain("claude-hiku")


async def test_a_call_is_told_of_parameters_that_belong_elsewhere() -> None:
    model: Any = chat()
    for name, words in (("top_p", r"under \[models\.….options\]"), ("colour", "it has temperature, max_tokens")):
        with pytest.raises(InvalidRequestError, match=words):
            await model.ainvoke("hi", **{name: 1})


# --- tools --------------------------------------------------------------------------------------------------------

ANTHROPIC_TOOL = {"name": "pick", "description": "Pick.", "input_schema": {"type": "object", "properties": {}}}


async def test_tools_of_every_kind_become_the_gateways() -> None:
    gateway = MockLLMGateway()
    request = await asked(chat(gateway).bind_tools([get_weather, City, ANTHROPIC_TOOL]), gateway)
    assert request.tools is not None
    assert [tool.name for tool in request.tools] == ["get_weather", "City", "pick"]
    assert request.tools[0].description == "Tell the weather in a city."
    assert request.tools[0].input_schema["properties"] == {"city": {"type": "string"}}
    assert request.tool_choice is None


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, None),
        ("", None),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "any"),
        ("required", "any"),
        (True, "any"),
        (False, "none"),
        ("get_people", "get_people"),
        ({"type": "function", "function": {"name": "get_people"}}, "get_people"),
        ({"type": "function", "name": "get_people"}, "get_people"),
        ({"type": "tool", "name": "get_people"}, "get_people"),
        ({"type": "any"}, "any"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
    ],
    ids=str,
)
async def test_a_choice_in_every_form_is_the_same_choice(given: Any, choice: str | None) -> None:
    gateway = MockLLMGateway()
    request = await asked(chat(gateway).bind_tools([get_weather, get_people], tool_choice=given), gateway)
    assert request.tool_choice == choice


@pytest.mark.parametrize("given", [5, {}, {"type": "allowed_tools"}, {"type": "function"}], ids=str)
def test_a_choice_that_is_none_says_so(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"GatewayChatModel\.tool_choice: .* chooses no tool"):
        choice_of(given)


async def test_a_chosen_tool_must_be_offered() -> None:
    with pytest.raises(InvalidRequestError, match="'get_people' is none of"):
        await chat().bind_tools([get_weather], tool_choice="get_people").ainvoke("hi")


def test_a_tool_that_a_provider_would_run_and_an_unknown_option_are_told_when_they_are_bound() -> None:
    with pytest.raises(InvalidRequestError, match="'web_search_preview' is run by its provider"):
        chat().bind_tools([{"type": "web_search_preview"}])
    with pytest.raises(InvalidRequestError, match="parallel_tool_calls: no parameter"):
        chat().bind_tools([get_weather], parallel_tool_calls=False)
    with pytest.raises(InvalidRequestError, match=r"LLMTool\.name"):
        chat().bind_tools([{**ANTHROPIC_TOOL, "name": "no name"}])


# --- structured output --------------------------------------------------------------------------------------------


class Town(TypedDict):
    """A town."""

    name: str


@pytest.mark.parametrize("schema", [City, Town, City.model_json_schema()], ids=["pydantic", "typeddict", "schema"])
@pytest.mark.parametrize("method", [None, "json_schema", "json_mode", "function_calling"])
async def test_an_answer_follows_a_schema(schema: Any, method: Any) -> None:
    gateway = MockLLMGateway()
    answer = await chat(gateway).with_structured_output(schema, method=method, strict=True).ainvoke("Oslo")
    assert isinstance(answer, City if schema is City else dict)
    request = gateway.last_call.request
    if method == "function_calling":
        assert (request.response_format, request.tool_choice) == (
            None,
            schema["title"] if isinstance(schema, dict) else schema.__name__,
        )
    else:
        assert request.response_format is not None
        form = formats.asked_schema(request.response_format)
        assert (request.tools, form["required"]) == (None, list(form["properties"]))


async def test_a_model_whose_provider_may_not_enforce_a_schema_is_made_to_call_a_tool() -> None:
    config = {
        "models": {
            "groq": {"provider": "groq", "model": "llama"},
            "ours": {"provider": "house", "model": "llama"},
            "with-fallback": {"provider": "openai", "model": "gpt-4o-mini", "fallbacks": {"timeout": ["groq"]}},
        },
        "providers": {"house": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}},
    }
    gateway = MockLLMGateway(config)
    for name, forced in (("groq", "City"), ("ours", None), ("with-fallback", "City")):
        await gateway.as_langchain(name).with_structured_output(City).ainvoke("Oslo")
        assert gateway.last_call.request.tool_choice == forced
        assert (gateway.as_langchain(name).profile or {}).get("structured_output") is (forced is None)


async def test_an_answer_that_does_not_follow_comes_raw_with_its_error() -> None:
    gateway = MockLLMGateway(responses={"default": "Sorry?"})
    answer = await chat(gateway).with_structured_output(City, include_raw=True).ainvoke("Oslo")
    assert (answer["raw"].content, answer["parsed"]) == ("Sorry?", None)
    assert "Sorry?" in str(answer["parsing_error"])
    gateway = MockLLMGateway(responses={"default": '{"name": "Oslo"}'})
    answer = await chat(gateway).with_structured_output(City, include_raw=True).ainvoke("Oslo")
    assert (answer["parsed"], answer["parsing_error"]) == (City(name="Oslo"), None)


async def test_an_answer_that_does_not_follow_is_asked_for_again_by_the_gateway() -> None:
    rules = [{"match": {"text": "Oslo"}, "replies": ["Sorry?", '{"name": "Oslo"}']}]
    gateway = MockLLMGateway(responses={"rules": rules})
    assert await chat(gateway).with_structured_output(City).ainvoke("Oslo") == City(name="Oslo")
    assert [call.outcome for call in gateway.calls] == ["invalid_answer", "ok"]


async def test_a_streamed_answer_that_does_not_follow_comes_whole_all_the_same() -> None:
    gateway = MockLLMGateway(responses={"default": "Sorry, what?"})
    chunks = [chunk async for chunk in chat(gateway).bind(response_format=City).astream("Oslo")]
    assert "".join(str(chunk.content) for chunk in chunks) == "Sorry, what?"
    assert chunks[-1].response_metadata["receipt"]["attempts"] == 1


def test_a_schema_in_every_form_is_one_whose_properties_are_all_required() -> None:
    city = schema_of(City)
    assert city is not None
    assert city["required"] == ["name", "country"]
    assert "default" not in city["properties"]["country"]
    plain = City.model_json_schema()
    openai = {"type": "json_schema", "json_schema": {"name": "City", "schema": plain}}
    responses = {"type": "json_schema", "name": "City", "schema": plain}
    assert schema_of(plain) == schema_of(openai) == schema_of(responses)
    assert (schema_of(plain) or {})["required"] == ["name", "country"]
    assert schema_of({"type": "text"}) is None
    listed = schema_of({"type": "array", "items": {"type": "object", "properties": {"a": True}}})
    assert listed == {"type": "array", "items": {"type": "object", "properties": {"a": True}, "required": ["a"]}}
    with pytest.raises(InvalidRequestError, match="names no schema"):
        schema_of({"type": "json_object"})


# --- classes, agents ----------------------------------------------------------------------------------------------


async def test_what_is_asked_on_a_models_behalf_inherits_its_class_and_agent() -> None:
    gateway = MockLLMGateway()
    boss, helper = gateway.as_langchain("claude-haiku", priority=HIGH, agent="boss"), chat(gateway)
    with boss.on_behalf():
        await helper.ainvoke("one")
        with helper.on_behalf():  # it has nothing of its own to hand on
            await helper.bind(agent="own").ainvoke("two")
    await helper.ainvoke("three")
    stats = gateway.get_stats()
    assert {name: each["count"] for name, each in stats["queue_wait"]["by_priority"].items()} == {
        "high": 2, "normal": 1, "low": 0,
    }  # fmt: skip


# --- what LangChain asks ------------------------------------------------------------------------------------------


def test_langsmith_learns_the_providers_own_names() -> None:
    params = chat(temperature=0.5, max_tokens=9, stop=["x"])._get_ls_params()
    assert params == {
        "ls_provider": "anthropic",
        "ls_model_type": "chat",
        "ls_model_name": "claude-haiku-5-5",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert chat()._get_ls_params(model="gpt-4o-mini")["ls_provider"] == "openai"
    assert chat()._get_ls_params(model="unheard-of")["ls_provider"] == "llm-gateway"


def test_langchains_cache_tells_models_and_settings_apart() -> None:
    models = [chat(), chat(model="gpt-4o-mini"), chat(temperature=1), chat(max_tokens=5), chat(stop=["x"])]
    keys = [model._get_llm_string() for model in models]
    assert len(set(keys)) == len(keys)
    assert chat(agent="a", priority=HIGH)._get_llm_string() == keys[0]


def test_the_context_of_the_configuration_is_in_the_profile() -> None:
    gateway = MockLLMGateway({"models": {"claude-haiku": {"context": 8000}}})
    assert chat(gateway).profile == {"structured_output": True, "max_input_tokens": 8000}


def test_tokens_are_counted_without_a_network() -> None:
    model = chat()
    assert model.get_num_tokens("") == 0
    assert 1 <= model.get_num_tokens("What is a queue?") <= 8
    messages = [SystemMessage("Be brief."), HumanMessage("What is a queue?")]
    few = model.get_num_tokens_from_messages(messages)
    assert 5 <= few < model.get_num_tokens_from_messages(messages, tools=[get_weather])


def test_a_model_shows_nothing_of_its_gateway() -> None:
    gateway = MockLLMGateway({"providers": {"anthropic": {"api_key": "sk-canary-2"}}})
    model = chat(gateway)
    shown = f"{model!r} {model} {model.asdict()} {model._serialized} {model.model_dump()}"
    assert "canary" not in shown
    assert "gateway=" not in shown


async def test_a_chain_is_answered_as_a_batch() -> None:
    gateway = MockLLMGateway(responses={"default": "ok"})
    chain = ChatPromptTemplate.from_template("What is {what}?") | chat(gateway)
    answers = await chain.abatch([{"what": "a queue"}, {"what": "a stack"}])
    assert [answer.content for answer in answers] == ["ok", "ok"]
    assert gateway.get_stats()["batches"]["sizes"] == {"2": 1}
