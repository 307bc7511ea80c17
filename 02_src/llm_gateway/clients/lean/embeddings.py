"""What OpenAIEmbeddings and OllamaEmbeddings call: vectors over connections of ours."""

from __future__ import annotations

import binascii
import sys
from array import array
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any

from llm_gateway.clients.lean.call import Record, answered
from llm_gateway.clients.lean.http import Http, Target
from llm_gateway.clients.lean.seams import Seam
from llm_gateway.clients.messages import UnreadableAnswerError

# What LangChain's classes must have for these to stand under them.
SEAM: Seam = {"aembed_documents": ("texts",)}
OPENAI_FIELDS = ("async_client", "check_embedding_ctx_length", "chunk_size")
OLLAMA_FIELDS = ("_async_client",)

NoteUsage = Callable[[object], None]


class OpenAIVectors:
    """Stands where OpenAIEmbeddings holds the SDK's `embeddings`."""

    def __init__(self, http: Http, target: Target, note_usage: NoteUsage) -> None:
        self._http = http
        self._target = target
        self._note_usage = note_usage

    async def create(self, **payload: Any) -> Record:
        """Return the vectors in the order of the texts.

        As the SDK does, it asks for base64, a quarter of the bytes; a server that does not know it sends numbers.
        """
        answer = await answered(self._http, self._target, {"encoding_format": "base64", **payload})
        rows = answer.get("data")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UnreadableAnswerError("it has no list of vectors")
        usage = answer.get("usage")
        self._note_usage(usage.get("prompt_tokens") if isinstance(usage, dict) else None)
        in_order = sorted(enumerate(rows), key=lambda each: _place(each[1], each[0]))
        return {"data": [{"embedding": vector_of(row.get("embedding"))} for _, row in in_order]}


class OllamaVectors:
    """Stands where OllamaEmbeddings holds the SDK's client."""

    def __init__(self, http: Http, target: Target, note_usage: NoteUsage) -> None:
        self._http = http
        self._target = target
        self._note_usage = note_usage

    async def embed(self, model: str, texts: Sequence[str], *, options: Record | None = None, **fields: Any) -> Record:
        """Return the vectors in the order of the texts."""
        set_options = {name: value for name, value in (options or {}).items() if value is not None}
        body = {"model": model, "input": texts, "options": set_options or None, **fields}
        payload = {name: value for name, value in body.items() if value is not None}
        answer = await answered(self._http, self._target, payload)
        vectors = answer.get("embeddings")
        if not isinstance(vectors, list):
            raise UnreadableAnswerError("it has no list of vectors")
        self._note_usage(answer.get("prompt_eval_count"))
        return {"embeddings": [vector_of(each) for each in vectors]}


def _place(row: Record, default: int) -> int:
    index = row.get("index")
    return index if isinstance(index, int) else default


def vector_of(value: object) -> list[float]:
    """Return a vector that came as numbers, or as base64 of 32-bit numbers. Raises UnreadableAnswerError."""
    if isinstance(value, list):
        try:
            return list(array("d", value))
        except TypeError:
            raise UnreadableAnswerError("a vector of it holds what is no number") from None
    try:
        numbers = array("f", b64decode(value, validate=True))  # type: ignore[arg-type]  # else it raises, too
    except (TypeError, ValueError, binascii.Error):
        raise UnreadableAnswerError("a vector of it cannot be read") from None
    if sys.byteorder == "big":
        numbers.byteswap()
    return list(numbers)
