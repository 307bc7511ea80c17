"""MockLLMGateway: the real gateway over scripted answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_gateway.config import GatewayConfig, LogSettings, ProviderBatchSettings, load_config, of_type
from llm_gateway.errors import ConfigurationError
from llm_gateway.events import Observer
from llm_gateway.gateway import LLMGateway
from llm_gateway.mock_gateway.calls import CallAssertions, Ledger
from llm_gateway.mock_gateway.chaos import Chaos, Weather, load_chaos
from llm_gateway.mock_gateway.responses import load_responses
from llm_gateway.mock_gateway.scripted import Replies, Script, ScriptedClients
from llm_gateway.mock_gateway.skipping import SkippingClock

if TYPE_CHECKING:
    from llm_gateway.clients.base import ClientFactory


class MockLLMGateway(CallAssertions, LLMGateway):
    """LLMGateway over scripted answers, for tests: queue, batches, retries, statistics and receipts are the real ones.

    `responses` is a JSON file of rules (`mock_responses.schema.json` in the package describes it) or a mapping of the
    same shape; left out, every answer is made up. The first rule that fits a call answers it; where none does and the
    file has no default, the request fails with UnmatchedRequestError, which names the nearest rule. The same seed and
    the same requests give the same answers and the same pauses before retries; a `seed` in the configuration goes
    first for the pauses.

    No key, no network and no provider's package is needed. The journal is off unless the configuration has a `logs`
    section, and a `[cache]` keeps its answers in memory. With `skip_waits` nothing takes real time: latencies, pauses
    before retries and deadlines keep their order and stand in receipts as scripted, but the gateway's clock jumps over
    them. It jumps as soon as all tasks wait, also for a file or a socket of their own; for tests of cancelling by
    `asyncio.wait_for`, which has a clock of its own, leave it off.

    `chaos` lets the provider fail by a seed: `Chaos`, or a mapping of the same keys. What it does to a call stands in
    `calls` under the rule "chaos".

    Raises ConfigurationError for a malformed configuration, file or chaos.
    """

    _careful = False  # there is nobody to spare

    def __init__(
        self,
        config: Mapping[str, Any] | GatewayConfig | None = None,
        *,
        responses: Path | str | Mapping[str, Any] | None = None,
        seed: int = 0,
        skip_waits: bool = False,
        chaos: Chaos | Mapping[str, Any] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        """Take the configuration as the real gateway does, and the answers."""
        self._script: Replies = Script(load_responses(responses))
        loaded = load_chaos(chaos)
        self._weather = None if loaded is None else Weather(loaded)
        self._ledger = Ledger()
        self.calls = self._ledger.calls
        self._seed = seed
        self._skip_waits = skip_waits
        super().__init__(_quiet(config, seed), observers=(self._ledger, *observers))

    def reset(self) -> None:
        """Forget the calls and begin every sequence, the chaos and the pauses' chance anew.

        Statistics and journal go on.
        """
        self._ledger.clear()
        self._script.rewind()
        if self._weather is not None:
            self._weather.clear_up()
        self._rng.seed(self._config.seed)

    def _connect(self) -> ClientFactory:
        return self._scripted()

    def _scripted(self) -> ScriptedClients:
        if self._skip_waits:
            self._clock = SkippingClock()  # it belongs to one loop, as the clients do
        return ScriptedClients(self._script, self._ledger, seed=self._seed, clock=self._clock, weather=self._weather)


def _quiet(config: Mapping[str, Any] | GatewayConfig | None, seed: int) -> GatewayConfig:
    """Return the configuration with the mock's own defaults."""
    if isinstance(config, str | PathLike):
        raise ConfigurationError(f"The configuration is {of_type(config)}, not a dict; give the answers as responses=…")
    loaded = config if isinstance(config, GatewayConfig) else load_config({} if config is None else config)
    changes: dict[str, Any] = {}
    if "logs" not in loaded.model_fields_set:
        changes["logs"] = LogSettings(dir=False)
    if loaded.cache is not None:  # a scripted answer must never be found by a real gateway, nor the other way round
        changes["cache"] = loaded.cache.model_copy(update={"store": "memory"})
    if "provider_batches" not in loaded.model_fields_set:  # there is nobody to be patient with
        changes["provider_batches"] = ProviderBatchSettings(max_wait=0.01, poll=0.01)
    if loaded.seed is None:
        changes["seed"] = seed
    return loaded.model_copy(update=changes)
