from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from llm_gateway.clients.messages import UnreadableAnswerError, completion_of, langchain_messages, plausible
from llm_gateway.clients.schemas import closed
from llm_gateway.clients.text import readable
from llm_gateway.models import LLMMessage, TokenUsage


def answer(content: Any = "ok", **fields: Any) -> AIMessage:
    fields.setdefault("response_metadata", {"finish_reason": "stop"})
    return AIMessage(content, **fields)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"status": "completed"}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"finish_reason": "STOP"}, "stop"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"stopReason": "end_turn"}, "stop"),
        ({"finish_reason": "SAFETY"}, "SAFETY"),
    ],
)
def test_a_reason_is_found_wherever_a_package_puts_it(metadata: dict[str, Any], reason: str) -> None:
    assert completion_of(answer(response_metadata=metadata), needs_reason=True).finish_reason == reason


def test_an_answer_that_ends_without_a_reason_is_not_whole() -> None:
    for metadata in ({}, {"finish_reason": None}, {"status": "incomplete"}):
        with pytest.raises(UnreadableAnswerError):
            completion_of(answer(response_metadata=metadata), needs_reason=True)
    assert completion_of(answer(response_metadata={}), needs_reason=False).finish_reason is None


def test_only_the_text_of_content_blocks_is_the_content() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "one "},
        {"type": "text", "text": "two"},
    ]
    assert completion_of(answer(blocks), needs_reason=True).content == "one two"


def test_a_refusal_is_told_as_one() -> None:
    refused = completion_of(answer("", additional_kwargs={"refusal": "I will not."}), needs_reason=True)
    assert (refused.content, refused.finish_reason) == ("I will not.", "refusal")


def test_a_tool_call_without_an_id_gets_one() -> None:
    call: Any = {"type": "tool_call", "id": None, "name": "look", "args": {}}
    done = completion_of(answer("", tool_calls=[call, call]), needs_reason=True)
    assert done.finish_reason == "tool_calls"
    assert len({call.id for call in done.tool_calls}) == 2


def test_tokens_of_a_service_tier_are_counted_like_all_others() -> None:
    usage: Any = {
        "input_tokens": 100,
        "output_tokens": 50,
        "total_tokens": 150,
        "input_token_details": {"flex": 60, "flex_cache_read": 40},
        "output_token_details": {"flex": 20, "flex_reasoning": 30},
    }
    counted = completion_of(answer(usage_metadata=usage), needs_reason=True).usage
    assert counted == TokenUsage(input_tokens=100, output_tokens=50, cache_read_tokens=40, reasoning_tokens=30)


def test_usage_that_is_not_told_is_unknown() -> None:
    assert completion_of(answer(), needs_reason=True).usage is None


def test_closing_a_schema_touches_only_objects_that_do_not_say() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "number"}}}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": [inner]}, "map": {"type": "object"}},
        "$defs": {"open": {**inner, "additionalProperties": True}},
    }
    result = closed(schema)
    assert result["additionalProperties"] is False
    assert result["properties"]["list"]["items"][0]["additionalProperties"] is False
    assert "additionalProperties" not in result["properties"]["map"]
    assert result["$defs"]["open"]["additionalProperties"] is True
    assert "additionalProperties" not in inner


@pytest.mark.parametrize("count", [10**400, 10**9 + 1, -1])
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_a_count_that_is_none_makes_the_usage_unknown(name: str, count: int) -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, name: count}
    assert completion_of(answer(usage_metadata=usage), needs_reason=True).usage is None


@pytest.mark.parametrize("count", [1.5, float("nan"), "many", -3, True, 10**400])
def test_a_detail_that_is_no_count_makes_the_usage_unknown(count: Any) -> None:
    message = answer()
    usage: Any = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}
    message.usage_metadata = usage | {"input_token_details": {"cache_read": count}}
    assert completion_of(message, needs_reason=True).usage is None
    assert not plausible({"prompt_tokens": 1, "details": {"cached_tokens": count}})
    assert plausible({"prompt_tokens": 1, "details": {"cached_tokens": None}, "seconds": count})


def test_what_was_written_to_a_cache_for_an_hour_is_told_apart() -> None:
    usage: Any = {"input_tokens": 90, "output_tokens": 1, "total_tokens": 91}
    message = answer()
    message.usage_metadata = usage | {
        "input_token_details": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30}
    }
    counted = completion_of(message, needs_reason=True).usage
    assert counted == TokenUsage(input_tokens=90, output_tokens=1, cache_write_tokens=50, cache_write_1h_tokens=30)


def test_half_a_surrogate_pair_in_an_answer_becomes_a_replacement_character() -> None:
    call: Any = {"type": "tool_call", "id": "\ud800", "name": "l\udfff", "args": {"k\ud800": ["a\udc00", 1, "é"]}}
    done = completion_of(answer("é\ud800!", tool_calls=[call]), needs_reason=True)
    assert done.content == "é\ufffd!"
    [made] = done.tool_calls
    assert (made.id, made.name) == ("\ufffd", "l\ufffd")
    assert made.arguments == {"k\ufffd": ["a\ufffd", 1, "é"]}
    made.model_dump_json()


def test_two_halves_that_arrived_apart_become_their_character() -> None:
    assert readable("\ud83d\ude00") == "\N{GRINNING FACE}"
    assert readable("naïve \N{GRINNING FACE}") == "naïve \N{GRINNING FACE}"


def test_arguments_that_nest_beyond_all_measure_are_no_answer() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    message = answer("")
    message.tool_calls = [{"type": "tool_call", "id": "1", "name": "look", "args": deep}]
    with pytest.raises(UnreadableAnswerError, match="nest too deep"):
        completion_of(message, needs_reason=True)


@pytest.mark.parametrize(("role", "cls"), [("user", HumanMessage), ("system", SystemMessage), ("assistant", AIMessage)])
def test_a_plain_message_is_what_langchains_constructor_makes(role: Any, cls: type[BaseMessage]) -> None:
    (made,) = langchain_messages([LLMMessage(role=role, content="good day")])
    usual = cls("good day")
    assert type(made) is cls
    assert made == usual
    assert made.model_dump() == usual.model_dump()
    assert made.model_fields_set == usual.model_fields_set
    assert made.__pydantic_extra__ == usual.__pydantic_extra__
    assert made.__pydantic_private__ == usual.__pydantic_private__
    (other,) = langchain_messages([LLMMessage(role=role, content="good day")])
    made.additional_kwargs["mine"] = 1
    assert other.additional_kwargs == {}
