"""What AskGateway does with each format in which Ray passes a batch: run by `run.py` where Ray is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from llm_gateway.integrations.ray import AskGateway

ROWS = 40
BLOCKS = 4
JOURNAL = Path("journal").absolute()
CONFIG = {"logs": {"dir": str(JOURNAL)}, "models": {"free": {"provider": "openai", "model": "no-price-is-known"}}}
TYPES = {"answer": "string", "error": "string", "cost": "double", "tokens": "int64"}
ROWS_OF: dict[str, Callable[[int], dict[str, Any]]] = {
    "prompt": lambda number: {"thing": "Refuse" if number == 7 else "queue"},
    "messages": lambda _number: {"talk": [{"role": "user", "content": "What is a queue?"}]},
    "request": lambda number: {
        "asked": json.dumps({"model": "free" if number % 2 else "gpt-4o-mini", "messages": ["no message"]})
        if number == 7
        else json.dumps({"messages": [{"role": "user", "content": "What is a queue?"}], "max_tokens": 9})
    },
}
ASKS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "What is a {thing}?", "model": "gpt-4o-mini"},
    "messages": {"messages": "talk", "model": "free"},
    "request": {"request": "asked", "model": "gpt-4o-mini"},
}


def check(asks: str, batch_format: str) -> None:
    """Ask a dataset, write it as Parquet, read it again, and look at every row."""
    rows = [{"number": number, **ROWS_OF[asks](number)} for number in range(ROWS)]
    asked = ray.data.from_items(rows, override_num_blocks=BLOCKS).map_batches(
        AskGateway,
        fn_constructor_kwargs={"config": CONFIG, **ASKS[asks]},
        batch_format=batch_format,
        batch_size=ROWS // BLOCKS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    folder = str(Path(f"{asks}-{batch_format}").absolute())
    asked.write_parquet(folder)
    found = ray.data.read_parquet(folder)
    schema = found.schema()
    types = dict(zip(schema.names, map(str, schema.types), strict=True))
    assert {name: types[name].removeprefix("large_") for name in TYPES} == TYPES, types
    told: list[Mapping[str, Any]] = found.take_all()
    assert sorted(row["number"] for row in told) == list(range(ROWS))
    for row in told:
        if row["number"] == 7 and asks != "messages":
            kind = "rejected" if asks == "prompt" else "invalid_request"
            assert row["error"].startswith(f"{kind}: "), row
            assert (row["answer"], row["cost"], row["tokens"]) == ("", 0.0, 0)
        else:
            assert row["answer"].startswith("A line in which"), row
            assert row["error"] == ""
            assert row["tokens"] > 0
            assert math.isnan(row["cost"]) if asks == "messages" else row["cost"] > 0


def main() -> None:
    """Check all, and that each actor wrote its journal before it went."""
    ray.init(num_cpus=2, include_dashboard=False)
    for asks, batch_format in (("prompt", "numpy"), ("messages", "pyarrow"), ("request", "pandas")):
        check(asks, batch_format)
    lines = [line for file in JOURNAL.rglob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    assert sum("request" in line for line in lines) >= ROWS * 3 - 2, len(lines)
    assert not any("sk-canary" in line for line in lines)


if __name__ == "__main__":
    main()
