"""Every code block of the documentation runs, page by page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = {
    page.relative_to(DOCS).with_suffix("").as_posix(): BLOCK.findall(page.read_text(encoding="utf-8"))
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks])
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, object] = {}
    for block in PAGES[page]:
        exec(compile(block, f"docs/{page}.md", "exec"), names)  # noqa: S102


def test_there_are_pages_with_code():
    assert {"howto/learn", "concepts/model_cards"} <= {name for name, blocks in PAGES.items() if blocks}


def test_no_page_has_a_blank_to_fill_in():
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    blanks = [f"{p.name}: {m[0]}" for p in pages for m in re.finditer(r"@[A-Z]{2,}@", p.read_text("utf-8"))]
    assert not blanks
