"""Laws of the cache: which requests are the same, and that nobody gets what another one asked."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.provider import FakeProvider, Outcome, ask, gateway_over, unavailable
from fakes.virtual_time import run_virtual
from llm_gateway import GatewayError, LLMMessage, LLMRequest, LLMTool, RequestPriority
from llm_gateway.coalescing import fingerprint

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(st.text(max_size=2), VALUES)})
BLOCKS = st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=3)
MESSAGES = st.builds(
    LLMMessage, role=st.sampled_from(["system", "user"]), content=st.text(max_size=4) | st.lists(BLOCKS, max_size=2)
)
REQUESTS = st.builds(
    LLMRequest,
    model=st.sampled_from(["gpt-4o-mini", "claude-haiku"]),
    messages=st.lists(MESSAGES, min_size=1, max_size=2),
    tools=st.none()
    | st.builds(LLMTool, name=st.just("t"), description=st.text(max_size=2), input_schema=SCHEMAS).map(
        lambda tool: [tool]
    ),
    temperature=st.sampled_from([0.0, 0, 0.5, 1]),
    max_tokens=st.none() | st.integers(1, 3),
    stop=st.none() | st.lists(st.text(max_size=1), max_size=2),
    tool_choice=st.sampled_from([None, "auto", "none"]),
    response_format=st.none() | SCHEMAS,
    # What changes nothing:
    priority=st.sampled_from(list(RequestPriority)),
    agent=st.none() | st.text(max_size=2),
    deadline=st.none() | st.floats(1, 5),
    metadata=st.none() | st.dictionaries(st.text(max_size=2), st.integers()),
    cache=st.sampled_from([None, True, False]),
)
CHANGES_NOTHING = {"request_id", "priority", "agent", "deadline", "metadata", "cache"}


def told(request: LLMRequest) -> Any:
    """What a provider hears of a request, as JSON; lists of pairs in place of dicts, so that 1 is not True."""
    plain = request.model_dump(exclude=CHANGES_NOTHING, mode="json")
    return json.dumps(plain, sort_keys=True)


def shuffled(value: Any, rng: Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(each, rng)) for name, each in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(each, rng) for each in value] if isinstance(value, list) else value


@given(one=REQUESTS, two=REQUESTS)
@settings(max_examples=40)
def test_two_requests_have_one_key_if_and_only_if_a_provider_hears_the_same(one: LLMRequest, two: LLMRequest) -> None:
    assert (fingerprint(one) == fingerprint(two)) == (told(one) == told(two))


@given(request=REQUESTS, seed=st.integers(0, 99), changed=st.sampled_from(sorted(CHANGES_NOTHING - {"request_id"})))
@settings(max_examples=60)
def test_neither_the_order_of_keys_nor_who_asks_changes_the_key(request: LLMRequest, seed: int, changed: str) -> None:
    plain = shuffled(request.model_dump(), Random(seed))
    plain.pop(changed)
    plain.pop("request_id")
    assert fingerprint(LLMRequest(**plain)) == fingerprint(request) is not None


@given(
    request=REQUESTS,
    field=st.sampled_from(["model", "messages", "temperature", "max_tokens", "stop", "response_format"]),
)
@settings(max_examples=40)
def test_each_field_of_the_question_changes_the_key(request: LLMRequest, field: str) -> None:
    others = {
        "model": "local-llama",
        "messages": [*request.messages, LLMMessage(role="user", content="more")],
        "temperature": 1.5,
        "max_tokens": 77,
        "stop": ["end"],
        "response_format": {"type": "other"},
    }
    assert fingerprint(request.model_copy(update={field: others[field]})) != fingerprint(request)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=12)
def test_everybody_gets_the_answer_to_his_own_question_and_where_nothing_fails_it_is_paid_once(seed: int) -> None:
    rng = Random(seed)
    is_calm = seed % 2 == 0  # nobody leaves, nothing fails, and no stream makes a call of its own

    def answer(request: LLMRequest) -> Outcome:
        if not is_calm and rng.random() < 0.1:
            return unavailable()
        return f"{request.model}: {request.messages[0].content}"

    provider = FakeProvider(answer=answer, latency=lambda _: rng.choice([0.0, 0.2, 3.0]))

    async def caller(gateway: Any, number: int) -> None:
        await asyncio.sleep(rng.random() * 5)
        model, text = rng.choice(["gpt-4o-mini", "claude-haiku"]), f"{rng.randrange(5)}"
        asked = [ask(f"{number}", model=model, text=text)]
        left = not is_calm and rng.random() < 0.2
        try:
            async with asyncio.timeout(1.0 if left else None):
                way = rng.randrange(2 if is_calm else 3)
                if way == 0:
                    response = await gateway.request(asked[0])
                elif way == 1:
                    (response,) = await gateway.batch(asked)
                else:
                    response = [piece async for piece in gateway.stream(asked[0])][-1]
            assert response.content == f"{model}: {text}"
            assert response.request_id == f"{number}"
        except (GatewayError, TimeoutError):
            pass

    async def main() -> dict[str, Any]:
        cache = {"store": "memory", "max_entries": 100}
        async with gateway_over(provider, cache=cache, retry={"max_attempts": 2}, models=SLOTS) as gateway:
            await asyncio.gather(*(caller(gateway, number) for number in range(40)))
        return gateway.get_stats()

    stats = run_virtual(main(), seed=seed)
    assert stats["submitted"] == stats["completed"] + stats["failed"] + stats["cancelled"]
    assert stats["cached"] == stats["cache"]["hits"] > 0
    if is_calm:
        questions = {(entry.request.model, entry.request.messages[0].content) for entry in provider.ledger}
        assert len(provider.ledger) == len(questions) == stats["attempts"]


SLOTS = {"gpt-4o-mini": {"max_concurrency": 2}}
