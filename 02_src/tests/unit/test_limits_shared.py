"""Processes that share limits through a real Redis, in virtual time: fair, within the limit, and never stuck."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import fields

import pytest

from fakes.redis_limits import VirtualStore
from fakes.redis_server import RedisServer
from fakes.shared_members import CALL, Call, Ledger, Member
from llm_gateway.config import load_config
from llm_gateway.errors import ConfigurationError
from llm_gateway.limits import Standing, Wait
from llm_gateway.limits.learning import LearnedRate
from llm_gateway.limits.shared.pace import INSTANTS
from llm_gateway.tokens import Cost

START = 1_764_000_000.0  # of the server's clock; nothing has to do with the loop's, which starts at 0
RATE = {"rpm": 6000, "safety": 1.0}  # 100 a second
NO_SLOTS = 100_000
BARE = 3.0  # permits: the store begins with none, and whoever asks for all that come never lets its bucket fill


def spread(ledger: Ledger, members: int) -> list[int]:
    return [sum(call.member == number for call in ledger.calls) for number in range(members)]


class Team:
    """Members on one store."""

    def __init__(self, store: VirtualStore) -> None:
        self.store = store
        self.ledger = Ledger()
        self.members: list[Member] = []

    def join(self, count: int = 1, **options: object) -> list[Member]:
        options = {"max_concurrency": NO_SLOTS, "limits": RATE, **options}
        new = [Member(len(self.members) + each, self.store, self.ledger, **options) for each in range(count)]
        self.members += new
        return new

    def states(self) -> set[str]:
        return {member.state for member in self.members}


@pytest.fixture
async def team(redis_server: RedisServer) -> AsyncIterator[Team]:
    loop = asyncio.get_running_loop()
    store = VirtualStore(redis_server, lambda: START + loop.time())
    store.flush()
    store.takes = 0.001
    team = Team(store)
    yield team
    for member in team.members:
        member.kill()
        await member.paces.aclose()
    store.flush()
    store.close()


async def test_four_processes_together_use_the_whole_limit_and_no_more(team: Team) -> None:
    for member in team.join(4):
        member.flood(2000)
    await asyncio.sleep(6.0)
    assert team.ledger.excess(100.0, BARE) <= 1e-6
    assert team.ledger.between(1.0, 6.0) >= 0.99 * 500
    assert min(spread(team.ledger, 4)) >= 0.8 * 150


async def test_two_limits_hold_together_and_what_was_not_used_comes_back(team: Team) -> None:
    for member in team.join(3, limits={"rpm": 6000, "tpm": 120_000, "safety": 1.0}):
        member.flood(1000, Cost(1.0, 50.0, 50.0, 100.0), actual=Cost(1.0, 50.0, 0.0, 50.0), takes=0.2)
    await asyncio.sleep(6.0)
    # 2,000 tokens a second: 20 calls by what is reserved, 40 by what is used.
    assert 0.9 * 40 <= team.ledger.between(2.0, 6.0) / 4 <= 41


async def test_use_beyond_what_was_reserved_slows_everybody_down(team: Team) -> None:
    for member in team.join(2, limits={"tpm": 60_000, "safety": 1.0}):
        member.flood(1000, Cost(1.0, 50.0, 50.0, 100.0), actual=Cost(1.0, 50.0, 150.0, 200.0), takes=0.05)
    await asyncio.sleep(10.0)
    assert team.ledger.between(2.0, 10.0) / 8 == pytest.approx(5.0, rel=0.1)


async def test_idle_permits_go_to_whoever_wants_them(team: Team) -> None:
    busy, *_ = team.join(4)
    busy.flood(2000)
    await asyncio.sleep(4.0)
    assert team.ledger.between(1.0, 4.0) >= 0.98 * 300


async def test_a_large_call_is_not_starved_by_the_small_ones_of_others(team: Team) -> None:
    small, large = team.join(2, limits={"tpm": 60_000, "safety": 1.0})
    small.flood(5000, Cost(1.0, 10.0, 0.0, 10.0))
    await asyncio.sleep(1.0)
    large.flood(1, Cost(1.0, 5000.0, 0.0, 5000.0))
    await asyncio.sleep(2.0)
    began = [call for call in team.ledger.calls if call.member == 1]
    assert len(began) == 1
    assert team.ledger.excess(1000.0, 1000.0, column=3) <= 1e-6


async def test_a_user_who_waits_comes_before_the_background_of_other_processes(team: Team) -> None:
    background, user = team.join(2)
    background.flood(5000, low=True)
    await asyncio.sleep(2.0)
    for _ in range(10):
        await asyncio.sleep(0.2)
        user.flood(1, high=True)
    await asyncio.sleep(0.5)
    waits = [(call.began or 0.0) - call.since for call in team.ledger.calls if call.high]
    assert len(waits) == 10
    assert max(waits) <= 0.04  # four permits


async def test_background_work_leaves_a_part_of_the_day_to_the_others(team: Team) -> None:
    background, eager = team.join(2, limits={"rpm": 6000, "rpd": 100, "safety": 1.0})
    background.flood(200, low=True)
    await asyncio.sleep(5.0)
    assert len(team.ledger.calls) == 60
    outcome = background.pace.reserve(CALL, background.clock.now(), low=True)
    assert isinstance(outcome, Wait)
    assert outcome.only_low
    eager.flood(200)
    await asyncio.sleep(5.0)
    assert spread(team.ledger, 2) == [60, 40]


async def test_slots_are_shared_and_one_in_ten_is_for_users_who_wait(team: Team) -> None:
    first, second, user = team.join(3, max_concurrency=10, limits=None)
    for member in (first, second):
        member.flood(100, takes=1.0)
    await asyncio.sleep(0.5)
    assert first.under_way + second.under_way == 9
    user.flood(2, high=True, takes=1.0)
    await asyncio.sleep(0.2)
    assert user.under_way == 1
    await asyncio.sleep(10.0)
    assert min(spread(team.ledger, 2)) >= 30


async def test_a_killed_process_gives_its_slots_back_after_its_lease_and_no_permits_early(team: Team) -> None:
    killed, other = team.join(2, max_concurrency=4, limits={"rpm": 600, "safety": 1.0}, shared={"lease_seconds": 5.0})
    killed.flood(4, takes=1000.0)
    await asyncio.sleep(1.0)
    assert killed.under_way == 4
    killed.kill()
    other.flood(1000, takes=0.01)
    await asyncio.sleep(3.0)
    assert spread(team.ledger, 2) == [4, 0]
    await asyncio.sleep(4.0)
    assert spread(team.ledger, 2)[1] > 10
    assert team.ledger.excess(10.0, 10.0) <= 1e-6


async def test_what_killed_processes_may_have_spent_never_comes_back(team: Team) -> None:
    members = team.join(8, shared={"lease_seconds": 2.0})
    for member in members:
        member.flood(2000, takes=0.01)
    for member in members[:6]:
        await asyncio.sleep(0.731)
        member.kill()
    await asyncio.sleep(4.0)
    assert team.ledger.excess(100.0, BARE) <= 1e-6
    assert team.ledger.between(5.5, 8.0) >= 0.97 * 250


async def test_a_process_that_leaves_gives_back_at_once_what_it_holds(team: Team) -> None:
    leaving, other = team.join(2, max_concurrency=4)
    leaving.flood(4, takes=0.3)
    await asyncio.sleep(0.2)
    assert leaving.under_way == 4
    await leaving.paces.aclose()
    other.flood(4, takes=1.0)
    await asyncio.sleep(0.3)
    assert other.under_way == 4


async def test_a_refusal_shuts_the_gate_of_every_process(team: Team) -> None:
    refused, other = team.join(2)
    await asyncio.sleep(1.0)
    now = refused.clock.now()
    assert isinstance(refused.pace.reserve(CALL, now, high=True), Wait)
    await asyncio.sleep(0.1)
    grant = refused.pace.reserve(CALL, refused.clock.now(), high=True)
    assert not isinstance(grant, Wait)
    refused.pace.refused(grant, refused.clock.now(), hint=3.0, draw=0.0, standings={})
    shut = other.clock.now()
    await asyncio.sleep(0.01)
    other.flood(1000)
    await asyncio.sleep(5.0)
    first = other.ledger.calls[0].began or 0.0
    assert 3.0 <= first - shut <= 3.1
    assert other.ledger.between(shut + 3.0, shut + 4.0) <= 101  # at their rate, without a burst


async def test_a_limit_that_one_process_was_told_holds_for_all(team: Team) -> None:
    told, other = team.join(2, limits=None)
    await asyncio.sleep(0.1)
    told.pace.reserve(CALL, told.clock.now())
    await asyncio.sleep(0.1)
    grant = told.pace.reserve(CALL, told.clock.now())
    assert not isinstance(grant, Wait)
    told.pace.answered(grant, CALL, told.clock.now(), {"requests": Standing(600, 599, 0.1)})
    await asyncio.sleep(1.0)
    other.flood(1000)
    start = other.clock.now()
    await asyncio.sleep(5.0)
    assert other.ledger.between(start + 1.0, start + 5.0) == pytest.approx(0.97 * 40, abs=2)


async def test_the_limit_of_an_account_is_shared_by_processes_too(team: Team) -> None:
    for member in team.join(3, limits=None, account={"rpm": 3000, "safety": 1.0}):
        member.flood(1000)
    await asyncio.sleep(4.0)
    assert team.ledger.excess(50.0, BARE) <= 1e-6
    assert team.ledger.between(1.0, 4.0) >= 0.97 * 150


async def test_a_rate_that_is_learned_is_learned_by_all_together(team: Team) -> None:
    for member in team.join(3, limits={"safety": 1.0}):
        member.flood(5000)
    await asyncio.sleep(2.0)
    assert 3 <= team.ledger.between(0.0, 2.0) <= 8  # two a second to begin with, doubling in ten
    await asyncio.sleep(19.0)
    assert team.ledger.between(20.0, 21.0) == pytest.approx(8.0, abs=3)
    scales = [member.pace.paces[0].scale for member in team.members]
    assert max(scales) == pytest.approx(min(scales), rel=0.1)
    member = team.members[0]
    grant = member.pace.paces[0].limiter.free(member.clock.now() - 0.1)
    member.pace.refused((grant,), member.clock.now(), hint=None, draw=0.0, standings={})
    cut = member.pace.paces[0].scale
    await asyncio.sleep(1.5)
    assert all(each.pace.paces[0].scale == pytest.approx(cut, rel=0.05) for each in team.members)


async def test_a_store_that_was_emptied_admits_a_ramp_and_never_a_full_bucket(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    members = team.join(4)
    for member in members:
        member.flood(1)
    await asyncio.sleep(5.0)  # long enough for a full bucket
    team.store.flush()
    now = members[0].clock.now()
    for member in members:
        member.flood(2000)
    await asyncio.sleep(3.0)
    assert team.ledger.between(now, now + 0.5) <= 52
    assert team.ledger.between(now, now + 1.0) <= 102
    assert team.ledger.between(now + 1.0, now + 3.0) >= 196
    assert "emptied" in caplog.text


async def test_after_a_flush_no_more_of_the_day_is_there_than_before(team: Team) -> None:
    members = team.join(2, limits={"rpm": 6000, "rpd": 50, "safety": 1.0})
    members[0].flood(30)
    await asyncio.sleep(5.0)
    assert len(team.ledger.calls) == 30
    team.store.flush()
    members[1].flood(100)
    await asyncio.sleep(5.0)
    assert 45 <= len(team.ledger.calls) <= 51


@pytest.mark.parametrize("how", ["gone", "hangs"])
async def test_without_the_store_each_takes_its_part_and_all_return_when_it_is_back(
    team: Team, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = team.join(4, limits={"rpm": 1200, "safety": 1.0})  # 20 a second
    for member in members:
        member.flood(1000)
    await asyncio.sleep(4.0)
    setattr(team.store, how, True)
    await asyncio.sleep(6.0)
    assert team.states() == {"alone"}
    assert team.ledger.between(5.0, 10.0) == pytest.approx(100, abs=4)
    alone = spread(team.ledger, 4)
    assert caplog.text.count("does not answer") == 4
    setattr(team.store, how, False)
    await asyncio.sleep(6.0)
    assert team.states() == {"shared"}
    assert team.ledger.between(13.0, 16.0) >= 58
    assert team.ledger.excess(20.0, 20.0) <= 1e-6
    assert min(spread(team.ledger, 4)) > min(alone)


async def test_of_a_deep_bucket_nothing_is_spent_twice_when_the_store_goes(team: Team) -> None:
    members = team.join(4, limits={"rpm": 1200, "safety": 1.0, "burst_seconds": 10.0})
    for member in members:
        member.flood(1)
    await asyncio.sleep(15.0)  # long enough to fill it
    for member in members:
        member.flood(1000)
    await asyncio.sleep(5.0)
    assert team.ledger.between(15.0, 20.0) >= 290  # it is empty
    team.store.gone = True
    await asyncio.sleep(6.0)
    assert team.states() == {"alone"}
    assert team.ledger.excess(20.0, 200.0) <= 1e-6
    assert team.ledger.between(23.0, 26.0) == pytest.approx(60, abs=4)


async def test_while_the_store_is_gone_slots_are_divided_too(team: Team) -> None:
    members = team.join(2, max_concurrency=10, limits=None)
    await asyncio.sleep(1.5)
    team.store.gone = True
    await asyncio.sleep(5.0)
    for member in members:
        member.flood(100, takes=1.0)
    await asyncio.sleep(0.5)
    assert [member.under_way for member in members] == [5, 5]


async def test_a_store_that_was_never_reached_divides_by_the_configured_number(team: Team) -> None:
    team.store.gone = True
    (member,) = team.join(1, shared={"processes": 10})
    member.flood(1000)
    await asyncio.sleep(6.0)
    assert team.ledger.between(1.0, 6.0) == pytest.approx(50, abs=2)


async def test_a_slow_store_costs_time_and_no_permits(team: Team) -> None:
    team.store.takes = 0.2
    for member in team.join(4):
        member.flood(5000)
    await asyncio.sleep(10.0)
    assert team.states() == {"shared"}
    assert team.ledger.excess(100.0, 100.0) <= 1e-6
    assert team.ledger.between(2.0, 10.0) >= 0.5 * 800


async def test_a_bug_in_the_talk_is_heard_of_and_leaves_nobody_waiting(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(str(context["exception"])))
    (member,) = team.join(1)
    member.flood(1000)
    await asyncio.sleep(1.0)

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(team.store, "decide", broken)
    await asyncio.sleep(3.0)
    monkeypatch.undo()
    assert heard == ["planted"]
    assert team.ledger.between(2.0, 4.0) >= 190


async def test_a_local_clock_that_jumps_changes_no_shared_decision(team: Team) -> None:
    members = team.join(2)
    for member in members:
        member.flood(1000)
    await asyncio.sleep(2.0)
    jumping = members[0].pace.paces[0].limiter
    for jump in (3600.0, -3600.0):
        outcome = jumping.reserve(CALL, members[0].clock.now() + jump)
        assert isinstance(outcome, Wait)
    await asyncio.sleep(3.0)
    assert team.ledger.excess(100.0, BARE) <= 1e-6
    assert team.ledger.between(2.0, 5.0) >= 0.97 * 300


async def test_a_process_that_started_later_brings_its_newer_configuration(team: Team) -> None:
    team.join(1)
    await asyncio.sleep(1.0)
    team.members[0].kill()
    (newer,) = team.join(1, limits={"rpm": 600, "safety": 1.0})
    await asyncio.sleep(1.0)
    newer.flood(1000)
    start = newer.clock.now()
    await asyncio.sleep(6.0)
    assert team.ledger.between(start + 2.0, start + 6.0) == pytest.approx(40, abs=2)


async def test_a_call_that_was_never_sent_gives_its_permits_back(team: Team) -> None:
    (member,) = team.join(1, limits={"tpm": 6000, "safety": 1.0, "burst_seconds": 1.0})
    await asyncio.sleep(2.0)
    now = member.clock.now()
    cost = Cost(1.0, 60.0, 0.0, 60.0)
    member.pace.reserve(cost, now)
    await asyncio.sleep(0.1)
    for pause in (0.0, 1.0):  # while the share is valid, and later
        grant = member.pace.reserve(cost, member.clock.now())
        assert not isinstance(grant, Wait)
        await asyncio.sleep(pause)
        member.pace.refund(grant, member.clock.now())
        member.pace.refund(grant, member.clock.now())
    await asyncio.sleep(0.1)
    level = member.pace.snapshot(member.clock.now())["limits"]["tokens"]
    assert level["level"] == pytest.approx(100.0, abs=1.0)
    assert (level["reserved"], level["used"]) == (0.0, 0.0)


async def test_a_call_is_settled_once(team: Team) -> None:
    (member,) = team.join(1, limits={"tpm": 60_000, "safety": 1.0})
    limiter = member.pace.paces[0].limiter
    cost = Cost(1.0, 500.0, 500.0, 1000.0)
    while isinstance(begun := limiter.reserve(cost, member.clock.now()), Wait):  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # for the store's word
    for _ in range(3):
        limiter.settle(begun, Cost(1.0, 400.0, 200.0, 600.0), member.clock.now())
        limiter.refund(begun, member.clock.now())
        limiter.keep(begun)
    assert limiter.levels(member.clock.now())["tokens"].used == 600.0
    assert limiter.open == 0


async def test_the_key_names_neither_credential_nor_address(team: Team, redis_server: RedisServer) -> None:
    (member,) = team.join(1)
    await asyncio.sleep(0.1)
    assert member.state == "shared"
    with redis_server.client() as client:
        (key,) = client.keys("llm-gateway:*")
    assert key.startswith("llm-gateway:pace:{")
    assert key.endswith(":m}")
    assert "canary" not in key
    assert "example" not in key


async def test_nothing_is_logged_of_the_store_while_all_is_well(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_gateway")
    for member in team.join(2):
        member.add([Call(CALL, member.clock.now(), actual=CALL)])
    await asyncio.sleep(2.0)
    assert caplog.text == ""
    assert len(team.ledger.calls) == 2


async def test_what_happens_while_the_store_is_gone_is_told_when_it_is_back(team: Team) -> None:
    members = team.join(2, limits={"rpm": 6000, "rpd": 100, "safety": 1.0})
    alone, other = members
    await asyncio.sleep(2.5)
    team.store.gone = True
    await asyncio.sleep(4.0)
    now = alone.clock.now()
    grants = [alone.pace.reserve(CALL, now) for _ in range(12)]
    assert [type(grant) for grant in grants] == [tuple] * 12
    for grant in grants[:2]:
        assert not isinstance(grant, Wait)
        alone.pace.refund(grant, now)
        alone.pace.refund(grant, now)
    assert not isinstance(grants[2], Wait)
    alone.pace.answered(grants[2], CALL, now, {"requests": Standing(6000, 20.0, 0.1)})
    assert not isinstance(grants[3], Wait)
    alone.pace.refused(grants[3], now, hint=20.0, draw=0.0, standings={})
    await asyncio.sleep(1.0)
    team.store.gone = False
    await asyncio.sleep(4.0)
    assert team.states() == {"shared"}
    figures = other.pace.snapshot(other.clock.now())
    assert figures["gate"] == pytest.approx(15.0, abs=0.1)
    assert figures["limits"]["requests_per_day"]["level"] <= 88.5


async def test_permits_for_others_are_none_for_background_work(team: Team) -> None:
    (member,) = team.join(1, limits={"rpm": 6000, "rpd": 100, "safety": 1.0})
    await asyncio.sleep(2.0)
    member.flood(60)
    await asyncio.sleep(2.0)
    assert len(team.ledger.calls) == 60
    assert isinstance(member.pace.reserve(CALL, member.clock.now()), Wait)
    await asyncio.sleep(0.05)
    outcome = member.pace.reserve(CALL, member.clock.now(), low=True)
    assert isinstance(outcome, Wait)
    assert outcome.only_low
    assert not isinstance(member.pace.reserve(CALL, member.clock.now()), Wait)


def test_the_instants_of_a_learned_rate_are_known_to_the_view_of_it() -> None:
    instants = {each.name for each in fields(LearnedRate) if each.name.endswith("_at")} - {"grown_at"}  # a count
    assert instants == set(INSTANTS)


def test_an_address_that_is_none_is_refused_and_its_password_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.redis_url: no address of a Redis") as caught:
        load_config({"limits": {"redis_url": "http://:sk-canary-5555@host:6379"}})
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(load_config({"limits": {"redis_url": "redis://:sk-canary-5555@host:6379"}}))
