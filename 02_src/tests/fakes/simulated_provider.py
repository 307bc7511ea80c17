"""The simulated provider as tests of the pace want it: one model without a gateway, over the emulator's limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from fakes.emulator.limits import Limits
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.config import Charge, LimitSettings, ModelSettings, endpoint_of, load_config
from llm_gateway.errors import RateLimitError
from llm_gateway.models import LLMRequest
from llm_gateway.simulation import Acceleration, Call, Work
from llm_gateway.simulation import SimulatedProvider as Provider
from llm_gateway.simulation.provider import SimulatedClient

__all__ = ["Acceleration", "SimulatedProvider"]

CONFIG = load_config({"providers": {"simulated": {"kind": "openai"}}})
DEPLOYMENT = Deployment(
    name="m",
    endpoint=endpoint_of(CONFIG, "simulated", {}),
    settings=ModelSettings(provider="simulated", model="m"),
)

Size = Callable[[LLMRequest, Random], tuple[int, int]]  # input and output tokens


class SimulatedProvider:
    """`headers` are OpenAI's, and `heard` gets those of each answer and refusal."""

    def __init__(
        self,
        *,
        limits: Limits,
        charge: Charge = "actual",
        size: Size = lambda _request, _rng: (100, 50),
        headers: bool = False,
        **given: Any,
    ) -> None:
        self.charge = charge
        self.heard: Callable[[LLMRequest, Mapping[str, str]], None] = lambda _request, _headers: None
        self._client: SimulatedClient | None = None

        def work(request: LLMRequest, rng: Random) -> Work:
            tokens = size(request, rng)
            return Work(input_tokens=tokens[0], output_tokens=tokens[1], seconds=rng.uniform(0.05, 0.2))

        self._provider = Provider(limits=self._settings(limits), work=work, headers=headers, **given)

    @property
    def ledger(self) -> list[Call]:
        return self._provider.ledger

    async def generate(self, request: LLMRequest, /) -> Completion:
        if self._client is None:
            self._client = self._provider.connect(DEPLOYMENT)
        try:
            completion = await self._client.generate(request)
        except RateLimitError as error:
            self.heard(request, error.headers)
            raise
        self.heard(request, completion.headers)
        return completion

    def change(self, limits: Limits) -> None:
        self._provider.change(self._settings(limits))

    def count(self, status: int, *, since: float = 0.0, until: float = math.inf) -> int:
        return self._provider.count(status, since=since, until=until)

    def used(self, resource: str) -> float:
        return self._provider.used({"requests": "rpm", "tokens": "tpm"}[resource])  # type: ignore[arg-type]

    def _settings(self, limits: Limits) -> LimitSettings:
        return LimitSettings(
            rpm=None if limits.rpm is None else int(limits.rpm),
            tpm=None if limits.tpm is None else int(limits.tpm),
            itpm=None if limits.input_tpm is None else int(limits.input_tpm),
            otpm=None if limits.output_tpm is None else int(limits.output_tpm),
            burst_seconds=limits.burst_seconds,
            charge=self.charge,
        )
