"""Laws of the whole gateway under seeded storms in virtual time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from random import Random

import pytest

from fakes.provider import FakeProvider, Recorder, ask, gateway_over, rate_limited, refused_key, unavailable
from fakes.virtual_time import run_virtual
from llm_gateway import GatewayError, LLMGateway, LLMRequest, LLMResponse, RequestPriority, RequestRejectedError
from llm_gateway.batching import Lane, door
from llm_gateway.events import AttemptFailed, BatchClosed, Event, RequestDone, RequestQueued

STORMS = int(os.environ.get("LLM_GATEWAY_STORMS", "300"))
BLOCKS = 10  # that they are run in, so that processes can share them
PRIORITIES = list(RequestPriority)
LIMITS: list[dict[str, object]] = [
    {},
    {"limits": {"rpm": 300}},
    {"limits": {"tpm": 100_000, "rpm": 1200, "charge": "actual"}},
    {"limits": {"otpm": 50_000, "itpm": 50_000}},
    {"limits": {}},
]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Auditor:
    """An observer that looks at every budget whenever anything happens."""

    gateway: LLMGateway

    def __init__(self) -> None:
        self.broken: list[str] = []  # an observer's exception would only be logged

    def observe(self, event: Event, /) -> None:
        budgets = self.gateway._budgets
        for name, each in budgets.snapshot().items() if budgets else ():
            if each["spent"] + each["reserved"] > each["limit"] * (1 + 1e-9):
                self.broken.append(f"{name} after {event.name}: {each}")


class Storm:
    """Agents come, wait, leave and fail at random; the gateway may be shut down in the middle.

    The model may have several deployments, fallbacks and a budget, its callers may share calls, and some of the calls
    ask the gateway themselves.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.nests = rng.random() < 0.3
        self.provider = FakeProvider(
            answer=self.answer,
            latency=lambda _: rng.choice([0.0, rng.expovariate(1.0)]),
            work=self.work if self.nests else None,
        )
        self.seen = Recorder()
        self.auditor = Auditor()
        self.slots = rng.randint(1, 6)
        self.outcomes: dict[str, object] = {}
        self.lanes: list[Lane] = []
        self.coalesces = rng.random() < 0.3
        self.gateway = self.auditor.gateway = gateway_over(
            self.provider,
            observers=[self.seen, self.auditor],
            models=self.models(),
            batching={
                "max_batch_size": rng.randint(1, 5),
                "max_wait_ms": rng.choice([0, 500]),
                "max_queue_size": rng.randint(1, 20),
            },
            budgets=rng.choice([{}, {"total": rng.uniform(0, 900)}, {"each_agent": rng.uniform(0, 300)}]),
            coalesce=self.coalesces,
        )

    def models(self) -> dict[str, dict[str, object]]:
        rng = self.rng
        # The longest answer costs 50 dollars, the usual one 5.
        paid = {"price": {"input": 0, "output": 1_000_000}, "max_tokens": 50, "max_concurrency": self.slots}
        model = paid | rng.choice(LIMITS)
        if rng.random() < 0.4:
            model["deployments"] = [
                {"provider": "ollama", **rng.choice(LIMITS)},
                {"provider": "anthropic", "weight": 2},
            ]
        if rng.random() < 0.4:
            model["fallbacks"] = ["claude-haiku", "local-llama"]
        return {"gpt-4o-mini": model, "claude-haiku": paid, "local-llama": paid}

    def answer(self, _request: LLMRequest) -> Exception | None:
        draw = self.rng.random()
        if draw < 0.1:
            return rate_limited(self.rng.choice([None, self.rng.uniform(0, 3)]))
        if draw < 0.2:
            return unavailable()
        if draw < 0.22:
            return refused_key()
        if draw < 0.25:
            return RequestRejectedError("no", provider="fake", model="m", status=400)
        return ValueError("a bug") if draw < 0.251 else None

    async def work(self, request: LLMRequest) -> None:
        """Ask the gateway from inside a call; not deeper than twice."""
        if request.request_id.count("/") < 2 and self.rng.random() < 0.4:
            with suppress(GatewayError, ValueError):
                await self.gateway.request(self.asked(f"{request.request_id}/{self.rng.random()}", nested=True))

    def asked(self, name: str, *, deadline: float | None = None, nested: bool = False) -> LLMRequest:
        rng = self.rng
        return ask(
            name,
            None if nested else rng.choice(PRIORITIES),
            model=rng.choice(["gpt-4o-mini"] * 3 + ["claude-haiku"]),
            text=rng.choice(["hello", "good day", name]),
            deadline=deadline,
            agent=None if nested else rng.choice([None, "a", "b"]),
            temperature=rng.choice([0.0, 0.0, 1.0]),
        )

    async def arrive(self) -> None:
        """Come at some instant, or within the first few turns of the loop, when everything is on its way at once."""
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0, 10))
        else:
            await turns(self.rng.randint(0, 8))

    async def one(self, name: str) -> None:
        await self.arrive()
        deadline = self.rng.choice([None, self.rng.uniform(0.1, 5)])
        try:
            with self.gateway.on_behalf_of(self.asked("whoever")):
                self.outcomes[name] = await self.gateway.request(self.asked(name, deadline=deadline))
        except (GatewayError, ValueError) as error:
            self.outcomes[name] = error

    async def many(self, name: str) -> None:
        await self.arrive()
        asked = [self.asked(f"{name}.{n}") for n in range(self.rng.randint(1, 8))]
        try:
            outcomes = await self.gateway.batch(asked, return_exceptions=True)
            self.outcomes |= zip((each.request_id for each in asked), outcomes, strict=True)
        except GatewayError as error:
            self.outcomes[name] = error

    async def run(self) -> None:
        rng = self.rng
        agents = [self.one if rng.random() < 0.7 else self.many for _ in range(40)]
        callers = [asyncio.create_task(agent(str(n))) for n, agent in enumerate(agents)]
        for caller in rng.sample(callers, 8):
            asyncio.get_running_loop().call_later(rng.uniform(0, 12), caller.cancel)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(5, 30))
        else:
            await turns(rng.randint(0, 12))
        running = self.gateway._running
        closing = asyncio.create_task(self.gateway.shutdown(timeout=rng.choice([0.0, 1.0, 100.0])))
        if rng.random() < 0.3:
            await turns(rng.randint(0, 6))
            closing.cancel()
        await asyncio.wait([closing])
        await self.gateway.shutdown()  # waits for what a cancelled one left to do
        self.lanes = list(running.lanes.values()) if running else []  # those included that a fallback opened
        await asyncio.wait(callers)

    def check(self) -> None:
        stats, ledger, events = self.gateway.get_stats(), self.provider.ledger, self.seen.events
        assert (stats["in_flight"], sum(stats["queued"].values()), self.provider.under_way) == (0, 0, 0)
        if not self.nests:
            assert self.provider.most_under_way <= self.slots * 5  # of all deployments
        assert all(isinstance(each, LLMResponse | GatewayError | ValueError) for each in self.outcomes.values())
        queued = [event.request_id for event in events if isinstance(event, RequestQueued)]
        done = [event for event in events if isinstance(event, RequestDone)]
        assert len(set(queued)) == len(queued)
        assert sorted(queued) == sorted(event.request_id for event in done)  # each settled exactly once
        assert sum(event.attempt for event in done) == len(ledger)  # no call that the gateway does not know of
        refused = {"RateLimitError", "ProviderUnavailableError", "RequestRejectedError", "AuthenticationError"}
        failed = sum(isinstance(event, AttemptFailed) for event in events)
        assert failed == sum(entry.outcome in refused for entry in ledger)
        answered = {name for name, outcome in self.outcomes.items() if isinstance(outcome, LLMResponse)}
        if not self.coalesces:
            assert answered <= {entry.request.request_id for entry in ledger if entry.outcome == "answered"}
        # A request whose caller leaves after its batch closed is not sent.
        assert sum(event.size for event in events if isinstance(event, BatchClosed)) >= len(ledger)
        assert self.auditor.broken == []
        nothing_is_held(self.lanes)
        assert all(each["reserved"] == pytest.approx(0.0, abs=1e-9) for each in stats.get("budgets", {}).values())


