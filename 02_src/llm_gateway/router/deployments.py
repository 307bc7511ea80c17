"""The configuration's models as deployments."""

from __future__ import annotations

from llm_gateway.clients.base import Deployment
from llm_gateway.config import GatewayConfig, ModelSettings, endpoint_of


class Deployments:
    """What serves each of the configuration's models; made when it is first asked for."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._made: dict[str, list[Deployment]] = {}

    def __getitem__(self, model: str) -> list[Deployment]:
        """Return what serves `model`, the model's own section first. Raises UnknownModelError."""
        made = self._made.get(model)
        if made is None:
            made = [self._deployment(model, each) for each in self._config.model(model).all_deployments()]
            # A key that is missing now may be there the next time.
            if all(each.endpoint.api_key or not each.endpoint.key_variable for each in made):
                self._made[model] = made
        return made

    def _deployment(self, model: str, settings: ModelSettings) -> Deployment:
        return Deployment(name=model, endpoint=endpoint_of(self._config, settings.provider), settings=settings)
