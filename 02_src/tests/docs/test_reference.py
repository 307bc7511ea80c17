from __future__ import annotations

import runpy

import pytest
from docs.pages import ROOT

TOOL = runpy.run_path(str(ROOT / "02_src" / "tools" / "reference.py"))


@pytest.mark.parametrize("name", sorted(TOOL["PAGES"]))
def test_a_page_of_the_reference_is_what_the_code_says(name: str) -> None:
    written = (ROOT / "00_docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == TOOL["PAGES"][name](), "stale: run `.venv/bin/python 02_src/tools/reference.py`"


def test_no_other_page_is_in_the_reference() -> None:
    assert {page.name for page in (ROOT / "00_docs" / "reference").iterdir()} == TOOL["PAGES"].keys()
