"""What embedding clients make of odd answers, and of packages that are not there."""

from __future__ import annotations

import asyncio
import sys
from array import array
from base64 import b64encode
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings

from fakes.deployments import deployment
from llm_gateway.clients.embeddings import EmbeddingClient, Noting
from llm_gateway.clients.factory import LangChainClients
from llm_gateway.clients.lean.embeddings import vector_of
from llm_gateway.clients.messages import UnreadableAnswerError
from llm_gateway.errors import ConfigurationError, IncompleteResponseError, MissingDependencyError
from llm_gateway.models import EmbeddingRequest, LLMMessage

NUMBERS = [0.5, -1.0, 2.0]
ASKED = EmbeddingRequest(model="m", messages=[LLMMessage(role="user", content=text) for text in ("a", "b")])


class Fixed(Embeddings):
    """An embedding model of some package, which answers what it is told."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError(texts)

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:  # noqa: ARG002 - LangChain's signature
        if isinstance(self._vectors, Exception):
            raise self._vectors
        vectors: list[list[float]] = self._vectors
        return vectors


def client(vectors: Any) -> EmbeddingClient:
    return EmbeddingClient(Fixed(vectors), deployment("cohere", None, embedding=True), wired=True)


def test_a_vector_comes_as_numbers_or_as_their_bytes() -> None:
    assert vector_of(NUMBERS) == NUMBERS
    numbers = array("f", NUMBERS)
    if sys.byteorder == "big":
        numbers.byteswap()
    assert vector_of(b64encode(numbers).decode()) == NUMBERS


@pytest.mark.parametrize("value", [None, 5, "no base64!", "AAA=", ["1"], [None], {"a": 1}], ids=repr)
def test_what_is_no_vector_cannot_be_read(value: object) -> None:
    with pytest.raises(UnreadableAnswerError):
        vector_of(value)


@pytest.mark.parametrize("vectors", [[], [NUMBERS], [NUMBERS, []], [NUMBERS] * 3], ids=["none", "one", "empty", "many"])
async def test_an_answer_without_a_vector_for_each_text_is_incomplete(vectors: Any) -> None:
    with pytest.raises(IncompleteResponseError):
        await client(vectors).generate(ASKED)


async def test_a_stream_of_vectors_is_the_whole_answer() -> None:
    pieces = [piece async for piece in client([NUMBERS, NUMBERS]).stream(ASKED)]
    assert [getattr(piece, "vectors", None) for piece in pieces] == [[NUMBERS, NUMBERS]]


async def test_a_cancel_that_a_package_turns_into_an_error_stays_a_cancel() -> None:
    class Swallowing(Fixed):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            try:
                return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
            except asyncio.CancelledError:
                raise ValueError(texts) from None

    asked = EmbeddingClient(Swallowing([]), deployment("cohere", None, embedding=True), wired=True).generate(ASKED)
    call = asyncio.create_task(asked)
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_an_answer_that_tells_no_usage_is_an_answer() -> None:
    class Server:
        async def embed(self, *texts: str) -> list[str]:
            return list(texts)

    noting: Any = Noting(Server(), "embed", lambda answer: answer.prompt_eval_count)
    assert await noting.embed("a") == ["a"]


def test_a_provider_that_langchain_does_not_know_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"models\.m: the embedding model of 'nonesuch' cannot be set up"):
        LangChainClients().connect(deployment("nonesuch", None, embedding=True))


def test_a_package_that_is_missing_names_the_command() -> None:
    with pytest.raises(MissingDependencyError, match="pip install langchain-cohere"):
        LangChainClients().connect(deployment("cohere", None, embedding=True))


def test_without_langchain_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.embeddings", None)
    with pytest.raises(MissingDependencyError, match=r"llm-gateway\[providers\]"):
        LangChainClients().connect(deployment("cohere", None, embedding=True))
