"""A provider with true limits, in the loop's own time: it refuses what comes too fast and books every call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.hints import limits_told, retry_after
from llm_gateway.config import Charge, LimitSettings
from llm_gateway.errors import (
    IncompleteResponseError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitError,
)
from llm_gateway.limits import charge_of
from llm_gateway.models import LLMRequest, StreamDelta, TextDelta, TokenUsage
from llm_gateway.simulation.dialects import DIALECTS, hint, silent
from llm_gateway.simulation.enforcement import LimitKey, Meter
from llm_gateway.simulation.troubles import Acceleration, Accelerometer, Trouble, TroubleKind
from llm_gateway.simulation.work import RandomWork, Work

ANSWER = "ok"
SHORTEST = 1e-6  # seconds of an answer; it is produced at some speed
RAMP_PAUSE = 1.0  # seconds after which calls that came too suddenly may come again
REFUSALS: Mapping[TroubleKind, tuple[int, type[ProviderError]]] = {
    "rate_limit": (429, RateLimitError),
    "overloaded": (529, ProviderOverloadedError),
    "unavailable": (503, ProviderUnavailableError),
}


@dataclass(slots=True, kw_only=True)
class Call:
    """One call in the provider's ledger. Instants in seconds of the loop."""

    request: LLMRequest
    model: str  # as the configuration calls it
    deployment: str  # "provider/model id"
    account: str  # the section of [providers]
    began: float
    ended: float | None = None
    status: int = 0  # of the HTTP answer; 0 while under way, after a cancel, and where no answer came
    error: str | None = None  # the error's kind
    charged: dict[LimitKey, float] = field(default_factory=dict)  # when it was let in; empty if it was not
    produced: dict[LimitKey, float] = field(default_factory=dict)  # charged on top while it was answered
    usage: TokenUsage | None = None  # of a whole answer


