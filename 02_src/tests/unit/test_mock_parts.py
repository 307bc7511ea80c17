"""Two parts of the mock on their own: examples of a JSON schema, and the clock that skips waiting."""

from __future__ import annotations

import asyncio
from datetime import date, datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import jsonschema
import pytest
from pydantic import AnyUrl, BaseModel, Field, TypeAdapter

from llm_gateway.clock import Clock
from llm_gateway.mock_gateway.examples import example_of
from llm_gateway.mock_gateway.skipping import SkippingClock

# --- examples of a schema -----------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Tree(BaseModel):
    label: str
    parent: Tree | None
    branches: list[Tree]
    leaf: Tree | int
    named: dict[str, Tree]


class Everything(BaseModel):
    flag: bool
    nothing: None
    whole: int
    positive: int = Field(gt=0)
    negative: float = Field(lt=-2.5)
    share: float = Field(gt=0, lt=1)
    between: int = Field(ge=5, le=7)
    below: int = Field(gt=-9, le=-3)
    long: str = Field(min_length=30, max_length=40)
    short: str = Field(max_length=2)
    two: list[str] = Field(min_length=2, max_length=2)
    none: list[int] = Field(max_length=0)
    pair: tuple[int, str]
    anything: Any
    anythings: list[Any]
    colour: Colour
    word: Literal["yes"]
    words: Literal["a", "b"]
    either: int | str
    day: date
    moment: datetime
    link: AnyUrl
    key: UUID
    tree: Tree
    with_default: int = 7


@pytest.mark.parametrize("kind", [Everything, Tree, list[Tree], dict[str, int], int, Colour], ids=str)
def test_an_example_fits_its_schema(kind: Any) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    example = example_of(schema)
    jsonschema.validate(example, schema)
    adapter.validate_python(example)
    assert example == example_of(schema)


def test_an_example_leaves_out_what_is_optional() -> None:
    assert "with_default" not in example_of(Everything.model_json_schema())


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["string", "null"]},
        {"type": "array"},
        {"oneOf": [{"type": "integer", "default": 3}, {"type": "string"}]},
        {"properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
        {"type": "array", "items": {"type": "array", "items": True}, "minItems": 3},
        {"type": "object", "properties": {"deep": {"type": "array", "items": {"$ref": "#"}}}, "required": ["deep"]},
    ],
    ids=str,
)
def test_schemas_that_people_write_have_examples_too(schema: dict[str, Any]) -> None:
    jsonschema.validate(example_of(schema), schema)


def test_a_schema_that_nothing_fits_ends() -> None:
    assert example_of({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}) is None


# --- the clock ----------------------------------------------------------------------------------------------------


def run(main: Any) -> Any:
    """Run on an ordinary loop."""
    return asyncio.run(main)


def test_sleepers_wake_in_the_order_of_their_instants() -> None:
    async def main() -> list[tuple[str, float]]:
        clock: Clock = SkippingClock()
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, *naps: float) -> None:
            for seconds in naps:
                await clock.sleep(seconds)
                woken.append((name, clock.now()))

        await asyncio.gather(sleeper("a", 50.0, 0.5), sleeper("b", 20.0, 40.0), sleeper("c", 50.0))
        return woken

    assert run(main()) == [("b", 20.0), ("a", 50.0), ("c", 50.0), ("a", 50.5), ("b", 60.0)]


def test_time_stands_still_while_tasks_work() -> None:
    async def main() -> float:
        clock = SkippingClock()
        sleeper = asyncio.create_task(clock.sleep(5.0))
        for _ in range(50):
            await asyncio.sleep(0)
        still = clock.now()
        await sleeper
        assert clock.now() == 5.0
        return still

    assert run(main()) == 0.0


def test_a_timeout_cancels_its_body_and_nothing_after_it() -> None:
    async def main() -> None:
        clock = SkippingClock()
        with pytest.raises(TimeoutError):
            async with clock.timeout(3.0):
                await clock.sleep(10.0)
        assert clock.now() == 3.0
        async with clock.timeout(5.0):
            await clock.sleep(1.0)
        async with clock.timeout(None):
            await clock.sleep(100.0)
        assert clock.now() == 104.0

    run(main())


def test_a_cancelled_alarm_does_not_ring_and_a_past_one_rings_now() -> None:
    async def main() -> tuple[list[str], float]:
        clock = SkippingClock()
        rung: list[str] = []
        await clock.sleep(10.0)
        clock.call_at(20.0, lambda: rung.append("cancelled")).cancel()
        clock.call_at(3.0, lambda: rung.append("past"))
        alarm = clock.call_at(11.0, lambda: rung.append("later"))
        sleeper = asyncio.create_task(clock.sleep(5.0))
        await asyncio.sleep(0)
        sleeper.cancel()
        await clock.sleep(30.0)
        alarm.cancel()
        return rung, clock.now()

    assert run(main()) == (["past", "later"], 40.0)
