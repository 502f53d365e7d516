"""What the documentation shows works: code runs, commands exist, links lead somewhere."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.main import get_command

import nimbus_sd as nb
from nimbus_sd.cli import app, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {"_build", "generated", "tutorials"}  # folders that building the pages leaves
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "tutorials").glob("*.md"))]
    if not MADE.intersection(path.relative_to(DOCS).parts[:-1] if path.is_relative_to(DOCS) else ())
}
FENCE = r"^```{}\n(.*?)^```"
PROGRAM = get_command(app)
OTHERS = {
    *("pip", "export", "cd", "git", "mkdir"),
    *("npx", "snakemake", "nextflow", "sbatch", "jupytext", "jupyter"),
}
OF_EVERY_COMMAND = {"--help"}
OF_THE_PROGRAM = {"--help", "--version", "--install-completion", "--show-completion"}


def blocks(page, language):
    return re.findall(FENCE.format(language), PAGES[page], flags=re.DOTALL | re.MULTILINE)


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


def write_fields(folder):
    """The folders that the README's example reads: one TIFF per channel, one label image per field."""
    panel = ["CD3", "CD20", "CD68", "PanCK"]
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(192, 192), mpp=0.488, channels=panel)
    (folder / "segmentation").mkdir()
    for name in sdata.images:
        fov = name.removesuffix("_image")
        target = folder / "image_data" / fov
        target.mkdir(parents=True)
        image = sdata[name]
        for channel in image.coords["c"].values:
            tifffile.imwrite(target / f"{channel}.tiff", np.asarray(image.sel(c=channel)))
        tifffile.imwrite(
            folder / "segmentation" / f"{fov}_whole_cell.tiff", np.asarray(sdata[f"{fov}_labels"])
        )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", pages_with("python"))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if any("image_data" in block for block in blocks(page, "python")):
        write_fields(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)  # noqa: S102


def test_there_are_pages_with_code():
    assert {"README.md", "docs/howto/learn.md", "docs/concepts/model_cards.md"} <= set(pages_with("python"))
    assert {"README.md", "docs/contributing.md"} <= set(pages_with("bash"))


