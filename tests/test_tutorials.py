"""Tutorials are notebooks in Markdown that run, from the first cell to the last, on simulated tissue."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.md"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# a program of its own: libraries' warnings at import are no errors there, and the kernel's loop is its own
RUN = """
import sys, jupytext, nbformat
from nbclient import NotebookClient
source, target, folder = sys.argv[1:]
notebook = jupytext.read(source, fmt="md:myst")
where = {"metadata": {"path": folder}}
NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
nbformat.write(notebook, target)
"""

by_name = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)


@by_name
def test_a_tutorial_is_a_notebook_that_can_take_real_data(tutorial):
    text = tutorial.read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["jupytext"]["text_representation"]["format_name"] == "myst"
    assert facts["kernelspec"]["name"] == "python3"
    assert body.lstrip().startswith("# ")
    cells = CELL.findall(body)
    assert cells
    assert text.count("```{code-cell}") == len(cells), "a cell is not closed, or of another language"
    for cell in cells:
        compile(re.sub(r"\A(:.*\n)+", "", cell), str(tutorial), "exec")
    assert sum(bool(re.search(r"^DATA = ", cell, re.MULTILINE)) for cell in cells) == 1
    assert "NIMBUS_SD_TUTORIAL_DATA" in text
    assert re.search(r"^## Next", body, re.MULTILINE)


def test_every_tutorial_is_on_the_page_of_tutorials():
    page = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    names = {p.stem for p in TUTORIALS}
    assert set(re.findall(r"^:link: tutorials/(\w+)$", page, re.MULTILINE)) == names
    assert set(re.findall(r"^tutorials/(\w+)$", page, re.MULTILINE)) == names


@pytest.mark.tutorials
@by_name
def test_tutorials_run(tutorial, tmp_path):
    before = sorted(p.name for p in tutorial.parent.iterdir())
    folder, target = tmp_path / "here", tmp_path / "run.ipynb"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, tutorial, target, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in tutorial.parent.iterdir()) == before
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    said = [o["text"] for o in outputs if o.get("name") == "stderr"]
    assert not said, f"warnings in what readers see: {said}"