def nothing_is_held(lanes: Iterable[Lane]) -> None:
    """No slot, permit, probe or place in a queue is left."""
    for lane in lanes:
        assert lane.is_idle
        assert [lane.depth(each) for each in PRIORITIES] == [0, 0, 0]
        for upstream in lane.upstreams:
            assert (upstream.in_flight, upstream.lent, upstream.breaker.probing) == (0, 0, False)
            assert sum(pace.limiter.open for pace in upstream.pace.paces) == 0


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_request_is_settled_exactly_once_and_every_call_is_on_record(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(block, STORMS, BLOCKS):
        monkeypatch.setattr(door, "AT_ONCE", (1, 3, 64)[seed % 3])
        try:
            storm = Storm(seed)
            run_virtual(storm.run(), seed=seed if seed % 2 else None, bugs=("a bug",))
            storm.check()
        except BaseException as error:
            error.add_note(f"storm of seed {seed}")
            raise


def test_a_storm_of_one_seed_always_goes_the_same_way() -> None:
    def trace() -> list[tuple[str, float]]:
        provider = FakeProvider(script=[unavailable(), rate_limited(), "ok", unavailable()])

        async def main() -> None:
            async with gateway_over(provider, models={"gpt-4o-mini": {"max_concurrency": 2}}) as gateway:
                await gateway.batch([ask(str(n), PRIORITIES[n % 3]) for n in range(9)])

        run_virtual(main())
        return [(entry.request.request_id, entry.began) for entry in provider.ledger]

    assert trace() == trace()


def test_nested_requests_finish_at_concurrency_one() -> None:
    async def main() -> str:
        async with gateway_over(FakeProvider(), models={"gpt-4o-mini": {"max_concurrency": 1}}) as gateway:

            async def agent(depth: int) -> str:
                answer = (await gateway.request(ask(f"before {depth}"))).content
                return answer + (await agent(depth - 1) if depth else "")

            return await agent(5)

    assert run_virtual(main()) == "ok" * 6
