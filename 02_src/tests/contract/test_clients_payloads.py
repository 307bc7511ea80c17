"""What we build of a payload ourselves is what LangChain would have built."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from llm_gateway.clients.messages import langchain_messages
from llm_gateway.clients.openai import GPT, MOST_FRAMES
from llm_gateway.models import LLMMessage, LLMToolCall

CALL = {"type": "tool_call", "id": "a", "name": "look", "args": {"where": "up"}}
ANSWERS: dict[str, BaseMessage] = {
    "text": AIMessage("Paris, 🎈."),
    "empty": AIMessage(""),
    "named": AIMessage("Paris.", name="guide"),
    "call": AIMessage("I look.", tool_calls=[CALL]),
    "call without words": AIMessage("", tool_calls=[CALL]),
    "blocks": AIMessage([{"type": "text", "text": "Paris."}]),
    "sound": AIMessage([{"type": "audio", "id": "s1"}]),
    "refusal": AIMessage("No.", additional_kwargs={"refusal": "No."}),
    "another form": AIMessage("Paris.", response_metadata={"output_version": "v1"}),
}


def both(**fields: Any) -> tuple[GPT, ChatOpenAI]:
    key = SecretStr("sk-canary-0123456789abcdef")
    return GPT(api_key=key, **fields), ChatOpenAI(api_key=key, **fields)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    "fields", [{"model": "gpt-4o-mini"}, {"model": "o3"}, {"model": "m", "use_responses_api": True}]
)
def test_a_conversation_is_sent_as_langchain_would_send_it(answer: str, fields: dict[str, Any]) -> None:
    ours, theirs = both(**fields)
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Where?"),
        ANSWERS[answer],
        ToolMessage("a tower", tool_call_id="a"),
        AIMessage("Under it."),
        HumanMessage([{"type": "text", "text": "Sure?"}]),
    ]
    seen = ours._get_request_payload(messages, stop=["x"], max_tokens=5)
    assert seen == theirs._get_request_payload(messages, stop=["x"], max_tokens=5)
    assert messages[4].content == "Under it."


@pytest.mark.parametrize("model", ["gpt-4o-mini", "o3"])
def test_plain_texts_of_every_role_are_sent_as_langchain_would_send_them_each_time_anew(model: str) -> None:
    ours, theirs = both(model=model)
    kinds = (SystemMessage, HumanMessage, AIMessage)
    for words in ("first", ""):
        messages: list[BaseMessage] = [kind(f"{words}{kind.__name__}") for kind in kinds]
        seen = ours._get_request_payload(messages)
        assert seen == theirs._get_request_payload(messages)
        seen["messages"][0]["content"] = seen["model"] = "changed by its receiver"
    named: list[BaseMessage] = [HumanMessage("Where?", name="guide"), SystemMessage("Be brief.")]
    assert ours._get_request_payload(named) == theirs._get_request_payload(named)


@pytest.mark.parametrize(
    "fields", [{"model": "gpt-4o-mini"}, {"model": "o3"}, {"model": "m", "use_responses_api": True}]
)
def test_each_setting_is_sent_as_langchain_would_send_it_however_many_there_were(fields: dict[str, Any]) -> None:
    ours, theirs = both(**fields)
    texts: list[BaseMessage] = [HumanMessage("Where?")]
    settings: list[dict[str, Any]] = [
        {},
        {"max_tokens": 5},
        {"temperature": 0.5, "max_tokens": 5},
        {"max_tokens": 5, "stop": ["x"]},
        {"extra_body": {"top_k": 3}, "service_tier": "flex"},
        *({"max_tokens": number} for number in range(MOST_FRAMES + 5)),
    ]
    for setting in (*settings, *settings[:5]):
        assert ours._get_request_payload(texts, **setting) == theirs._get_request_payload(texts, **setting)


TEXTS = [
    LLMMessage(role="system", content="Be brief."),
    LLMMessage(role="user", content="Where?"),
    LLMMessage(role="assistant", content="Paris, 🎈."),
    LLMMessage(role="user", content=""),
]
CALLS = [LLMToolCall(id="a", name="look", arguments={})]


@pytest.mark.parametrize("model", ["gpt-4o-mini", "o3"])
def test_texts_that_no_message_was_made_of_are_sent_as_langchain_would_send_them(model: str) -> None:
    ours, theirs = both(model=model)
    settings: list[dict[str, Any]] = [{}, {"max_tokens": 5, "temperature": 0.5}]
    for setting in settings:
        for _ in range(2):
            seen = ours._payload_of_texts(TEXTS, setting)
            assert seen == theirs._get_request_payload(langchain_messages(TEXTS), **setting)
            seen["messages"][0]["content"] = seen["model"] = "changed by its receiver"


@pytest.mark.parametrize(
    ("message", "fields", "setting"),
    [
        (LLMMessage(role="assistant", content="I look.", tool_calls=CALLS), {}, {}),
        (LLMMessage(role="tool", content="a tower", tool_call_id="a"), {}, {}),
        (LLMMessage(role="user", content=[{"type": "text", "text": "Where?"}]), {}, {}),
        (TEXTS[0], {}, {"stop": ["x"]}),
        (TEXTS[0], {"use_responses_api": True}, {}),
        (TEXTS[0], {"use_previous_response_id": True}, {}),
    ],
    ids=["tool calls", "a tool's result", "blocks", "stop words", "Responses API", "a stored conversation"],
)
def test_langchain_sees_the_messages_of_what_is_more_than_plain_texts(
    message: LLMMessage, fields: dict[str, Any], setting: dict[str, Any]
) -> None:
    ours, _ = both(model="m", **fields)
    assert ours._payload_of_texts([*TEXTS, message], setting) is None


def test_a_question_that_is_no_list_of_messages_is_langchains_own_business() -> None:
    ours, theirs = both(model="gpt-4o-mini")
    assert ours._get_request_payload("Where?") == theirs._get_request_payload("Where?")
