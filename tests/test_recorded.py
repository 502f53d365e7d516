"""Benchmark outputs that the documentation shows: complete, and read as they were printed."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.txt"))
PAGES = [p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytest.importorskip("sphinx", reason="the group docs is not installed")
recorded = load(ROOT / "docs" / "_ext" / "recorded.py")
plain = load(ROOT / "benchmarks" / "_plain.py")


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_says_where_it_comes_from(path):
    about, blocks = recorded.read(path.stem)
    assert about.keys() >= {"command", "date", "commit", "machine"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["date"])
    script = re.search(r"benchmarks/(\w+)\.py", about["command"])
    if script:
        assert (ROOT / script[0]).is_file()
    else:
        assert about["command"].startswith("nimbus-sd benchmark ")
    assert any(isinstance(p, list) for block in blocks for p in recorded.pieces(block))
    assert "\x1b" not in path.read_text("utf-8")
    assert not re.search(r"(^|\s)/(root|tmp|home|work)/", path.read_text("utf-8"))


def test_every_record_that_a_page_shows_is_there_and_each_is_shown():
    text = "\n".join(p.read_text("utf-8") for p in PAGES)
    assert set(re.findall(r"^```\{recorded\} (\S+)$", text, re.MULTILINE)) == {p.stem for p in RECORDS}


WORDS = st.from_regex(r"[A-Za-z0-9.%<=-]{1,8}( [a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(st.data())
def test_printed_tables_are_read_back(data):
    head = data.draw(st.lists(WORDS, min_size=2, max_size=6, unique=True))
    rows = data.draw(st.lists(st.tuples(*[WORDS] * len(head)), min_size=1, max_size=6))
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda line, **_: printed.append(line))
        plain.table("a title", [dict(zip(head, row, strict=True)) for row in rows])
    lines = printed[1:]
    expected = [head, *map(list, rows)]
    found = recorded.cells(lines)
    assert found == expected


def test_text_around_a_table_stays_text():
    block = ["title (target: ≤ 1.25)", "  a    b", "  1  2.5", "  3   10", "  16 x the pixels: peak -13 %"]
    title, table, note = recorded.pieces(block)
    assert title == block[0]
    assert table == [["a", "b"], ["1", "2.5"], ["3", "10"]]
    assert note == block[-1]


def test_the_name_of_a_pandas_index_is_the_first_heading():
    assert recorded.cells(["kind    x   y", "name         ", "one   0.1  11", "two   0.2  12"]) == [
        ["name", "x", "y"],
        ["one", "0.1", "11"],
        ["two", "0.2", "12"],
    ]


def test_recording_keeps_the_old_record_when_a_run_fails(tmp_path):
    import subprocess

    (tmp_path / "record.py").write_bytes((ROOT / "benchmarks" / "record.py").read_bytes())
    (tmp_path / "good.py").write_text("print('\\n  a    b\\n  1  \\x1b[1m2.5\\x1b[0m')")
    (tmp_path / "bad.py").write_text("import sys; print('half'); sys.exit(3)")

    def run(*words):
        return subprocess.run(
            [sys.executable, tmp_path / "record.py", *words], capture_output=True, check=False
        )

    assert run("good").returncode == 0
    record = tmp_path / "results" / "good.txt"
    assert record.read_text("utf-8").endswith("\n\n  a    b\n  1  2.5\n")
    assert "# command: python benchmarks/good.py\n" in record.read_text("utf-8")
    assert run("bad", "--as", "good").returncode == 3
    assert run("nothing").returncode == 2
    assert [p.name for p in record.parent.iterdir()] == ["good.txt"]
    assert "half" not in record.read_text("utf-8")
