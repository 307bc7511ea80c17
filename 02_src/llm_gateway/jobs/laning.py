"""Which price lane the rows of each model of a job go in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from llm_gateway.config import GatewayConfig, ModelSettings, ProviderSettings
from llm_gateway.errors import ConfigurationError
from llm_gateway.price_lanes import LaneChoice, PriceLane, chosen, offered, refusal


@dataclass(slots=True, kw_only=True)
class Laning:
    """Chooses a lane for each model once. A job may take its time, so that "auto" does not ask for LOW."""

    config: GatewayConfig
    lane: LaneChoice | None  # None: as configured for each model
    deadline: float | None  # seconds
    is_kept: bool  # the job has a state in which the batches of a provider can be kept
    told: Callable[[str], None]  # hears, in a sentence, of a lane that a model does not have
    _lanes: dict[str, PriceLane] = field(default_factory=dict)

    @property
    def is_needed(self) -> bool:
        """Whether any row may go in another lane than the standard one."""
        return self.lane is not None or any(model.lane != "standard" for model in self.config.models.values())

    def of_calls(self, model: str) -> PriceLane:
        """Return the lane of rows that are asked one by one, also where batches have the others."""
        return "flex" if self.of(model) == "flex" else "standard"

    def has_flex(self, model: str) -> bool:
        """Whether a model has the flex lane."""
        settings = self.config.model(str(getattr(model, "value", model)))
        return "flex" in offered(self._kind(settings), settings.model)

    def _kind(self, settings: ModelSettings) -> str:
        return self.config.providers.get(settings.provider, ProviderSettings()).kind or settings.provider

    def of(self, model: str) -> PriceLane:
        """Return the lane of a model. Raises ConfigurationError, UnknownModelError."""
        name = str(getattr(model, "value", model))
        if name not in self._lanes:
            self._lanes[name] = self._chosen(name)
        return self._lanes[name]

    def _chosen(self, model: str) -> PriceLane:
        settings = self.config.model(model)
        kind = self._kind(settings)
        choice = self.lane or settings.lane
        if (reason := refusal(choice, kind=kind, model=settings.model)) is not None:
            self.told(f"Model '{model}' is asked in the standard lane: {reason}")
            return "standard"
        patience = math.inf if self.deadline is None else self.deadline
        lane = chosen(choice, kind=kind, model=settings.model, is_low=True, patience=patience)
        if lane == "batch" and choice == "auto" and self._reason_against_batches() is not None:
            return "standard"
        if lane == "batch" and (reason := self._reason_against_batches()) is not None:
            raise ConfigurationError(reason)
        return lane

    def _reason_against_batches(self) -> str | None:
        if not self.is_kept:
            return (
                "The batch lane needs a job whose state is a file, in which the batches are kept: with pipes, without "
                "a path and in PostgreSQL use the lane 'flex' or 'standard'."
            )
        return None
