"""Pages of documentation as stories: their blocks run from top to bottom in one empty folder, against a local emulator.

What a block's language says is what happens to it. `python` and `bash` run; `toml` must be a valid configuration, and
`json` and `jsonl` must parse. A block with `title="name"` is that file and is saved instead of run; `text` directly
after a block that ran is its output, in which `…` stands for anything (see `matches`). A bash block runs only where
each of its commands works offline; the commands of all others are at least parsed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from fakes.emulator import Call, Emulator, Reply, ToolCall
from llm_gateway.config import load_config

ROOT = Path(__file__).parents[3]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("00_docs/**/*.md")})
# CONTRIBUTING speaks of a checkout, not of an empty folder.
STORIES = [page for page in PAGES if page.parent.name != "reference" and page.name != "CONTRIBUTING.md"]

BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
OFFLINE = {"llm-gateway", "python", "pytest", "cat", "head", "tail", "ls", "true"}
LONGEST_BLOCK = 240.0  # seconds; a small model on a busy machine takes its time
LOCAL_MODEL = re.compile(r"smollm2-135m|llm-gateway pull")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    follows: bool  # it stands directly below the block before it, but for one line of words

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a bash block, each as its words; pipes and redirections cut."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in re.split(r"\s(?:\|{1,2}|>)\s", line.partition(" #")[0])]
        return [shlex.split(part) for part in parts if part.strip() and not part.startswith("#")]

    @property
    def is_offline(self) -> bool:
        return {words[0] for words in self.commands} <= OFFLINE


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    end = 0
    for found in BLOCK.finditer(text):
        between = text[end : found.start()]
        yield Block(
            page=page,
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"],
            title=found["title"],
            text=found["text"],
            follows=end > 0 and len(between.strip().splitlines()) <= 1,
        )
        end = found.end()


@dataclass
class Story:
    """A page that is being run."""

    folder: Path
    programs: Path  # what comes first on the PATH
    emulator: Emulator
    redis_url: str = ""
    postgres_url: str = ""
    ran: str | None = None  # the output of the block before, if it ran
    done: list[str] = field(default_factory=list)

    async def play(self, page: Path) -> None:
        """Run all blocks of `page`."""
        for block in blocks_of(page):
            output = await self.play_block(block)
            self.ran = output
            self.done.append(block.where)

    async def play_block(self, block: Block) -> str | None:
        """Run, save or check one block; return what it printed if it ran."""
        if block.language == "text" and self.ran is not None and block.follows:
            assert matches(block.text, self.ran), f"{block.where} is not what was printed:\n{self.ran}"
            return None
        if block.title is not None:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        check(block)
        if block.title is None and block.language == "python":
            script = self.folder / f"block_{block.line}.py"
            script.write_text(block.text, encoding="utf-8")
            return await self._run(block, str(self.programs / "python"), "-W", "error", script.name)
        if block.language == "bash" and block.is_offline:
            return await self._run(block, "bash", "-euc", block.text)
        return None

    async def _run(self, block: Block, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            told, _ = await asyncio.wait_for(process.communicate(), LONGEST_BLOCK)
        except TimeoutError:
            process.kill()
            told, _ = await process.communicate()
            pytest.fail(f"{block.where} did not end:\n{told.decode()}")
        output = told.decode()
        assert process.returncode == 0, f"{block.where} failed with {process.returncode}:\n{output}"
        return output

    def _environment(self) -> dict[str, str]:
        url = self.emulator.url
        return os.environ | {
            "PATH": os.pathsep.join((str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"])),
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "sk-of-the-emulator",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "sk-ant-of-the-emulator",
            "OLLAMA_HOST": url,
            "REDIS_URL": self.redis_url,
            "POSTGRES_URL": self.postgres_url,
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }


def check(block: Block) -> None:
    """Assert that a block of data is well formed; a configuration is also validated."""
    try:
        match block.language:
            case "toml":
                load_config(tomllib.loads(block.text))
            case "json":
                json.loads(block.text)
            case "jsonl":
                [orjson.loads(line) for line in block.text.splitlines()]
            case _:
                pass
    except ValueError as error:
        pytest.fail(f"{block.where}: {error}")


def matches(expected: str, printed: str) -> bool:
    """Whether `printed` is `expected`; in it `…` is any part of a line, and alone on a line any lines or none.

    Blanks at the ends of lines do not count.
    """
    pattern = ""
    for line in expected.strip().splitlines():
        part = r"[^\n]*".join(re.escape(each) for each in line.rstrip().split("…"))
        pattern += r"(?:[^\n]*\n)*?" if line.strip() == "…" else f"{part}\n"
    text = "".join(f"{line.rstrip()}\n" for line in printed.strip().splitlines())
    return re.fullmatch(pattern, text) is not None


ANSWERS = {
    "What is a queue?": "A line in which the first to come is the first to be served.",
    "What is a stack?": "A pile in which the last to come is the first to be served.",
    "What is a heap?": "A tree whose root is always the smallest.",
}


def provider(call: Call) -> Reply:
    """Answer as the pages tell it: some questions word for word, and a tool call where a weather tool is offered."""
    last = call.body["messages"][-1]
    result = tool_result(last)
    if result is not None:
        return Reply(text=f"It is {result}.")
    if call.body.get("tools"):
        return Reply(tool_calls=(ToolCall(name="get_weather", args={"city": "Oslo"}),))
    asked = str(last["content"])
    if asked.startswith("Sort this review"):
        return Reply(text=json.dumps({"label": "good" if "Great" in asked else "bad"}))
    return Reply(text=ANSWERS.get(asked, "That is a good question."))


def tool_result(message: dict[str, Any]) -> str | None:
    """Return what a tool said, as OpenAI (a role) or Anthropic (a block) has it; None for any other message."""
    if message["role"] == "tool":
        return str(message["content"])
    blocks = message["content"] if isinstance(message["content"], list) else []
    return next((str(block["content"]) for block in blocks if block["type"] == "tool_result"), None)
