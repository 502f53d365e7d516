"""Each session's environment is what its name says, and no neighbour brought another torch."""

import re
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
MOVING = ("spatialdata", "anndata", "scanpy", "squidpy", "dask", "zarr")


def _project():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def _bounds():
    wanted = [Requirement(text) for text in _project()["dependencies"]]
    return {r.name: next((s.version for s in r.specifier if s.operator == ">="), None) for r in wanted}


def _constraints():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.ecosystem("lowest")
@pytest.mark.parametrize("name", [n for n in _bounds() if n != "torch"])
def test_what_is_installed_is_the_lower_bound(name):
    lowest = _bounds()[name]
    if lowest is not None:  # pynndescent has but a version that is left out
        assert Version(version(name)) == Version(lowest), f"raise the bound of {name} to what was resolved"


@pytest.mark.ecosystem("newest")
@pytest.mark.parametrize("name", MOVING)
def test_nothing_holds_a_version_back(name):
    assert Version(version(name)) >= Version(_constraints()[name])


@pytest.mark.ecosystem("lowest", "newest", "neighbours", "viewers")
def test_the_torch_that_was_chosen_is_still_there():
    import torch

    assert Version(torch.__version__).public == _constraints()["torch"]
    if torch.version.cuda is None:
        # packages for a GPU beside a torch that has no use for them: gigabytes that somebody pulled
        names = {d.name for d in distributions() if d.name}
        assert not {n for n in names if re.match(r"(nvidia|cuda)-", n)}


@pytest.mark.ecosystem("torchless")
def test_there_is_no_torch():
    assert "torch" not in {d.name for d in distributions()}
