"""The laws of reserving, on any trace of calls, in memory and on a real Redis; and that both decide alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.redis_limits import DirectLimiter, VirtualStore
from fakes.redis_server import RedisServer
from llm_gateway.config import Charge, LimitSettings
from llm_gateway.errors import RequestTooLargeError
from llm_gateway.limits import Level, Limiter, MemoryLimiter, Reservation, Resource, Wait
from llm_gateway.limits.base import COLUMNS
from llm_gateway.tokens import Cost

Factory = Callable[[LimitSettings, Charge], Limiter]


def in_memory(given: LimitSettings, charge: Charge) -> Limiter:
    return MemoryLimiter(given, charge, now=0.0, name="model 'm'")


@pytest.fixture(scope="module")
def on_redis(redis_server: RedisServer) -> Iterator[Factory]:
    store = VirtualStore(redis_server, lambda: 0.0)
    yield lambda given, charge: DirectLimiter(store, given, charge)
    store.close()


@pytest.fixture(scope="module", params=["memory", "redis"])
def factory(request: pytest.FixtureRequest) -> Factory:
    if request.param == "memory":
        return in_memory
    found: Factory = request.getfixturevalue("on_redis")
    return found


SLACK = 1e-6  # of rounding, relative
MINUTE: dict[Resource, str] = {
    "requests": "rpm",
    "tokens": "tpm",
    "input_tokens": "itpm",
    "output_tokens": "otpm",
}

limits = st.builds(
    LimitSettings,
    rpm=st.none() | st.integers(1, 3000),
    tpm=st.none() | st.integers(1, 200_000),
    itpm=st.none() | st.integers(1, 100_000),
    otpm=st.none() | st.integers(1, 100_000),
    rpd=st.none() | st.integers(1, 50),
    burst_seconds=st.sampled_from([0.1, 1.0, 60.0]),
    safety=st.sampled_from([0.5, 0.97, 1.0]),
)
charges: st.SearchStrategy[Charge] = st.sampled_from(["actual", "admission_max"])
tokens = st.integers(0, 3000).map(float)
which = st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("advance"), st.floats(0, 0.5) | st.floats(0, 100) | st.just(-3.0)),
    st.tuples(st.just("reserve"), tokens, tokens),
    st.tuples(st.just("reserve"), tokens, tokens),
    st.tuples(st.just("wait"), tokens, tokens),
    st.tuples(st.just("low"), tokens, tokens),
    st.tuples(st.just("settle"), which, tokens, tokens),
    st.tuples(st.just("refund"), which),
    st.tuples(st.just("keep"), which),
)
traces = st.lists(steps, max_size=60)


def cost_of(tokens_in: float, tokens_out: float) -> Cost:
    return Cost(1.0, tokens_in, tokens_out, tokens_in + tokens_out)


@dataclass
class Call:
    """One admitted call, as the shadow keeps it."""

    at: float
    reservation: Reservation
    net: Cost  # what it costs from its start on, as far as is known
    debts: list[tuple[float, Cost]] = field(default_factory=list)
    over: bool = False


@dataclass
class Shadow:
    """The limiter under test, beside a book of what it let in."""

    limiter: Limiter
    given: LimitSettings
    charge: Charge
    now: float = 0.0
    calls: list[Call] = field(default_factory=list)

    def run(self, trace: list[tuple[object, ...]]) -> None:
        for step in trace:
            getattr(self, str(step[0]))(*step[1:])

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def low(self, tokens_in: float, tokens_out: float) -> Reservation | Wait | None:
        """A LOW call leaves its part in a deep bucket, or takes from a full one."""
        before = self.levels()
        outcome = self.reserve(tokens_in, tokens_out, low=True)
        if isinstance(outcome, Reservation):
            for resource, level in self.levels().items():
                deep = level.burst > 10 * level.rate
                if deep and outcome.cost[COLUMNS[resource]] > 0:
                    full = before[resource].level >= level.burst * (1 - SLACK)
                    assert full or level.level >= 0.4 * level.burst - SLACK * level.burst
        return outcome

    def reserve(self, tokens_in: float, tokens_out: float, *, low: bool = False) -> Reservation | Wait | None:
        cost = cost_of(tokens_in, tokens_out)
        before = self.levels()
        try:
            outcome = self.limiter.reserve(cost, self.now, low=low)
        except RequestTooLargeError:
            assert self.levels() == before
            assert any(cost[COLUMNS[each]] > (level.limit or 0) for each, level in before.items())
            return None
        if isinstance(outcome, Reservation):
            self.calls.append(Call(self.now, outcome, cost))
            return outcome
        assert outcome.seconds > 0
        after = self.levels()
        for resource, level in after.items():  # all or nothing: only the number of waits may differ
            was = before[resource]
            assert (level.level, level.reserved, level.used) == (was.level, was.reserved, was.used)
        assert self.limiter.binding(self.now) == outcome.resource
        return outcome

    def wait(self, tokens_in: float, tokens_out: float) -> None:
        """Come back when told: then it passes."""
        for _ in range(3):  # rounding may ask for a microsecond more
            outcome = self.reserve(tokens_in, tokens_out)
            if not isinstance(outcome, Wait):
                return
            self.now = max(self.now, self.latest()) + outcome.seconds
        raise AssertionError("the wait was too short")

    def latest(self) -> float:
        return max([call.at for call in self.calls] + [at for call in self.calls for at, _ in call.debts], default=0.0)

    def settle(self, index: int, tokens_in: float, tokens_out: float) -> None:
        self._end(index, cost_of(tokens_in, tokens_out))

    def refund(self, index: int) -> None:
        self._end(index, None)

    def keep(self, index: int) -> None:
        if self.calls:
            call = self.calls[index % len(self.calls)]
            self.limiter.keep(call.reservation)
            call.over = True

    def _end(self, index: int, actual: Cost | None) -> None:
        if not self.calls:
            return
        call = self.calls[index % len(self.calls)]
        before = self.levels()
        if actual is None:
            self.limiter.refund(call.reservation, self.now)
        else:
            self.limiter.settle(call.reservation, actual, self.now)
        if call.over:
            assert self.levels() == before  # twice equals once
            return
        call.over = True
        reserved = call.net
        if actual is None:
            call.net = Cost(0.0, 0.0, 0.0, 0.0)
        elif self.charge == "actual":
            call.net = Cost(*map(min, reserved, actual))
        if actual is not None:
            call.debts.append((self.now, Cost(*(max(0.0, a - r) for a, r in zip(actual, reserved, strict=True)))))

    def levels(self) -> dict[Resource, Level]:
        return self.limiter.levels(self.now)

    def level_if_exact(self, resource: Resource) -> float:
        """Replay the book from the start, each call at its final cost, its debt when it was settled."""
        level = self.limiter.levels(self.now)[resource]
        column = COLUMNS[resource]
        charged = [(call.at, call.net[column]) for call in self.calls]
        charged += [(at, debt[column]) for call in self.calls for at, debt in call.debts]
        permits, clock = level.burst, 0.0
        for at, amount in sorted(charged, key=lambda each: each[0]):
            permits = min(level.burst, permits + max(0.0, at - clock) * level.rate) - amount
            clock = max(clock, at)
        return min(level.burst, permits + max(0.0, self.now - clock) * level.rate)


@given(given_limits=limits, charge=charges, trace=traces)
@settings(max_examples=100)
def test_no_window_admits_more_than_its_rate_and_one_burst(
    factory: Factory, given_limits: LimitSettings, charge: Charge, trace: list[tuple[object, ...]]
) -> None:
    shadow = Shadow(factory(given_limits, charge), given_limits, charge)
    shadow.run([step for step in trace if step != ("advance", -3.0)])
    for resource, level in shadow.levels().items():
        column = COLUMNS[resource]
        for first, begin in enumerate(shadow.calls):
            total = largest = 0.0
            for call in shadow.calls[first:]:
                total += call.net[column]
                largest = max(largest, call.reservation.cost[column])
                window = call.at - begin.at
                assert total <= (level.rate * window + max(level.burst, largest)) * (1 + SLACK) + SLACK


@pytest.mark.parametrize("seed", range(10))
def test_of_a_limit_whose_share_is_found_while_it_is_used_no_window_admits_more_than_the_whole(seed: int) -> None:
    """Without `safety`, more of a limit of tokens is let through while calls are many, and less when they grow."""
    rng = Random(seed)
    per_second = rng.choice([500.0, 5000.0])
    shadow = Shadow(in_memory(LimitSettings(tpm=int(per_second * 60)), "actual"), LimitSettings(), "actual")
    size = per_second / 100
    shares = set()
    for number in range(800):
        if number % 200 == 100:
            size = per_second / rng.choice([4.0, 10.0, 18.0, 50.0, 200.0])
        spent = rng.uniform(0.5, 1.5) * size
        shadow.wait(size, 0.0)
        if rng.random() < 0.02:
            shadow.advance(rng.expovariate(1.0))
        shadow.now = max(shadow.now, shadow.latest())
        if rng.random() < 0.9:
            shadow.settle(rng.randrange(max(0, number - 5), number + 1), spent, 0.0)
        shares.add(round(shadow.levels()["tokens"].rate / per_second, 4))
    assert len(shares) == 2  # both were used
    calls = shadow.calls
    for first, begin in enumerate(calls):
        total = largest = 0.0
        for call in calls[first:]:
            total += call.net.tokens
            largest = max(largest, call.reservation.cost.tokens)
            assert total <= (per_second * (call.at - begin.at) + max(per_second, largest)) * (1 + SLACK)


@given(given_limits=limits, charge=charges, trace=traces)
@settings(max_examples=100)
@example(  # a refund that comes after the bucket was full again is lost
    given_limits=LimitSettings(tpm=6000, safety=1.0),
    charge="actual",
    trace=[("reserve", 100.0, 0.0), ("advance", 5.0), ("reserve", 100.0, 0.0), ("settle", 0, 0.0, 0.0)],
)
def test_the_level_is_never_above_that_of_a_bucket_charged_with_the_final_costs(
    factory: Factory, given_limits: LimitSettings, charge: Charge, trace: list[tuple[object, ...]]
) -> None:
    shadow = Shadow(factory(given_limits, charge), given_limits, charge)
    shadow.run([step for step in trace if step != ("advance", -3.0)])
    for resource, level in shadow.levels().items():
        assert level.level <= level.burst
        exact = shadow.level_if_exact(resource)
        assert level.level <= exact + SLACK * max(1.0, abs(exact), level.burst)


@given(given_limits=limits, charge=charges, trace=traces)
def test_at_quiescence_nothing_is_reserved(
    factory: Factory, given_limits: LimitSettings, charge: Charge, trace: list[tuple[object, ...]]
) -> None:
    shadow = Shadow(factory(given_limits, charge), given_limits, charge)
    shadow.run(trace)
    for index in range(len(shadow.calls)):
        shadow.keep(index)
    assert all(level.reserved == 0 for level in shadow.levels().values())


@given(rate=st.integers(60, 60_000), reserved=st.integers(1, 50), extra=st.integers(1, 5000))
def test_use_beyond_the_reservation_is_a_debt_that_the_next_call_waits_for(
    factory: Factory, rate: int, reserved: int, extra: int
) -> None:
    limiter = factory(LimitSettings(tpm=rate, safety=1.0), "actual")
    first = limiter.reserve(cost_of(float(reserved), 0.0), 0.0)
    assert isinstance(first, Reservation)
    limiter.settle(first, cost_of(float(reserved), float(extra)), 0.0)
    level = limiter.levels(0.0)["tokens"]
    assert level.level == pytest.approx(level.burst - reserved - extra)
    outcome = limiter.reserve(cost_of(1.0, 0.0), 0.0, high=True)
    need = min(1.0, level.burst)
    if level.level < need - 1e-6:
        assert isinstance(outcome, Wait)
        assert outcome.seconds == pytest.approx((need - level.level) * 60 / rate, abs=2e-6)


@given(limit=st.integers(1, 10_000), more=st.floats(1e-6, 1e300), key=st.sampled_from(list(MINUTE)))
def test_more_than_the_whole_limit_fails_at_once_and_changes_nothing(
    factory: Factory, limit: int, more: float, key: Resource
) -> None:
    limiter = factory(LimitSettings.model_validate({MINUTE[key]: limit}), "actual")
    amounts = [0.0] * len(Cost._fields)
    amounts[COLUMNS[key]] = limit + max(more, limit * 1e-9)
    before = limiter.levels(0.0)
    for attempt in (lambda: limiter.check(Cost(*amounts)), lambda: limiter.reserve(Cost(*amounts), 0.0)):
        with pytest.raises(RequestTooLargeError, match=f"limits.{MINUTE[key]}"):
            attempt()
    assert limiter.levels(0.0) == before
    amounts[COLUMNS[key]] = float(limit)
    limiter.check(Cost(*amounts))


@given(jumps=st.lists(st.floats(-1e12, 1e12), max_size=20), tokens_in=st.floats(0, 1e15))
def test_a_clock_that_jumps_never_fills_a_bucket_beyond_its_burst(
    factory: Factory, jumps: list[float], tokens_in: float
) -> None:
    limiter = factory(LimitSettings(tpm=10**15, rpm=60), "actual")
    now = 0.0
    for jump in jumps:
        now += jump
        limiter.reserve(cost_of(tokens_in, 0.0), now)
        for level in limiter.levels(now).values():
            assert level.level <= level.burst


def test_a_clock_that_jumps_back_adds_no_permits(factory: Factory) -> None:
    limiter = factory(LimitSettings(rpm=60, safety=1.0), "actual")
    assert isinstance(limiter.reserve(cost_of(0.0, 0.0), 3600.0), Reservation)
    assert isinstance(limiter.reserve(cost_of(0.0, 0.0), 0.0), Wait)
    assert isinstance(limiter.reserve(cost_of(0.0, 0.0), 3600.5), Wait)
    assert isinstance(limiter.reserve(cost_of(0.0, 0.0), 3601.0), Reservation)


@given(given_limits=limits, charge=charges, trace=traces)
@settings(max_examples=100)
def test_memory_and_redis_decide_alike_on_the_same_trace(
    on_redis: Factory, given_limits: LimitSettings, charge: Charge, trace: list[tuple[object, ...]]
) -> None:
    memory = Shadow(in_memory(given_limits, charge), given_limits, charge)
    redis = Shadow(on_redis(given_limits, charge), given_limits, charge)
    for step in trace:
        if step[0] == "wait":  # comes back as often as it has to
            continue
        ours, theirs = (getattr(each, str(step[0]))(*step[1:]) for each in (memory, redis))
        assert type(ours) is type(theirs)
        if isinstance(ours, Wait):
            assert theirs == (pytest.approx(ours.seconds, rel=1e-9), ours.resource, ours.only_low)
        for resource, level in memory.levels().items():
            assert redis.levels()[resource].level == pytest.approx(level.level, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_they_decide_alike_on_a_long_trace_near_the_end_of_every_bucket(on_redis: Factory, seed: int) -> None:
    """Costs are more than a fiftieth of a bucket: of those the limiter in memory keeps no permits for HIGH."""
    rng = Random(seed)
    charge: Charge = "admission_max" if seed == 1 else "actual"
    given_limits = LimitSettings(tpm=6000, rpd=40, safety=1.0, burst_seconds=rng.choice([1.0, 15.0]))
    memory = Shadow(in_memory(given_limits, charge), given_limits, charge)
    redis = Shadow(on_redis(given_limits, charge), given_limits, charge)
    whole = memory.levels()["tokens"].burst
    waits: set[tuple[str, bool]] = set()
    for _ in range(300):
        size = rng.uniform(0.03, 0.3) * whole
        step = rng.choices(
            [
                ("reserve", size, 0.0),
                ("low", size, 0.0),
                ("settle", rng.randrange(1000), rng.uniform(0.0, 1.5) * size, 0.0),
                ("refund", rng.randrange(1000)),
                ("advance", rng.expovariate(1000.0 / whole)),
                ("advance", 4000.0 * (rng.random() < 0.1)),
            ],
            [3, 2, 2, 2, 4, 1],
        )[0]
        ours, theirs = (getattr(each, str(step[0]))(*step[1:]) for each in (memory, redis))
        assert type(ours) is type(theirs)
        if isinstance(ours, Wait):
            waits.add((ours.resource, ours.only_low))
            assert theirs == (pytest.approx(ours.seconds, rel=1e-6), ours.resource, ours.only_low)
        for resource, level in memory.levels().items():
            assert redis.levels()[resource].level == pytest.approx(level.level, rel=1e-6, abs=1e-6)
    assert {("tokens", False), ("requests_per_day", True)} <= waits
