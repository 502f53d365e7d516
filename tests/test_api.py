"""Conventions of the public functions: few positional parameters, whole docstrings, examples that run."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import operator
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import nimbus_sd as nb
from nimbus_sd import testing

ROOMS = ("pp", "tl", "pl", "io", "datasets", "models", "app")
SECTIONS = (
    "Parameters",
    "Returns",
    "Raises",
    "Warns",
    "References",
    "Examples",
    "Attributes",
    "Notes",
    "See Also",
)


def members(path):
    """Public things of a room; of a submodule that it hands on, the classes that are defined there."""
    module = operator.attrgetter(path)(nb)
    for name in getattr(module, "__all__", dir(module)):
        thing = getattr(module, name)
        if inspect.ismodule(thing) and path in ROOMS:
            yield from members(f"{path}.{name}")
        elif path in ROOMS or getattr(thing, "__module__", "") == module.__name__:
            yield f"{path}.{name}", thing


PUBLIC = dict(pair for room in ROOMS for pair in members(room))
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {name: c for name, c in PUBLIC.items() if inspect.isclass(c)}


def sections(thing):
    """Section title to body of a numpydoc docstring; the key "" holds the summary."""
    doc = inspect.getdoc(thing) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)})\n-+$", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(body):
    names = re.findall(r"^(\w[\w, *]*?)(?: :.*)?$", body, flags=re.MULTILINE)
    return {n.strip(" *") for line in names for n in line.split(",")}


def test_every_room_is_there_and_its_names_are_what_they_say():
    assert set(nb.__all__) == {*ROOMS, "__version__"}
    for room in ROOMS:
        module = getattr(nb, room)
        assert sorted(module.__all__) == dir(module)
        assert len(set(module.__all__)) == len(module.__all__)
    for name, thing in PUBLIC.items():
        assert callable(thing), name
        assert thing.__name__ == name.split(".")[-1]
        # a second look gives the same thing: no submodule has taken its place
        assert operator.attrgetter(name)(nb) is thing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_three_positional_parameters_and_no_mutable_defaults(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= 3
    for p in parameters:
        assert p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name == "kwargs"
        assert not isinstance(p.default, list | dict | set)
        assert p.annotation is not p.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_every_parameter_and_what_comes_back(name):
    function = FUNCTIONS[name]
    found = sections(function)
    summary = found[""].strip().splitlines()
    assert summary
    assert summary[0].endswith(".")
    parameters = set(inspect.signature(function).parameters)
    assert documented(found.get("Parameters", "")) == parameters
    if inspect.signature(function).return_annotation not in ("None", None):
        assert found["Returns"].strip()
    elif "sdata" in parameters and not name.startswith("io."):
        assert "writes" in found["Returns"]
    if len(parameters) > 0 and _raises(function):
        assert found["Raises"].strip()
    assert ">>>" in found["Examples"]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_say_what_they_are_made_of(name):
    found = sections(CLASSES[name])
    assert found[""].strip()
    told = documented(found.get("Parameters", "")) | documented(found.get("Attributes", ""))
    if dataclasses.is_dataclass(CLASSES[name]):
        assert {f.name for f in dataclasses.fields(CLASSES[name])} <= told
        assert CLASSES[name].__dataclass_params__.frozen


def test_the_documentation_lists_every_public_name_once():
    pages = Path(__file__).parents[1] / "docs" / "api"
    listed = Counter()
    for page in pages.glob("*.md"):
        for table in re.findall(
            r"^\.\. autosummary::\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            found = re.findall(r"^   (\w+(?:\.\w+)+)$", table, re.MULTILINE)
            rooms = {name.split(".")[0] for name in found}
            assert page.stem == "settings" or rooms == {page.stem}, page.name
            listed.update(found)
    assert [name for name, n in listed.items() if n > 1] == []
    assert set(PUBLIC) - set(listed) == set()
    for name in listed:
        assert callable(operator.attrgetter(name)(_with_submodules(name))), name


def _with_submodules(name):
    """The package, after the import of the module that a name is in."""
    head, _, _ = name.rpartition(".")
    for end in range(head.count(".") + 1):
        try:
            importlib.import_module(".".join(["nimbus_sd", *head.split(".")[: end + 1]]))
        except ModuleNotFoundError:
            break
    return nb


def _bibliography():
    """Family name of the first author, and year, of every entry (\"\" where it has none)."""
    text = (Path(__file__).parents[1] / "docs" / "references.bib").read_text("utf-8")
    found = set()
    for entry in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        author = re.search(r"author\s*=\s*\{(.*)\}", entry)[1].split(",")[0]
        year = re.search(r"year\s*=\s*\{(\d+)\}", entry)
        found.add((author, year[1] if year else ""))
    return found


@pytest.mark.parametrize("name", [n for n, thing in PUBLIC.items() if "References" in sections(thing)])
def test_papers_that_docstrings_name_are_in_the_bibliography(name):
    cited = sections(PUBLIC[name])["References"]
    # "Chen et al. (2020), ...", "Platt (1999)", "Pochet et al., ..." where no year is known
    pairs = re.findall(
        r"([A-Z][\w-]+(?: [A-Z]\w+)?)(?:,? (?:and )?[A-Z][\w-]+)*(?: et al\.)? \((\d{4})\)", cited
    )
    pairs += [(family, "") for family in re.findall(r"(Pochet) et al\.,", cited)]
    assert pairs, f"{name}: write references as 'Family et al. (year), *Title*'"
    assert set(pairs) <= _bibliography(), name


def _raises(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def _examples():
    """Every docstring with an example, of public and of inner modules."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {thing.__module__ for thing in PUBLIC.values()}
    names |= {
        f"nimbus_sd.arrays.{m}" for m in ("dihedral", "intensity", "mask", "reduce", "rescale", "tiling")
    }
    names |= {
        f"nimbus_sd.arrays.{m}"
        for m in (
            "background",
            "blobs",
            "calibration",
            "cell_context",
            "compensation",
            "confounders",
            "evaluation",
            "fields",
            "gating",
            "hierarchy",
            "metaclusters",
            "metrics",
            "mixture",
            "neighbour_graph",
            "patches",
            "phenotypes",
            "recalibration",
            "rediscovery",
            "registration",
            "reliability",
            "silver",
            "som",
            "spillover",
        )
    }
    names |= {
        "nimbus_sd.engine.normalization",
        "nimbus_sd.engine.registration",
        "nimbus_sd.testing.strategies",
    }
    names |= {f"nimbus_sd.engine.embedding.{m}" for m in ("inputs", "margins")}
    names |= {getattr(testing, name).__module__ for name in testing.__all__}
    for name in sorted(names):
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                yield test


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("test", list(_examples()), ids=lambda t: t.name.removeprefix("nimbus_sd."))
def test_examples_run(test, tmp_path, monkeypatch):
    source = "".join(example.source for example in test.examples)
    default_weights = "tl.predict(" in source or "nimbus-sd-s" in source
    if default_weights and "nimbus-sd-s" not in nb.models.list():
        pytest.skip("the bundled weights are not there yet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0
