from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from docs.pages import LOCAL_MODEL, PAGES, ROOT, STORIES, Block, Story, blocks_of, matches
from typer.core import TyperGroup

from llm_gateway.cli.app import app
from llm_gateway.local_model import pull

LINK = re.compile(r"!?\[[^\]]*\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LANGUAGES = {"python", "bash", "toml", "json", "jsonl", "text", "mermaid"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_in(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", STORIES, ids=name_of)
async def test_a_page_does_what_it_says_when_its_blocks_run_from_top_to_bottom(
    page: Path, story: Story, request: pytest.FixtureRequest
) -> None:
    text = page.read_text(encoding="utf-8")
    if LOCAL_MODEL.search(text):
        pull("smollm2-135m", print)
    if "REDIS_URL" in text:
        story.redis_url = request.getfixturevalue("redis_server").url
    if "POSTGRES_URL" in text:
        story.postgres_url = request.getfixturevalue("postgres_server").url
    await story.play(page)
    assert len(story.done) == len(list(blocks_of(page)))


@pytest.mark.parametrize("block", blocks_in("bash"), ids=lambda block: block.where)
def test_every_command_exists_with_its_options(block: Block) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in block.commands:
        if program == "make":
            assert set(arguments) <= set(targets)
        elif program == "llm-gateway":
            parse(arguments)


def parse(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    if not arguments[0].startswith("-"):
        command = group.commands[arguments[0]]
        command.make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in {slug(heading) for heading in HEADING.findall(target.read_text(encoding="utf-8"))}


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_a_block_of_a_known_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = list(blocks_of(page))
    assert {block.language for block in blocks} <= LANGUAGES
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks)


def test_the_russian_page_has_the_blocks_of_the_english_first_screen() -> None:
    english, russian = ([block.text for block in blocks_of(ROOT / name)] for name in ("README.md", "README.ru.md"))
    assert russian == english[: len(russian)]
    assert len(russian) >= 2


def test_an_output_may_leave_parts_of_lines_and_whole_lines_out() -> None:
    assert matches("rows  …\nend", "rows  12\nend  \n")
    assert matches("…\nend", "end")
    assert matches("…\nend", "one\ntwo\nend")
    assert not matches("rows …\nend", "rows 1\nmore\nend")
    assert not matches("…\nend", "end\nmore")
