"""Recorded vectors: one for each text, since which texts share a call depends on the moment."""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, model_validator

from llm_gateway.batching.together import split
from llm_gateway.clients.base import Completion
from llm_gateway.config import GatewayConfig
from llm_gateway.mock_gateway.matching import COMPARED, Asked, shown
from llm_gateway.mock_gateway.responses import Part, Reply, ScriptedError
from llm_gateway.mock_gateway.scripted import Vectors
from llm_gateway.models import EmbeddingRequest, Numeric, TokenUsage
from llm_gateway.tokens import estimate_text

NUMBER = struct.calcsize("<d")  # bytes


class RecordedVector(Part):
    """What one text became."""

    deployment: str
    """What answered: provider, slash, model id."""
    model: str
    """The model's name in the configuration."""
    text: str
    tokens: Annotated[int, Field(ge=0), Numeric] | None = None
    """Its part of what the provider counted; null: the provider does not say."""
    vector: str | None = None
    """The numbers as doubles of 8 bytes, the low byte first, in base64."""
    error: ScriptedError | None = None
    """Why it became none."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.vector is None) == (self.error is None):
            raise ValueError("give either 'vector' or 'error'")
        if self.vector is not None and not self.numbers:
            raise ValueError("the vector is empty")
        return self

    @cached_property
    def numbers(self) -> list[float]:
        """The vector."""
        data = b64decode(self.vector or "", validate=True)
        if len(data) % NUMBER:
            raise ValueError("the vector is not whole")
        return list(struct.unpack(f"<{len(data) // NUMBER}d", data))


def packed(vector: Sequence[float]) -> str:
    """Return a vector as a recording has it."""
    return b64encode(struct.pack(f"<{len(vector)}d", *vector)).decode()


class VectorTape:
    """The recorded vectors of one test. A text has the same one whenever it is asked for.

    `known` are the deployments that each model has now, `sizes` how many numbers its vectors shall have, where the
    configuration says so.
    """

    def __init__(
        self, mask: Callable[[str], str], known: Mapping[str, Sequence[str]], sizes: Mapping[str, int | None]
    ) -> None:
        self._mask = mask
        self._known = known
        self._sizes = sizes
        self._kept: dict[tuple[str, str], RecordedVector] = {}
        self._used: set[tuple[str, str]] = set()

    def load(self, vectors: Sequence[RecordedVector]) -> None:
        """Take what a file has."""
        self._kept = {(each.model, each.text): each for each in vectors}

    def used(self) -> list[RecordedVector]:
        """Return what was asked for or recorded, in an order that does not depend on who was answered first."""
        return [self._kept[key] for key in sorted(self._used)]

    @property
    def unused(self) -> list[str]:
        """What was recorded and not asked for, each in a few words."""
        return [f"{shown(text)} to {model}" for model, text in self._kept if (model, text) not in self._used]

    def find(self, model: str, text: str) -> RecordedVector | None:
        """Return what is recorded of a text, if it would come again from the model as it is configured now."""
        key = model, self._mask(text)
        kept = self._kept.get(key)
        if kept is None or self._what_changed(kept):
            return None
        self._used.add(key)
        return kept

    def reply(self, asked: Asked) -> Reply | str:
        """Return what a call comes to, or in a sentence's end what it lacks; of several errors the first."""
        assert isinstance(asked.request, EmbeddingRequest)  # noqa: S101 - no other request gets here
        errors = []
        for text in asked.request.texts:
            found = self.find(asked.model, text)
            if found is None:
                return self._what_is_missing(asked.model, self._mask(text))
            errors += [found.error] if found.error is not None else []
        return Reply(error=errors[0]) if errors else Reply(content="")

    def vectors_of(self, request: EmbeddingRequest, model: str) -> Vectors:
        """Return the recorded vectors of texts, in order, and what they cost. Each of them must be there."""
        found = [kept for text in request.texts if (kept := self.find(model, text)) is not None]
        counts = [each.tokens for each in found if each.tokens is not None]
        usage = TokenUsage(input_tokens=sum(counts)) if len(counts) == len(found) else None
        return [each.numbers for each in found], usage

    def record(self, deployment: str, asked: Asked, completion: Completion) -> None:
        """Keep the vectors that a call brought."""
        assert isinstance(asked.request, EmbeddingRequest)  # noqa: S101 - see above
        texts = asked.request.texts
        parts = split(completion.usage, [max(1, round(estimate_text(each))) for each in texts])
        for text, vector, part in zip(texts, completion.vectors or (), parts, strict=True):
            tokens = None if part is None else part.input_tokens
            kept = RecordedVector(
                deployment=deployment, model=asked.model, text=self._mask(text), tokens=tokens, vector=packed(vector)
            )
            self._keep(kept)

    def record_error(self, deployment: str, asked: Asked, error: Mapping[str, object]) -> None:
        """Keep why a single text has no vector."""
        fields = {"deployment": deployment, "model": asked.model, "text": self._mask(asked.text), **error}
        self._keep(RecordedVector.model_validate(fields))

    def _keep(self, kept: RecordedVector) -> None:
        key = kept.model, kept.text
        self._kept[key] = kept
        self._used.add(key)

    def _what_changed(self, kept: RecordedVector) -> str | None:
        known, size = self._known.get(kept.model, ()), self._sizes.get(kept.model)
        if kept.deployment not in known:
            return f"deployment: recorded {kept.deployment}, asked {' or '.join(known)}"
        if kept.vector is not None and size is not None and len(kept.numbers) != size:
            return f"options.dimensions: recorded {len(kept.numbers)}, asked {size}"
        return None

    def _what_is_missing(self, model: str, text: str) -> str:
        lacks = f"has no vector of {shown(text)} by {model}"
        same = self._kept.get((model, text))
        if same is not None:
            return f"{lacks} as it is configured now. {self._what_changed(same)}."
        others = [each.text for each in self._kept.values() if each.model == model]
        nearest = max(others, key=lambda each: _likeness(each, text), default=None)
        return f"{lacks}." if nearest is None else f"{lacks}. The nearest recorded text is {shown(nearest)}."


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one[:COMPARED], other[:COMPARED], autojunk=False).ratio()


def sizes_of(config: GatewayConfig) -> dict[str, int | None]:
    """Return how many numbers the vectors of each model shall have; None: as many as it likes."""
    return {
        name: size if isinstance(size := model.options.get("dimensions"), int) else None
        for name, model in config.models.items()
    }
