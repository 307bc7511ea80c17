"""Batches of a provider that is not there: answered by script, over at the first look."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches import BatchAnswer, Found, Sought, Standing
from llm_gateway.errors import GatewayError, ProviderError, RequestRejectedError
from llm_gateway.models import LLMRequest
from llm_gateway.price_lanes import BatchLimits


class ScriptedBatches:
    """Stands in for the batches of one deployment; `answer` makes the call of one request."""

    def __init__(self, limits: BatchLimits, answer: Callable[[LLMRequest], Awaitable[Completion]]) -> None:
        self.limits = limits
        self._answer = answer
        self._made: dict[str, Sequence[bytes]] = {}

    def line(self, custom_id: str, request: LLMRequest, /) -> bytes:
        """Return a request as a batch has it."""
        return json.dumps([custom_id, request.model_dump_json()]).encode()

    def finished(self, _request: LLMRequest, completion: Completion, /) -> Completion:
        """Return the answer as it is."""
        return completion

    async def create(self, intent: str, lines: Sequence[bytes], /) -> str:
        """Make a batch."""
        batch_id = f"mock_batch_{intent}"
        self._made[batch_id] = lines
        return batch_id

    async def look(self, _batch_id: str, /) -> Standing:
        """Return that it is over."""
        return Standing(state="completed", is_over=True, is_whole=True)

    async def find(self, _sought: Sought, /) -> Found:
        """Find nothing: no batch is ever in doubt."""
        return Found()

    async def results(self, batch_id: str, /) -> AsyncGenerator[BatchAnswer, None]:
        """Yield the scripted answers, and errors of requests that no rule fits as rejections."""
        for line in self._made.pop(batch_id, ()):
            custom_id, asked = json.loads(line)
            request = LLMRequest.model_validate_json(asked)
            outcome: Completion | ProviderError
            try:
                outcome = await self._answer(request)
            except ProviderError as error:
                outcome = error
            except GatewayError as error:
                outcome = RequestRejectedError(
                    str(error), provider="mock", model=str(request.model), request_id=request.request_id
                )
            yield BatchAnswer(custom_id=custom_id, outcome=outcome)

    async def cancel(self, _batch_id: str, /) -> None:
        """Do nothing: it is over."""