def commands(page):
    """Every command line of the page's shell blocks, split into words, comments left out."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\s>\s*\S+", "", line.removeprefix("$ ")), comments=True)
            start = 0
            for end in [*(i for i, w in enumerate(words) if w in ("&&", "|", ";")), len(words)]:
                if words[start:end]:
                    yield words[start:end]
                start = end + 1


@pytest.mark.parametrize("page", pages_with("bash"))
def test_shell_commands_exist(page):
    for words in commands(page):
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables before a command
            words = words[1:]
        program = Path(words[0]).name
        check = CHECKS.get(program)
        assert check or program in OTHERS, f"{page}: {' '.join(words)}"
        if check:
            check(words[1:])


def test_the_shell_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    write_fields(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    ran = []
    for words in commands("README.md"):
        # the review page runs until it is stopped, and has tests of its own
        if words[0] != "nimbus-sd" or words[1] == "review":
            continue
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capsys.readouterr().err
        ran.append(words[1])
    assert ran == ["convert", "predict", "predict", "cluster", "report"]
    assert (tmp_path / "report.html").stat().st_size > 0


def check_program(words):
    """The command exists, and so do its options; arguments are as many as it takes."""
    command, rest = PROGRAM, list(words)
    while hasattr(command, "commands"):
        if rest and rest[0] in OF_THE_PROGRAM:
            return
        assert rest, f"{words}: a command is missing"
        assert rest[0] in command.commands, f"{words}: no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    options = {n: p for p in command.params for n in (*p.opts, *p.secondary_opts) if n.startswith("-")}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    given = 0
    while rest:
        word, equals, _ = rest.pop(0).partition("=")
        if not word.startswith("-"):
            given += 1
        elif word not in OF_EVERY_COMMAND:
            assert word in options, f"{words}: no option {word}; there are {sorted(options)}"
            if not options[word].is_flag and not equals:
                assert rest, f"{words}: {word} needs a value"
                rest.pop(0)
    assert given >= sum(p.required for p in arguments), f"{words}: an argument is missing"
    assert given <= len(arguments) or any(p.nargs == -1 for p in arguments), f"{words}: too many arguments"


def check_python(words):
    if words and words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file(), words
    else:
        assert words[:1] == ["-m"], words
        tools = ("venv", "pip", "build", "sphinx", "pytest")
        assert words[1] in tools or importlib.util.find_spec(words[1]), words


def check_nox(words):
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = set()
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        calls = [d for d in function.decorator_list if isinstance(d, ast.Call)]
        named = [ast.literal_eval(k.value) for d in calls for k in d.keywords if k.arg == "name"]
        sessions.update(named or [function.name])
    for flag, name in pairwise(words):
        assert flag != "-s" or name in sessions, f"nox {words}: there are {sorted(sessions)}"


def check_pytest(words):
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"][
        "markers"
    ]
    known = {m.split(":")[0] for m in markers}
    for flag, value in pairwise(words):
        if flag == "-m":
            assert set(re.findall(r"\w+", value)) - {"not", "and", "or"} <= known, words
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word.split("::")[0]).exists(), words


CHECKS = {
    "nimbus-sd": check_program,
    "python": check_python,
    "python3": check_python,
    "nox": check_nox,
    "pytest": check_pytest,
}


@pytest.mark.parametrize(
    "line",
    [
        "nosuch",
        "predict",
        "predict a.zarr --nosuch",
        "predict a.zarr --mpp",
        "models a b c",
        "benchmark nosuch",
    ],
)
def test_the_check_of_commands_can_fail(line):
    with pytest.raises(AssertionError):
        check_program(line.split())


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    # a notebook lies beside the pages once they are built
    folder = DOCS / "tutorials" if page.startswith("tutorials/") else (ROOT / page).parent
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text):
        path = target.split("#")[0]
        if not path or re.match(r"[a-z]+:", path):
            continue
        found = (folder / path).resolve()
        if found.parent == DOCS / "tutorials":
            found = ROOT / "tutorials" / found.name
        if found.parent == DOCS / "api" / "generated":
            continue
        assert found.exists() or found.with_suffix(".md").exists(), f"{page}: {target}"


def test_no_page_has_a_blank_to_fill_in():
    blanks = [f"{page}: {m[0]}" for page, text in PAGES.items() for m in re.finditer(r"@[A-Z]{2,}@", text)]
    assert not blanks


def test_nothing_of_a_docstring_is_lost_on_its_page(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    convert = importlib.import_module("prose_docstrings").convert
    for thing in (nb.tl.predict, nb.tl.evaluate, nb.pp.Normalization, nb.app.ReviewServer, nb.pp.gate):
        before = inspect.getdoc(thing).splitlines()
        after = " ".join(convert(before, set(inspect.signature(thing).parameters)))
        words = Counter(w for line in before if not set(line) <= {"-"} for w in re.findall(r"\w+", line))
        missing = words - Counter(re.findall(r"\w+", after))
        assert not set(missing) - {"Parameters", "Attributes", "Returns", "Raises", "Also"}, missing
    lines = [
        "Do.",
        "",
        "Parameters",
        "----------",
        "a, b",
        "    Two.",
        "",
        "Returns",
        "-------",
        "None; writes",
        "",
        "- x",
    ]
    assert convert(lines) == [
        *("Do.", "", ""),
        *(":param a: (and `b`)", "    Two.", ":param b: See `a`."),
        *(":returns: None; writes", "", "    - x", ""),
    ]


def test_every_page_is_in_the_index():
    """Pages are reached from the index, or from a page that is."""
    seen, todo = set(), ["index"]
    while todo:
        page = todo.pop()
        seen.add(page)
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            lines = [x for x in toctree.splitlines() if x and not x.startswith((":", "tutorials/"))]
            todo += [(DOCS / page).parent.joinpath(x).relative_to(DOCS).as_posix() for x in lines]
    assert seen == {p.removeprefix("docs/").removesuffix(".md") for p in PAGES if p.startswith("docs/")}
