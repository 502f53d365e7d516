"""Notebooks of the folder ``tutorials`` beside ``docs``, copied to where Sphinx finds them."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def copy(app: Sphinx, config: Config) -> None:
    """Copy what has changed and remove what is no more."""
    source, target = Path(app.srcdir).parent / "tutorials", Path(app.srcdir) / "tutorials"
    target.mkdir(exist_ok=True)
    pages = {page.name: page.read_text(encoding="utf-8") for page in source.glob("*.md")}
    for old in target.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        page = target / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", copy)
    return {"parallel_read_safe": True}
