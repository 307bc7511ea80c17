"""How much of a true limit is used, and what is refused, in virtual time: `SimulatedProvider` enforces the limits."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import pytest

from fakes.emulator.limits import Limits
from fakes.provider import ask
from fakes.simulated_provider import Acceleration, SimulatedProvider
from llm_gateway.config import LimitSettings
from llm_gateway.errors import RateLimitError
from llm_gateway.limits import Pace, Reservation, Wait, read_standings
from llm_gateway.models import LLMRequest
from llm_gateway.tokens import Estimate, Estimator

pytestmark = pytest.mark.no_cover  # other tests cover every line that these run by the hundred thousand

Sizes = Callable[[LLMRequest, Random], tuple[int, int]]


@dataclass
class Load:
    """An endless backlog of requests before one provider, let in by a pace, `slots` at a time."""

    provider: SimulatedProvider
    pace: Pace
    slots: int = 64
    max_tokens: int | None = None
    text: str = "hello"
    estimator: Estimator = field(default_factory=Estimator)
    rng: Random = field(default_factory=lambda: Random(5))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        number = 0
        request = self._asked(number)
        while loop.time() < end:
            estimate = self.estimator.expected(request, self.pace.charge)
            outcome = self.pace.reserve(estimate.cost, loop.time())
            if isinstance(outcome, Wait) or len(self.tasks) >= self.slots:
                if isinstance(outcome, Reservation):
                    self.pace.refund(outcome, loop.time())
                self.freed.clear()
                pause = outcome.seconds if isinstance(outcome, Wait) else math.inf
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.freed.wait(), min(pause, end - loop.time()))
                continue
            task = asyncio.create_task(self._call(request, estimate, outcome))
            number += 1
            request = self._asked(number)
            self.tasks.add(task)
            task.add_done_callback(self._ended)
        await asyncio.gather(*self.tasks)

    def _asked(self, number: int) -> LLMRequest:
        return ask(f"r{number}", text=self.text, max_tokens=self.max_tokens)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.freed.set()

    async def _call(self, request: LLMRequest, estimate: Estimate, reservation: Reservation) -> None:
        now = asyncio.get_running_loop().time
        heard: dict[str, str] = {}

        def hear(of: LLMRequest, headers: Mapping[str, str]) -> None:
            if of is request:
                heard.update(headers)

        self.provider.heard = hear
        try:
            completion = await self.provider.generate(request)
        except RateLimitError as error:
            self.pace.refused(
                reservation, now(), hint=error.retry_after, draw=self.rng.random(), standings=read_standings(heard)
            )
            return
        assert completion.usage is not None
        self.estimator.learn(request, estimate, completion.usage)
        actual = self.estimator.charged(request, completion.usage, self.pace.charge)
        self.pace.answered(reservation, actual, now(), read_standings(heard))


def load(provider: SimulatedProvider, settings: LimitSettings | None = None, *, slots: int = 64) -> Load:
    pace = Pace(settings or LimitSettings(), provider.charge, now=0.0, name="model 'm'")
    return Load(provider, pace, slots=slots)


def sizes(spread: float) -> Sizes:
    """Answers of log-normal length, 150 tokens in the mean; prompts of 8."""
    return lambda _request, rng: (8, 1 + round(rng.lognormvariate(math.log(150) - spread * spread / 2, spread)))


def refused(provider: SimulatedProvider, since: float = 0.0, until: float = math.inf) -> float:
    """The share of calls that were refused."""
    bad = provider.count(429, since=since, until=until)
    return bad / (bad + provider.count(200, since=since, until=until))


async def test_a_known_limit_of_requests_is_used_to_97_percent_with_no_refusal() -> None:
    provider = SimulatedProvider(limits=Limits(rpm=6000))
    await load(provider, LimitSettings(rpm=6000)).run(30.0)
    assert provider.count(429) == 0
    assert provider.count(200) >= 0.97 * 30 * 100


async def test_a_known_limit_of_tokens_charged_at_admission_is_used_to_97_percent_with_no_refusal() -> None:
    provider = SimulatedProvider(limits=Limits(tpm=1_000_000), charge="admission_max")
    under = load(provider, LimitSettings(tpm=1_000_000))
    under.max_tokens = 200
    await under.run(30.0)
    assert provider.count(429) == 0
    assert provider.used("tokens") >= 0.97 * 30 * 1_000_000 / 60


@pytest.mark.parametrize("spread", [0.3, 0.8])
async def test_a_known_limit_of_tokens_charged_by_use_is_used_to_97_percent_with_no_refusal(spread: float) -> None:
    provider = SimulatedProvider(limits=Limits(tpm=1_000_000), size=sizes(spread))
    under = load(provider, LimitSettings(tpm=1_000_000))
    # The first answers teach how long they are; before, too much is reserved for each. What is measured after them is
    # without the first burst, so that it stays just below the share that is let through.
    await under.run(5.0)
    level = under.pace.limiter.levels(5.0)["tokens"].used
    await under.run(40.0)
    assert provider.count(429) == 0
    assert under.pace.limiter.levels(45.0)["tokens"].used - level >= 0.99 * 0.97 * 40 * 1_000_000 / 60


async def test_limits_that_headers_tell_are_used_from_the_first_answer_on() -> None:
    provider = SimulatedProvider(limits=Limits(rpm=6000), headers=True)
    under = load(provider)
    await under.run(20.0)
    assert refused(provider) == 0
    assert provider.count(200) >= 0.95 * 20 * 100
    assert under.pace.limiter.limit("requests") == 6000


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("burst", [1.0, 60.0])
async def test_an_unknown_limit_is_used_to_95_percent_after_a_minute_with_few_refusals(
    burst: float, *, hints: bool
) -> None:
    provider = SimulatedProvider(limits=Limits(rpm=3000, burst_seconds=burst), hints=hints)
    await load(provider).run(180.0)
    assert provider.count(200, since=60.0, until=180.0) >= 0.95 * 120 * 50
    assert refused(provider) <= 0.003


@pytest.mark.parametrize("known", [True, False])
async def test_after_the_limit_is_halved_the_pace_is_stable_within_a_minute(*, known: bool) -> None:
    provider = SimulatedProvider(limits=Limits(rpm=3000))
    under = load(provider, LimitSettings(rpm=3000) if known else None)
    await under.run(90.0)
    provider.change(Limits(rpm=1500))
    await under.run(150.0)
    assert provider.count(200, since=150.0, until=240.0) >= 0.95 * 90 * 25
    assert refused(provider, since=150.0) <= 0.003


async def test_a_provider_that_dislikes_sharp_ramps_is_followed_as_it_lets_more_through() -> None:
    provider = SimulatedProvider(limits=Limits(rpm=6000), acceleration=Acceleration(factor=3.0, floor=10))
    await load(provider, LimitSettings(rpm=6000)).run(240.0)
    assert provider.count(200, since=60.0, until=120.0) >= 0.9 * 60 * 10
    assert provider.count(200, since=180.0) > 1.2 * provider.count(200, since=60.0, until=120.0)
    assert refused(provider) <= 0.015


async def test_no_call_starts_before_the_hint_of_a_refusal() -> None:
    provider = SimulatedProvider(limits=Limits(rpm=600))
    await load(provider, LimitSettings(rpm=1200)).run(60.0)
    refusals = [entry for entry in provider.ledger if entry.status == 429]
    assert refusals
    for entry in refusals:
        assert entry.ended is not None
        opened = entry.ended + 0.001  # hints are whole milliseconds
        assert not [each for each in provider.ledger if entry.ended < each.began < opened]
