"""What GatewayChatModel promises, on the mock and over HTTP: callbacks once, streams that close, errors that arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.prompts import ChatPromptTemplate

from fakes.deployments import CANARY, KINDS, MODELS, base_url
from fakes.emulator import Emulator, Reply
from fakes.stages import MODEL, MockStage, RealStage, Says, Stage
from llm_gateway import AuthenticationError, GatewayClosedError, LLMGateway, Receipt, StreamInterruptedError


@pytest.fixture(params=[MockStage, RealStage], ids=["mock", "real"])
def stage(request: pytest.FixtureRequest) -> Stage:
    made: Stage = request.param()
    return made


class Heard(AsyncCallbackHandler):
    """Writes down what LangChain tells."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens: list[str] = []

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.events.append("start")

    async def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.events.append("end")

    async def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.events.append(type(error).__name__)


async def test_callbacks_hear_of_one_call_and_its_usage_once(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"hi": [Says(text="hello", usage=(12, 3))]}) as gateway:
        heard, usage = Heard(), UsageMetadataCallbackHandler()
        answer = await gateway.as_langchain(MODEL).ainvoke("hi", {"callbacks": [heard, usage]})
    assert heard.events == ["start", "end"]
    assert usage.usage_metadata[MODEL]["total_tokens"] == 15
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 15
    receipt = Receipt.model_validate(answer.response_metadata["receipt"])
    assert (receipt.attempts, receipt.deployment) == (1, "openai/gpt-4o-mini")


async def test_callbacks_hear_every_piece_of_a_stream_once(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"hi": [Says(text="one two three", usage=(12, 3))]}) as gateway:
        heard, usage = Heard(), UsageMetadataCallbackHandler()
        config: Any = {"callbacks": [heard, usage]}
        pieces = [chunk.content async for chunk in gateway.as_langchain(MODEL).astream("hi", config)]
        assert "".join(map(str, pieces)) == "one two three"
        assert (heard.tokens, heard.events) == (pieces, ["start", "end"])
        assert usage.usage_metadata[MODEL]["total_tokens"] == 15
        heard = Heard()
        streaming = gateway.as_langchain(MODEL).model_copy(update={"streaming": True})
        assert (await streaming.ainvoke("hi", {"callbacks": [heard]})).content == "one two three"
        assert (heard.tokens, heard.events) == (pieces, ["start", "end"])


async def test_a_chain_in_a_thread_tells_its_callbacks_once_for_each_input(stage: Stage) -> None:
    async with stage.provider(), stage.gateway() as gateway:
        usage = UsageMetadataCallbackHandler()
        chain = ChatPromptTemplate.from_template("{what}") | gateway.as_langchain(MODEL)
        inputs = [{"what": "a"}, {"what": "b"}, {"what": "c"}]
        answers = await asyncio.to_thread(chain.batch, inputs, {"callbacks": [usage]})
        assert [answer.content for answer in answers] == ["ok"] * 3
        assert usage.usage_metadata[MODEL]["total_tokens"] == 45
        assert sorted(stage.sent) == ["a", "b", "c"]


async def test_a_retry_is_the_gateways_alone_and_a_last_error_reaches_caller_and_callbacks(stage: Stage) -> None:
    script = {"busy": [Says(status=429, retry_after=0.001), Says(text="now")], "no": [Says(status=401)]}
    async with stage.provider(), stage.gateway(script) as gateway:
        heard = Heard()
        chat = gateway.as_langchain(MODEL)
        answer = await chat.ainvoke("busy", {"callbacks": [heard]})
        assert (answer.content, answer.response_metadata["receipt"]["attempts"]) == ("now", 2)
        with pytest.raises(AuthenticationError):
            await chat.ainvoke("no", {"callbacks": [heard]})
        assert heard.events == ["start", "end", "start", "AuthenticationError"]
        assert stage.sent == ["busy", "busy", "no"]
    with pytest.raises(GatewayClosedError):
        await chat.ainvoke("late")


async def test_one_bad_prompt_of_a_batch_fails_alone(stage: Stage) -> None:
    async with stage.provider(), stage.gateway({"no": [Says(status=401)]}) as gateway:
        chat = gateway.as_langchain(MODEL)
        outcomes: list[Any] = await chat.abatch(["yes", "no"], return_exceptions=True)
        assert outcomes[0].content == "ok"
        assert isinstance(outcomes[1], AuthenticationError)


OPTIONS = {"ollama": {"reasoning": True}}  # it is told of no other way


@pytest.fixture(params=KINDS)
async def chat(request: pytest.FixtureRequest, emulator: Emulator) -> Any:
    kind = request.param
    config = {
        "providers": {kind: {"base_url": base_url(emulator.url, kind), "api_key": CANARY}},
        "models": {"m": {"provider": kind, "model": MODELS[kind], "options": OPTIONS.get(kind, {})}},
        "logs": {"dir": False},
    }
    async with LLMGateway(config) as gateway:
        yield gateway.as_langchain("m")


async def test_leaving_a_stream_closes_its_connection(emulator: Emulator, chat: BaseChatModel) -> None:
    emulator.script(Reply(text="one two three", fault="stall", after=1))
    async for chunk in chat.astream("hi"):
        assert chunk.content == "one"
        break
    await emulator.settled()
    assert emulator.ledger[0].disconnected


async def test_a_stream_that_breaks_is_an_error_with_the_part_that_came(
    emulator: Emulator, chat: BaseChatModel
) -> None:
    emulator.script(Reply(text="one two three", fault="error_event", after=2))
    heard, pieces = Heard(), list[str]()

    async def read() -> None:
        async for chunk in chat.astream("hi", {"callbacks": [heard]}):
            pieces.append(str(chunk.content))

    with pytest.raises(StreamInterruptedError) as caught:
        await read()
    assert caught.value.partial == "".join(pieces) == "one two"
    assert heard.events == ["start", "StreamInterruptedError"]


async def test_reasoning_comes_before_the_text_and_is_no_part_of_it(emulator: Emulator, chat: BaseChatModel) -> None:
    emulator.script(Reply(text="Clouds.", reasoning="I look up."))
    first, *rest = [chunk async for chunk in chat.astream("hi")]
    whole = sum(rest, first)
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == "Clouds."
    assert [block for block in whole.content_blocks if block["type"] == "reasoning"] == [
        {"type": "reasoning", "reasoning": "I look up."}
    ]
