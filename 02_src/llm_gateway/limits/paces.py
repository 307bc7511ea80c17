"""The paces of a gateway's deployments: made when one is first used, shared where the limits are shared."""

from __future__ import annotations

from llm_gateway.clients.base import Deployment
from llm_gateway.clock import Clock
from llm_gateway.config import GatewayConfig, LimitSettings
from llm_gateway.limits.joint import JointPace
from llm_gateway.limits.pace import Pace
from llm_gateway.limits.settings import charge_of


class Paces:
    """Makes the pace of each deployment, inside the running loop.

    A model's own limits are its own; a provider's are those of its account, which all its models share.
    """

    def __init__(self, config: GatewayConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._accounts: dict[str, Pace] = {}

    def of(self, deployment: Deployment) -> JointPace:
        """Return the pace of a deployment: its model's own, and its account's if that has limits."""
        settings = deployment.settings
        own = Pace(
            settings.limits or LimitSettings(),
            (settings.limits and settings.limits.charge) or charge_of(deployment.endpoint.kind),
            now=self._clock.now(),
            name=f"model '{deployment.name}'",
            cautious=settings.limits is not None,
        )
        account = self._account(deployment)
        return JointPace([own] if account is None else [own, account])

    async def aclose(self) -> None:
        """Give back what other processes can use. Safe to call twice."""

    def _account(self, deployment: Deployment) -> Pace | None:
        endpoint = deployment.endpoint
        provider = self._config.providers.get(endpoint.name)
        if provider is None or provider.limits is None:
            return None
        pace = self._accounts.get(endpoint.name)
        if pace is None:
            pace = self._accounts[endpoint.name] = Pace(
                provider.limits,
                provider.limits.charge or charge_of(endpoint.kind),
                now=self._clock.now(),
                name=f"provider '{endpoint.name}'",
                cautious=False,
            )
        return pace
