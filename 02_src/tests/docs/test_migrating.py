"""The program of the page on migrating that needs LiteLLM, which `make bench` installs in an environment of its own."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT

import pytest
from docs.pages import ROOT, blocks_of

from fakes.emulator import Emulator, Reply

PAGE = ROOT / "00_docs" / "how-to" / "migrating.md"
PYTHON = ROOT / ".venv-bench" / "litellm" / "bin" / "python"
ANSWER = "A line in which the first to come is the first to be served."


@pytest.mark.skipif(not PYTHON.exists(), reason="LiteLLM is not here; `make bench` installs it")
async def test_the_program_with_litellms_router_runs_as_it_stands(emulator: Emulator) -> None:
    (before,) = [block.text for block in blocks_of(PAGE) if block.title == "with_router.py"]
    emulator.script(Reply(text=ANSWER))
    address = {"OPENAI_BASE_URL": f"{emulator.url}/v1", "EU_BASE_URL": f"{emulator.url}/v1"}
    keys = dict.fromkeys(("OPENAI_API_KEY", "EU_API_KEY", "ANTHROPIC_API_KEY"), "sk-canary-0")
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-c", before, stdout=PIPE, stderr=STDOUT, env=os.environ | address | keys | offline | {"PYTHONPATH": ""}
    )
    told, _ = await process.communicate()
    assert told.decode().splitlines()[-1:] == [ANSWER], told.decode()
    assert len(emulator.ledger) == 1
