"""LangChain's messages as the gateway's, and back."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from llm_gateway import (
    InvalidRequestError,
    LLMMessage,
    LLMResponse,
    LLMToolCall,
    ReasoningDelta,
    Receipt,
    StreamDelta,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
)
from llm_gateway.integrations.langchain.messages import ai_message, chunk_of, gateway_messages

PICTURE = "iVBORw0KGgo="
CALL = {"type": "tool_call", "id": "c1", "name": "look", "args": {"where": "up"}}
OURS = LLMToolCall(id="c1", name="look", arguments={"where": "up"})


def converted(*messages: BaseMessage) -> list[LLMMessage]:
    return gateway_messages(messages)


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (HumanMessage("hi", name="Ann"), "user"),
        (HumanMessageChunk(content="hi"), "user"),
        (SystemMessage("hi"), "system"),
        (AIMessage("hi"), "assistant"),
        (AIMessageChunk(content="hi"), "assistant"),
        (ChatMessage(content="hi", role="user"), "user"),
        (ChatMessage(content="hi", role="ai"), "assistant"),
        (ChatMessage(content="hi", role="developer"), "system"),
    ],
    ids=lambda each: f"{type(each).__name__}-{getattr(each, 'role', '')}" if isinstance(each, BaseMessage) else each,
)
def test_each_class_of_message_has_its_role(message: BaseMessage, role: str) -> None:
    assert [(each.role, each.content) for each in converted(message)] == [(role, "hi")]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (FunctionMessage(content="hi", name="f"), "class FunctionMessage"),
        (RemoveMessage(id="1"), "class RemoveMessage"),
        (ChatMessage(content="hi", role="narrator"), "role 'narrator'"),
    ],
    ids=["function", "remove", "chat"],
)
def test_a_message_that_no_model_takes_is_named_with_its_place(message: BaseMessage, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^LLMRequest\.messages\[1\]: no model takes .*{words}"):
        converted(HumanMessage("x"), message)


def test_tool_calls_and_their_results_travel_with_their_ids() -> None:
    turns = converted(AIMessage("", tool_calls=[CALL]), ToolMessage("clouds", tool_call_id="c1", status="error"))
    assert turns == [
        LLMMessage(role="assistant", content="", tool_calls=[OURS]),
        LLMMessage(role="tool", content="clouds", tool_call_id="c1"),
    ]


def test_a_broken_call_stays_if_it_was_answered_and_is_left_out_if_not() -> None:
    broken = {"type": "invalid_tool_call", "id": "b", "name": "look", "args": "{'where", "error": "no JSON"}
    other = {**broken, "id": "never answered"}
    turn = AIMessage("", invalid_tool_calls=[broken, other])
    said, _ = converted(turn, ToolMessage("That was no JSON.", tool_call_id="b"))
    assert said.tool_calls == [LLMToolCall(id="b", name="look", arguments={"invalid_json": "{'where"})]
    [alone] = converted(turn)
    assert alone.tool_calls is None


def test_a_call_without_an_id_gets_one() -> None:
    [turn] = converted(AIMessage("", tool_calls=[{**CALL, "id": None}]))
    assert turn.tool_calls is not None
    assert turn.tool_calls[0].id


@pytest.mark.parametrize(
    "content",
    [
        [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"where": "up"}},
        ],
        [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "I look."}, CALL],
        [{"type": "thinking", "thinking": "hm", "signature": "s"}, "I look."],
        ["I ", {"type": "text", "text": "look.", "annotations": []}],
    ],
    ids=["anthropic", "v1", "thinking", "parts"],
)
def test_of_an_assistants_blocks_the_text_is_sent_and_the_calls_once(content: list[Any]) -> None:
    [turn] = converted(AIMessage(content, tool_calls=[CALL]))
    assert turn == LLMMessage(role="assistant", content="I look.", tool_calls=[OURS])


def test_blocks_of_an_assistant_that_are_more_than_text_stay_blocks() -> None:
    blocks: list[Any] = [{"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}]
    [turn] = converted(AIMessage(blocks))
    assert turn.content == blocks
    [empty] = converted(AIMessage([]))
    assert empty.content == ""


def test_a_users_blocks_are_passed_on_and_anthropics_pictures_become_standard_ones() -> None:
    as_they_are: list[Any] = [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}", "detail": "low"}},
        {"type": "image", "base64": PICTURE, "mime_type": "image/png"},
        {"type": "file", "base64": PICTURE, "mime_type": "application/pdf"},
        {"type": "audio", "base64": PICTURE, "mime_type": "audio/wav"},
    ]
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    claude = {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}
    [turn] = converted(HumanMessage(["Look:", *as_they_are, claude]))
    standard = {"type": "image", "base64": PICTURE, "mime_type": "image/png", "cache_control": {"type": "ephemeral"}}
    assert turn.content == [{"type": "text", "text": "Look:"}, *as_they_are, standard]


def test_the_result_of_a_tool_may_be_a_picture() -> None:
    picture: Any = {"type": "image", "base64": PICTURE, "mime_type": "image/png"}
    [turn] = converted(ToolMessage([picture], tool_call_id="c1"))
    assert turn.content == [picture]


# --- answers ------------------------------------------------------------------------------------------------------

USAGE = TokenUsage(input_tokens=10, output_tokens=5, cache_read_tokens=4, cache_write_tokens=2, reasoning_tokens=3)
RECEIPT = Receipt(queue_wait=0.5, attempts=2, provider_time=1.5, deployment="openai/gpt-4o-mini", usage=USAGE)
ANSWER = LLMResponse(
    request_id="r", content="Clouds.", tool_calls=[OURS], model="m", finish_reason="tool_calls", receipt=RECEIPT
)
METADATA = {"finish_reason": "tool_calls", "model_name": "m", "request_id": "r"}


def test_an_answer_has_its_text_calls_usage_and_receipt() -> None:
    message = ai_message(ANSWER)
    assert (message.content, message.tool_calls) == ("Clouds.", [CALL])
    assert message.usage_metadata == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "input_token_details": {"cache_read": 4, "cache_creation": 2},
        "output_token_details": {"reasoning": 3},
    }
    receipt = message.response_metadata.pop("receipt")
    assert Receipt.model_validate(receipt) == RECEIPT
    assert message.response_metadata == METADATA


def test_usage_that_nobody_told_is_none() -> None:
    assert ai_message(ANSWER.model_copy(update={"receipt": None})).usage_metadata is None
    unknown = RECEIPT.model_copy(update={"usage": None})
    assert ai_message(ANSWER.model_copy(update={"receipt": unknown})).usage_metadata is None


def test_the_pieces_of_a_stream_add_up_to_the_answer() -> None:
    pieces: list[StreamDelta | LLMResponse] = [
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        TextDelta("Clou"),
        TextDelta("ds."),
        ToolCallDelta(index=0, id="c1", name="look"),
        ToolCallDelta(index=0, arguments='{"where": '),
        ToolCallDelta(index=0, arguments='"up"}'),
        ANSWER,
    ]
    first, *rest = map(chunk_of, pieces)
    assert rest[-1].chunk_position == "last"
    whole = sum(rest, first)
    assert isinstance(whole, AIMessageChunk)
    alone = ai_message(ANSWER)
    assert (whole.content, whole.tool_calls) == (alone.content, alone.tool_calls)
    assert (whole.usage_metadata, whole.response_metadata) == (alone.usage_metadata, alone.response_metadata)
    assert whole.content_blocks[0] == {"type": "reasoning", "reasoning": "hm"}


def test_a_call_that_a_stream_cut_off_is_an_invalid_one() -> None:
    pieces: list[StreamDelta] = [
        ToolCallDelta(index=0, id="c1", name="look"),
        ToolCallDelta(index=0, arguments="no JSON"),
    ]
    first, *rest = map(chunk_of, (*pieces, ANSWER))
    whole = sum(rest, first)
    assert isinstance(whole, AIMessageChunk)
    assert [call["args"] for call in whole.invalid_tool_calls] == ["no JSON"]
