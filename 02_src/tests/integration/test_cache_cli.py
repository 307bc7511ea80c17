"""`llm-gateway cache`, in this process, after jobs that filled it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes.emulator_thread import emulator_in_a_thread
from fakes.redis_server import RedisServer
from llm_gateway.cli.app import app

CONFIG = Path("llm-gateway.toml")


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="llm-gateway", catch_exceptions=False)


def told(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_job_pays_for_each_question_once_and_the_cache_can_be_looked_at_pruned_and_cleared() -> None:
    with emulator_in_a_thread() as provider:
        CONFIG.write_text(
            f"[providers.openai]\nbase_url = '{provider.url}/v1'\napi_key = 'sk-canary-1'\n"
            "[cache]\npath = 'c/a.sqlite'\n"
        )
        lines = [json.dumps({"request_id": f"r{n}", "prompt": f"Question {n % 3}"}) for n in range(9)]
        Path("in.jsonl").write_text("\n".join(lines))
        for output in ("one.jsonl", "two.jsonl"):
            result = command("run", "in.jsonl", "-o", output, "-m", "gpt-4o-mini")
            assert result.exit_code == 0, result.output
        assert len(provider.ledger) == 3
    assert "calls 0 (0 retries): 0 paid" in told(result)
    assert "tokens 0 in, 0 out" in told(result)
    answers = [json.loads(line) for line in Path("two.jsonl").read_text().splitlines()]
    assert all(each["response"]["receipt"]["cached"] for each in answers)
    assert "answers 3 of 100,000 at most" in told(command("cache"))
    seen = json.loads(command("cache", "--json").output)
    assert (seen["cache"], seen["entries"], seen["ttl"]) == ("c/a.sqlite", 3, None)
    CONFIG.write_text('[cache]\npath = "c/a.sqlite"\nmax_entries = 2\nttl = 3600')
    assert "1 answer removed from the cache c/a.sqlite." in told(command("cache", "prune"))
    assert "2 answers removed" in told(command("cache", "clear"))
    assert "answers 0 of 2 at most" in told(command("cache"))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("", "The configuration has no section [cache], so no answer is kept; add one."),
        ("[cache]", "There is no cache llm-gateway-cache.sqlite yet; the first answer that is kept makes it."),
        ("[cache]\nstore = 'memory'", "The cache is in the memory of the process that asks, and ends with it."),
        ("[cache]\npath = 'llm-gateway.toml'", "The cache llm-gateway.toml cannot be used: file is not a database."),
        (
            "[cache]\nredis_url = 'redis://:sk-canary-2@127.0.0.1:1'",
            "The cache in Redis cannot be used: ConnectionError.",
        ),
    ],
    ids=["none", "no file", "memory", "another file", "no redis"],
)
@pytest.mark.parametrize("arguments", [(), ("clear",)], ids=["show", "clear"])
def test_what_cannot_be_looked_at_is_one_sentence(config: str, sentence: str, arguments: tuple[str, ...]) -> None:
    CONFIG.write_text(config)
    result = command("cache", *arguments)
    assert (result.exit_code, told(result)) == (2, f"llm-gateway: {sentence}")
    assert CONFIG.read_text() == config
    assert [each.name for each in Path().iterdir()] == [CONFIG.name]


def test_a_cache_in_redis_is_looked_at_and_cleared_too(redis_server: RedisServer) -> None:
    CONFIG.write_text(f"[limits]\nredis_url = '{redis_server.url}'\nprefix = 'cli'\n[cache]\n")
    assert "cache in Redis answers 0 of" in told(command("cache"))
    assert "0 answers removed from the cache in Redis." in told(command("cache", "clear"))
