"""GatewayEmbeddings: what LangChain asks an embedding model, asked of a gateway."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from llm_gateway.errors import InvalidRequestError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.langchain.parameters import check_names
from llm_gateway.integrations.loops import Doorway
from llm_gateway.models import ModelProvider, RequestPriority
from llm_gateway.sentences import sentence_of


class GatewayEmbeddings(BaseModel, Embeddings):
    """A LangChain embedding model whose calls go through a gateway, from any thread and any event loop.

    `model` is a name of the gateway's configuration, one with `embedding`. What is left out (None) is as in
    `LLMGateway.embed`; `priority` and `agent` are then inherited inside `gateway.on_behalf_of()`. `deadline`, also
    `timeout`, is in seconds from asking to the vectors.

    Raises InvalidRequestError or UnknownModelError at construction; while asking, what `LLMGateway.embed` raises. Where
    some texts of a list fail, EmbeddingError has the vectors of the others.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    gateway: LLMGateway = Field(exclude=True, repr=False)
    model: str
    priority: RequestPriority | None = None
    agent: str | None = None
    deadline: float | None = Field(default=None, gt=0)

    _door: Doorway = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        check_names(fields, (*type(self).model_fields, "timeout"), record=type(self).__name__)
        if "timeout" in fields:
            fields["deadline"] = fields.pop("timeout")
        if isinstance(fields.get("model"), ModelProvider):
            fields["model"] = fields["model"].value
        try:
            super().__init__(**fields)
        except ValidationError as error:
            field, reason = sentence_of(error, type(self))
            raise InvalidRequestError(reason, field=field or None, record=type(self).__name__) from None
        if not self.gateway.config.model(self.model).embedding:
            reason = f"'{self.model}' answers requests; ask a model that is configured with `embedding = true`."
            raise InvalidRequestError(reason, field="model", record=type(self).__name__)
        self._door = Doorway(self.gateway)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts, in their order. Blocks until they are there."""
        return self._door.ask_and_wait(self._asking(texts))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text. Blocks until it is there."""
        return self._door.ask_and_wait(self._asking([text]))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts, in their order."""
        return await self._door.ask(self._asking(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a text."""
        return (await self._door.ask(self._asking([text])))[0]

    def close(self) -> None:
        """Shut the gateway down, for all who use it. For programs without an event loop; others await `shutdown`."""
        self._door.ask_and_wait(self.gateway.shutdown)

    def _asking(self, texts: list[str]) -> Callable[[], Coroutine[Any, Any, list[list[float]]]]:
        async def ask() -> list[list[float]]:
            if texts == []:
                return []  # vector stores ask for the vectors of nothing, and expect none
            response = await self.gateway.embed(
                texts, model=self.model, priority=self.priority, agent=self.agent, deadline=self.deadline
            )
            return response.vectors

        return ask
