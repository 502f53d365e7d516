"""Every tutorial runs from the first block to the last, on simulated tissue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_run(script, tmp_path):
    if "flowsom" in script.read_text(encoding="utf-8"):
        pytest.importorskip("flowsom", reason="the extra flowsom is not installed")
    # a program of its own, as users run it: libraries' warnings at import are not errors there
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert {"report.html", "map.png", "metaclusters.csv"} <= written or script.stem != "phenotypes"


def test_there_are_tutorials():
    assert "phenotypes" in {p.stem for p in TUTORIALS}