@dataclass(slots=True, kw_only=True)
class SimulatedProvider:
    """A ClientFactory for `LLMGateway`: its clients answer in the loop's own time, and keep true limits.

    `limits` hold for each model by itself; without them those hold that the configuration states for the model.
    `accounts` are limits of a section of [providers], shared by its models. A limit whose `charge` is "admission_max"
    counts the larger of input and `max_tokens` when a call begins, and is never trued up; "actual" counts the input
    when it begins and the output as it is produced. Default: as providers of that kind do. `work` says what a call
    asks for. Everything that is drawn comes from `seed`, in the order of the calls.
    """

    limits: LimitSettings | None = None
    accounts: Mapping[str, LimitSettings] = field(default_factory=dict)
    work: Callable[[LLMRequest, Random], Work] = field(default_factory=RandomWork)
    troubles: Sequence[Trouble] = ()
    acceleration: Acceleration | None = None
    hints: bool = True  # a 429 says when to come back
    headers: bool = True  # answers of OpenAI and Anthropic tell where the limits stand
    charges_refused: bool = False  # a 429 also counts as a request
    refusal_latency: float = 0.02
    seed: int = 0
    ledger: list[Call] = field(default_factory=list)
    meters: dict[str, Meter] = field(default_factory=dict)  # by "provider/model id", and by account
    deployments: list[Deployment] = field(default_factory=list)  # those connected
    rng: Random = field(init=False)
    _ramps: dict[str, Accelerometer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the chance anew."""
        self.rng = Random(self.seed)  # noqa: S311 - a simulation's chance is no secret

    # --- the seam ---------------------------------------------------------------------------------------------

    def connect(self, deployment: Deployment, /) -> SimulatedClient:
        """Return a client; deployments of one model at one account share its limits."""
        now = asyncio.get_running_loop().time()
        limits = self.limits or deployment.settings.limits or LimitSettings()
        own = self.meters.setdefault(deployment.label, Meter(_charged(limits, deployment), now))
        meters = [own]
        account = self.accounts.get(deployment.endpoint.name)
        if account is not None:
            meters.append(self.meters.setdefault(deployment.endpoint.name, Meter(_charged(account, deployment), now)))
        ramp = self._ramps.setdefault(deployment.label, Accelerometer(self.acceleration)) if self.acceleration else None
        self.deployments.append(deployment)
        return SimulatedClient(self, deployment, meters, ramp)

    async def aclose(self) -> None:
        """Nothing is shared that could be closed."""

    def abandon(self) -> None:
        """Nothing is shared that could be let go."""

    # --- looking and changing ---------------------------------------------------------------------------------

    def change(self, limits: LimitSettings) -> None:
        """Enforce other limits on every model from now on; their buckets begin empty."""
        self.limits = limits
        now = asyncio.get_running_loop().time()
        for name, meter in self.meters.items():
            if name not in self.accounts:
                charge = limits.charge or meter.limits.charge
                meter.change(limits.model_copy(update={"charge": charge}), now)

    def count(self, status: int, *, since: float = 0.0, until: float = math.inf) -> int:
        """How many calls that began in that time had `status`."""
        return sum(call.status == status for call in self.ledger if since <= call.began < until)

    def used(self, key: LimitKey, *, since: float = 0.0, until: float = math.inf) -> float:
        """What the calls that were let in during that time were charged when they began."""
        return sum(call.charged.get(key, 0.0) for call in self.ledger if since <= call.began < until)


class SimulatedClient:
    """The ChatClient of one deployment of a SimulatedProvider."""

    def __init__(
        self, provider: SimulatedProvider, deployment: Deployment, meters: Sequence[Meter], ramp: Accelerometer | None
    ) -> None:
        self._provider = provider
        self._deployment = deployment
        self._meters = meters
        self._ramp = ramp
        self._kind = deployment.endpoint.kind

    def check(self, _request: LLMRequest, /) -> None:
        """Refuse nothing."""

    async def aclose(self) -> None:
        """Close nothing."""

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Make one call, and book it however it ends."""
        now = asyncio.get_running_loop().time
        endpoint = self._deployment.endpoint
        call = Call(
            request=request,
            model=self._deployment.name,
            deployment=self._deployment.label,
            account=endpoint.name,
            began=now(),
        )
        self._provider.ledger.append(call)
        try:
            return await self._answer(call)
        except ProviderError as error:
            call.status, call.error = error.status or 0, error.kind
            raise
        finally:
            call.ended = now()

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Make one call whose answer comes in one piece."""
        completion = await self.generate(request)
        yield TextDelta(completion.content)
        yield completion

    async def _answer(self, call: Call) -> Completion:
        provider, work = self._provider, self._provider.work(call.request, self._provider.rng)
        trouble = self._trouble(call)
        kind = None if trouble is None else trouble.kind
        if trouble is not None and trouble.kind in REFUSALS:
            raise await self._refusal(trouble.kind, trouble.hint)
        wait = self._admit(call, work)
        if wait > 0:
            raise await self._refusal("rate_limit", wait if provider.hints and wait < math.inf else None)
        output, seconds = self._size(call, work)
        if trouble is not None and trouble.kind == "slow":
            seconds *= trouble.factor
        endpoint = self._deployment.endpoint
        patience = min(endpoint.timeout, endpoint.total_timeout or math.inf)
        if seconds > patience or kind == "timeout":
            # An answer that is too slow is produced meanwhile; one that never comes is not.
            await self._produce(call, output if seconds > patience else 0, max(seconds, patience), until=patience)
            raise self._error(ProviderTimeoutError, None, f"no answer within {patience:g} s")
        if kind == "truncated":
            await self._produce(call, output, seconds, until=provider.rng.random() * seconds)
            raise self._error(IncompleteResponseError, 200, "the answer broke off")
        await self._produce(call, output, seconds, until=seconds)
        call.status = 200
        call.usage = TokenUsage(input_tokens=work.input_tokens, output_tokens=output)
        return Completion(
            content=ANSWER,
            finish_reason="stop" if output == work.output_tokens else "length",
            usage=call.usage,
            headers=limits_told(self._standings()),
        )

    def _size(self, call: Call, work: Work) -> tuple[int, float]:
        """Return the tokens of an answer and its seconds; what `max_tokens` cuts off takes no time either."""
        limit = call.request.max_tokens or self._deployment.settings.max_tokens
        if limit is None or work.output_tokens <= limit:
            return work.output_tokens, max(SHORTEST, work.seconds)
        return limit, max(SHORTEST, work.seconds * limit / work.output_tokens)

    async def _produce(self, call: Call, output: int, seconds: float, *, until: float) -> None:
        """Produce an answer of `output` tokens in `seconds`, but break off after `until` of them.

        Where the use counts, tokens count as they are produced; also those of a call that is cancelled.
        """
        loop = asyncio.get_running_loop()
        began, speed = loop.time(), output / seconds
        counting = [meter for meter in self._meters if meter.limits.charge == "actual"]
        for meter in counting:
            meter.drain({"tpm": speed, "otpm": speed}, began)
        try:
            await asyncio.sleep(until)
        finally:
            for meter in counting:
                meter.drain({"tpm": -speed, "otpm": -speed}, loop.time())
            if counting:
                produced = speed * (loop.time() - began)
                call.produced = {"tpm": produced, "otpm": produced}

    def _trouble(self, call: Call) -> Trouble | None:
        """Return the first trouble that the call meets."""
        for trouble in self._provider.troubles:
            if trouble.meets(call.began, self._provider.rng.random()):
                return trouble
        return None

    def _admit(self, call: Call, work: Work) -> float:
        """Charge the call, or return the seconds until it would pass."""
        now = call.began
        if self._ramp is not None and self._ramp.refuses(now):
            return RAMP_PAUSE
        costs = [self._costs(meter, call, work) for meter in self._meters]
        wait = max(meter.wait(cost, now) for meter, cost in zip(self._meters, costs, strict=True))
        if wait > 0:
            if self._provider.charges_refused:
                for meter in self._meters:
                    meter.charge({"rpm": 1.0, "rpd": 1.0}, now)
            return wait
        for meter, cost in zip(self._meters, costs, strict=True):
            meter.charge(cost, now)
        call.charged = costs[0]
        if self._ramp is not None:
            self._ramp.admitted(now)
        return 0.0

    def _costs(self, meter: Meter, call: Call, work: Work) -> dict[LimitKey, float]:
        """Return what the call is charged when it begins."""
        tokens, output = float(work.input_tokens), 0.0
        both = tokens
        if meter.limits.charge == "admission_max":
            limit = call.request.max_tokens or self._deployment.settings.max_tokens
            output = float(limit or work.output_tokens)
            both = max(tokens, output) if limit else tokens + output
        return {"rpm": 1.0, "tpm": both, "itpm": tokens, "otpm": output, "rpd": 1.0}

    async def _refusal(self, kind: TroubleKind, wait: float | None) -> ProviderError:
        """Return the error of a call that was not let in, when that is known."""
        await asyncio.sleep(self._provider.refusal_latency)
        status, cls = REFUSALS[kind]
        headers = self._standings() if status == 429 else {}  # noqa: PLR2004 - Too Many Requests
        if wait is not None:
            headers |= hint(self._kind, wait)
        return self._error(cls, status, f"refused with {status}", headers)

    def _standings(self) -> dict[str, str]:
        if not self._provider.headers:
            return {}
        now = asyncio.get_running_loop().time()
        return DIALECTS.get(self._kind, silent)(self._meters[0].standings(now), now)

    def _error(
        self, cls: type[ProviderError], status: int | None, words: str, headers: Mapping[str, str] | None = None
    ) -> ProviderError:
        error = cls(
            f"Simulated {self._deployment.label}: {words}.",
            provider=self._deployment.endpoint.name,
            model=self._deployment.settings.model,
            status=status,
            retry_after=retry_after(headers or {}),
        )
        error.headers = limits_told(headers or {})
        return error


def _charged(limits: LimitSettings, deployment: Deployment) -> LimitSettings:
    """Return `limits` with the way of charging filled in."""
    charge: Charge = limits.charge or charge_of(deployment.endpoint.kind)
    return limits.model_copy(update={"charge": charge})
